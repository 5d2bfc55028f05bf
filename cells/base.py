"""What RNN, GRU and LSTM share: torch.nn's parameters and checks, and a call from its arguments to its results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from ..kernels.plan import Plan
from ..kernels.refused import RefusedError
from .call.checks import (
    Lengths,
    check_bool,
    check_heads,
    check_rate,
    check_rates,
    checked_lengths,
    checked_resets,
    refuse_with_packed,
)
from .call.decision import after_refusal, decide, explained, refusal
from .call.records import Call, Decision, Layers, ReturnGates, State, as_hx
from .call.surroundings import in_onnx_export
from .eager.run import follow
from .gates import gates_as_asked
from .heads import densely
from .interop import Interop
from .ops.eager import run_as_op
from .ops.kernel_path import run_kernels
from .ops.onnx import run_onnx

if TYPE_CHECKING:
    from ..kernels.kept import Keep


class RecurrentBase(nn.RNNBase, Interop):
    """Base of `holdfast.RNN`, `GRU` and `LSTM`.

    Parameters, attributes, state_dict, pickles and the methods that look after them are `torch.nn.RNNBase`'s.
    It derives from RNNBase and not from nn.LSTM (nn.GRU, nn.RNN), because torch.compile refuses those and their
    subclasses: `isinstance(module, nn.LSTM)` is False, unless `holdfast.convert` was told to keep it.
    `holdfast.to_torch` gives the torch.nn module back, for torch.jit.script too, which does not take these modules.
    """

    # torch.nn words this differently for each module.
    _rank_error: ClassVar[str]
    # Options on the class, so that a module unpickled from an older version or converted from torch.nn has them as
    # well; a module has attributes of its own only for those that differ.
    _keep: Keep | None = None
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, ...] = 0.0
    learn_initial_state: bool = False
    num_heads: int = 1
    layer_norm: bool = False
    _norm_at_first: ClassVar[tuple[float, ...]] = ()
    """What the rows of layer_norm_l{k} begin as: 1 for weights, 0 for biases."""
    _options: ClassVar[tuple[str, ...]] = ("recurrent_dropout", "zoneout", "learn_initial_state", "num_heads")
    state_names: tuple[str, ...] = ("h",)

    @property
    def keep(self) -> Keep | None:
        """What the kernels keep between a forward and a backward pass, "save", "recompute" or None; may be set.

        "save":       the gate values of every step, 4 numbers a unit for GRU and LSTM, and an LSTM's cell states.
        "recompute":  only the cell states; the gates are worked out again by one GEMM over all steps.
        None:         "recompute" where "save" would keep more than 1 GiB for the call, all layers together; else what
                      tuning found faster, and without tuning "save"; always "save" under torch.compile, which does
                      not know the sizes. The default.

        An RNN needs only its outputs, so there the choice changes nothing. It is copied and pickled with the module
        and is no part of the state_dict. Without a backward pass to follow (no_grad) nothing is kept.

        Raises ValueError for another value.
        """
        return self._keep

    @keep.setter
    def keep(self, value: Keep | None) -> None:
        if value not in (None, "save", "recompute"):
            raise ValueError(f"keep should be one of 'save', 'recompute', None, got {value!r}")
        self._keep = value

    def _set_options(self, device: torch.device | str | int | None, dtype: torch.dtype | None, **options: Any) -> None:
        """Check and take the options that torch.nn does not have, after torch.nn's constructor has run.

        Raises ValueError for a bad value or one that does not go with proj_size, TypeError for what should be a bool.
        """
        check_rate("recurrent_dropout", options["recurrent_dropout"])
        check_rates("zoneout", options["zoneout"], self.state_names)
        check_bool("learn_initial_state", options["learn_initial_state"])
        check_heads(options["num_heads"], self.hidden_size)
        for name, value in options.items():
            if value != getattr(type(self), name):
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
        beside_projection = {"learn_initial_state", "forget_bias"}
        for name in self.chosen_options():
            if self.proj_size > 0 and name not in beside_projection:
                raise ValueError(
                    f"{name} does not go with proj_size, got {name}={options[name]!r}, proj_size={self.proj_size}"
                )
        if self.num_heads > 1:
            for names in self._all_weights:
                dense = getattr(self, names[1])
                # Numbers drawn alike: a part of them is as good as any.
                setattr(self, names[1], Parameter(dense.detach()[:, : self.hidden_size // self.num_heads].clone()))
            self._init_flat_weights()
        if self.learn_initial_state:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            sizes = (self.proj_size or self.hidden_size, *[self.hidden_size] * (self.n_states - 1))
            for name, size in zip(self.state_names, sizes, strict=True):
                zeros = torch.zeros(rows, 1, size, device=device, dtype=dtype)
                self.register_parameter(f"initial_{name}", Parameter(zeros))

    def _add_unit_weights(
        self, name: str, rows: int, device: torch.device | str | int | None, dtype: torch.dtype | None
    ) -> None:
        """Parameters `{name}_l{k}{suffix}` [rows, H], one per layer and direction after its biases, drawn as they."""
        bound = 1 / math.sqrt(self.hidden_size)
        for names in self._all_weights:
            own = names[0].replace("weight_ih", name)
            weight = torch.empty(rows, self.hidden_size, device=device, dtype=dtype)
            self.register_parameter(own, Parameter(nn.init.uniform_(weight, -bound, bound)))
            names.append(own)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    def _add_layer_norm(
        self, device: torch.device | str | int | None, dtype: torch.dtype | None, **beside: tuple[Any, Any]
    ) -> None:
        """Parameters `layer_norm_l{k}{suffix}` [rows, H]. beside: what it does not go with, (value, what it should be).

        Raises ValueError for such an option, TypeError for a layer_norm that is no bool.
        """
        check_bool("layer_norm", self.layer_norm)
        if not self.layer_norm:
            return
        for name, (value, expected) in beside.items():
            if value != expected:
                raise ValueError(f"{name} does not go with layer_norm, got {name}={value!r}, layer_norm=True")
        self._add_unit_weights("layer_norm", len(self._norm_at_first), device, dtype)
        self._reset_layer_norm()

    @torch.no_grad()
    def _reset_layer_norm(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("layer_norm_l"):
                parameter.copy_(parameter.new_tensor(self._norm_at_first)[:, None].expand_as(parameter))

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch.nn; a learnt initial state becomes zero, a layer norm changes nothing."""
        super().reset_parameters()
        self._reset_layer_norm()
        if self.learn_initial_state:
            for name in self.state_names:
                nn.init.zeros_(getattr(self, f"initial_{name}"))

    def flatten_parameters(self) -> None:
        """torch.nn's: lay the weights out for cuDNN, which has no heads and no layer norm."""
        if self.num_heads == 1 and not self.layer_norm:
            super().flatten_parameters()

    def chosen_options(self) -> dict[str, Any]:
        """The options that torch.nn does not have and that differ from their defaults."""
        values = {name: getattr(self, name) for name in self._options}
        return {name: value for name, value in values.items() if value != getattr(type(self), name)}

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        if self.layer_norm:  # the norm's biases stand for these, and the constructor is not to be told so
            shown = shown.replace(", bias=False", "")
        return ", ".join([shown, *(f"{name}={value!r}" for name, value in self.chosen_options().items())])

    @property
    def n_states(self) -> int:
        return len(self.state_names)

    @property
    def zoneout_rates(self) -> tuple[float, ...]:
        """The probability of zoneout for each state."""
        zoneout = self.zoneout
        return zoneout if isinstance(zoneout, tuple) else (zoneout,) + (0.0,) * (len(self.state_names) - 1)

    @property
    def cell(self) -> str:
        """The cell's name, with its activations where they are not torch's; see `cells.eager.reference`."""
        raise NotImplementedError

    def initial_state(self, x: Tensor, batch_size: int | Tensor) -> State:
        """The state that hx=None stands for: the learnt one, or zeros in the dtype and on the device of x."""
        if not self.learn_initial_state:
            return as_hx(self._describe().zeros(x, batch_size))
        # cuDNN takes no expanded view.
        learnt = (getattr(self, f"initial_{name}") for name in self.state_names)
        return as_hx(tuple(state.expand(-1, int(batch_size), -1).contiguous() for state in learnt))

    def _check_rank(self, hx: Any, batched: bool) -> None:
        """Refuse an hx whose rank does not go with that of x."""
        if hx.dim() != (3 if batched else 2):
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx should also be {3 if batched else 2}-D but got {hx.dim()}-D tensor"
            )

    def _map_state(self, function: Callable[[Tensor], Tensor], hx: Any) -> State:
        """`function` applied to each tensor of hx."""
        return function(hx)

    def _check_packed(self, x: Tensor, hx: Any, batch_sizes: Tensor) -> None:
        self.check_forward_args(x, hx, batch_sizes)

    def _describe(self) -> Layers:
        """The layers as they are now: all that a call needs of this module."""
        # By place, as in `Layers`: by name it takes a microsecond more, of the 20 that a small RNN takes.
        return Layers(
            self.cell,
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.batch_first,
            self.bias,
            self.dropout,
            self.training,
            self.recurrent_dropout,
            self.zoneout_rates,
            self.num_heads,
            self._keep,
            self.flat_weights(),
            self._flat_weights_names,
        )

    def flat_weights(self) -> list[Tensor]:
        """The weights in torch's order, as they are now: forward has just looked them up by name.

        A graph looks them up here: a weight that it finds in two places costs a guard in Python each.
        """
        if torch.compiler.is_compiling():
            return [getattr(self, name) for name in self._flat_weights_names]
        return cast("list[Tensor]", self._flat_weights)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *rest: Any,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Any = None,
        return_gates: ReturnGates = False,
        **unknown: Any,
    ) -> tuple[Any, ...]:
        """Run the module. input, hx, results and errors are those of the torch.nn module of the same name.

        lengths:      [B] integers, a tensor on any device or a list: how many steps of each row count, 0 to T. The
                      output past a row's end is zero, final states are those at its end, the reverse direction starts
                      there. For unbatched input a tensor [1] or a single number. Out of range they are refused,
                      except in a tensor on a GPU, where that would wait for the GPU, or in a traced graph: there they
                      are clamped.
        resets:       [T, B], [B, T] if batch_first, [T] for unbatched input, of any real dtype, also with a last axis
                      of 1: before the steps where it is not zero the state of the row is set to reset_state, and no
                      gradient flows across. In the reverse direction it is set
                      when the walk comes from a marked step to the one before it. So the result is that of calling the
                      module on each segment between two resets; hx is only what a row starts with, in the reverse
                      direction from its end. Past a row's end they mean nothing.
        reset_state:  as hx, or with a batch of 1 for all rows alike; None is what hx=None stands for.
        return_gates: a third result, `Gates`: what every gate and state was at every step. True: detached.
                      "differentiable": with gradients, such as those of an LSTM's c; where a backward pass may follow
                      the call then runs step by step in plain torch ops.

        Raises ValueError, naming the argument, for lengths, resets or a reset_state that do not fit x, and for another
        return_gates.
        With holdfast.backend "triton", RuntimeError where no kernel can run.
        """
        if isinstance(input, Proxy):
            given = {"lengths": lengths, "resets": resets, "reset_state": reset_state, "return_gates": return_gates}
            return self._as_one_node(input, hx, {k: v for k, v in given.items() if v is not None and v is not False})
        if unknown:
            raise TypeError(self._unexpected(next(iter(unknown))))
        if rest:
            lengths, resets, reset_state, return_gates = _given_by_position(rest)
        call = self._checked(input, hx, lengths, resets, reset_state, return_gates)
        decision = decide(call)
        if decision.refused:
            raise RuntimeError(refusal(type(self).__name__, decision.reasons))
        if decision.path != "kernels" or (decision.notes is None and torch.compiler.is_compiling()):
            return self._run(call, decision)
        try:
            return self._run(call, decision)
        except RefusedError as error:
            return self._run(call, after_refusal(type(self).__name__, call, error))

    def _run(self, call: Call, decision: Decision) -> tuple[Any, ...]:
        """The results of a call on the path that was decided."""
        traces: list[dict[str, Tensor]] | None = [] if call.return_gates else None
        if decision.path != "kernels":
            call = densely(call)
        if decision.path == "kernels":
            output, states = run_kernels(call, decision, traces)
        elif decision.path == "onnx":
            output, states = run_onnx(call)
        elif decision.path == "op":
            output, states = run_as_op(call, decision, traces)
        else:
            output, states = follow(call, decision, traces)
        results = self._as_asked(call, output, states)
        return results if traces is None else (*results, gates_as_asked(call, traces))

    def explain(
        self,
        x: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Any = None,
        return_gates: ReturnGates = False,
    ) -> Plan:
        """The path that `forward` would take with these arguments here and now, with every reason against a kernel.

        Nothing is run. The arguments are as for forward, and what forward refuses is refused here in the same words.
        """
        return explained(self._checked(x, hx, lengths, resets, reset_state, return_gates))

    def _checked(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Any = None,
        return_gates: ReturnGates = False,
    ) -> Call:
        """torch.nn's checks in torch.nn's order, then those of the arguments that torch.nn does not have.

        Weights that were replaced are looked up anew, as torch.nn does.
        """
        if isinstance(return_gates, str) and return_gates != "differentiable":  # TorchScript's exporter gives a tensor
            raise ValueError(f"return_gates should be False, True or 'differentiable', got {return_gates!r}")
        if self._first_weight_has_changed() if torch.compiler.is_compiling() else self._weights_have_changed():
            self._init_flat_weights()
        if isinstance(input, PackedSequence):
            x, batch_sizes, sorted_indices, unsorted_indices = input
            # torch.nn checks a packed call against the zeros it makes; they are right by construction.
            hx = self.initial_state(x, batch_sizes[0]) if hx is None else self.permute_hidden(hx, sorted_indices)
            if torch.compiler.is_compiling():  # how many sequences is a number in a tensor: torch's op looks at hx
                self.check_input(x, batch_sizes)
            else:
                self._check_packed(x, hx, batch_sizes)
            refuse_with_packed(lengths=lengths, resets=resets, reset_state=reset_state)
            packed = (batch_sizes, sorted_indices, unsorted_indices)
            return Call(self._describe(), x, hx, True, *packed, return_gates=return_gates)
        rank, batch_dim = input.dim(), self._batch_dim
        if rank not in (2, 3):
            raise ValueError(self._rank_error.format(rank))
        batched = rank == 3
        x = input if batched else input.unsqueeze(batch_dim)
        if hx is None:
            self.check_input(x, None)
            if self.learn_initial_state:
                hx = self.initial_state(x, x.size(batch_dim))
        else:
            self._check_rank(hx, batched)
            if not batched:
                hx = self._map_state(lambda state: state.unsqueeze(1), hx)
            self.check_forward_args(x, hx, None)
        steps = x.size(1 - batch_dim)
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        call = Call(self._describe(), x, hx, batched, return_gates=return_gates)
        if lengths is None and resets is None and reset_state is None:
            return call
        return self._with_boundaries(call, steps, x.size(batch_dim), lengths, resets, reset_state)

    def _with_boundaries(
        self, call: Call, T: int, B: int, lengths: Lengths | None, resets: Tensor | None, reset_state: Any
    ) -> Call:
        """The call with its lengths and resets, checked."""
        x, batched = call.x, call.batched
        if lengths is not None:
            lengths = checked_lengths(lengths, T, B, batched=batched, device=x.device)
        if resets is not None:
            resets = checked_resets(resets, T, B, batched=batched, batch_first=self.batch_first, device=x.device)
        elif reset_state is not None:
            raise ValueError("reset_state is the state that resets lead to, but resets is None: pass resets [T, B]")
        if reset_state is not None:
            reset_state = self._checked_reset_state(x, reset_state, batched)
        elif resets is not None and self.learn_initial_state:
            reset_state = self.initial_state(x, B)
        return call._replace(lengths=lengths, resets=resets, reset_hx=reset_state)

    def _checked_reset_state(self, x: Tensor, state: Any, batched: bool) -> State:
        """reset_state with a batch as x, refused as torch.nn refuses an hx of another shape, but as a ValueError."""
        form = "a tensor" if self.n_states == 1 else f"a tuple of {self.n_states} tensors"
        tensors = (state,) if self.n_states == 1 else state
        if (
            not isinstance(tensors, (tuple, list))
            or len(tensors) != self.n_states
            or not all(isinstance(t, Tensor) for t in tensors)
        ):
            raise ValueError(f"reset_state should be {form}, as hx, got {type(state).__name__}")
        for t in tensors:
            if t.device != x.device or (t.dtype != x.dtype and not torch._C._is_any_autocast_enabled()):
                raise ValueError(f"reset_state should be {x.dtype} on {x.device}, as x, got {t.dtype} on {t.device}")
        B = x.size(self._batch_dim)
        try:
            self._check_rank(state, batched)
            if not batched:
                state = self._map_state(lambda t: t.unsqueeze(1), state)
            state = self._map_state(lambda t: t.expand(-1, B, -1) if t.size(1) == 1 else t, state)
            self.check_forward_args(x, cast(Tensor, state), None)
        except RuntimeError as error:
            raise ValueError(f"reset_state: {error}") from None
        return state

    def _weights_have_changed(self) -> bool:
        """torch.nn's, but a parameter is found without Module.__getattr__, which pays for the choice of path.

        Anything else is looked up as often as torch.nn does it: a parametrization may have state (spectral_norm
        takes a step each time) or draw random numbers, and results should stay equal.
        """
        for ref, name in zip(self._flat_weight_refs, self._flat_weights_names, strict=True):
            weight = self._parameters.get(name)
            if weight is None:
                weight = getattr(self, name) if hasattr(self, name) else None
            if weight is not None and ref is not None and ref() is not weight:
                return True
        return False

    def _first_weight_has_changed(self) -> bool:
        """What a graph asks: torch.nn's checks read the first of the list, and `flat_weights` none of it there."""
        return self._flat_weights[0] is not getattr(self, self._flat_weights_names[0])

    @property
    def _batch_dim(self) -> int:
        return 0 if self.batch_first else 1

    def _as_asked(self, call: Call, output: Tensor, states: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """The results in the form of the input: packed, unbatched or as they are."""
        hidden = as_hx(states)
        if call.batch_sizes is not None:
            packed = PackedSequence(output, call.batch_sizes, call.sorted_indices, call.unsorted_indices)
            return packed, self.permute_hidden(cast(Tensor, hidden), call.unsorted_indices)
        if not call.batched:
            output = output.squeeze(self._batch_dim)
            hidden = self._map_state(lambda state: state.squeeze(1), hidden)
        return output, hidden


def _given_by_position(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """lengths, resets, reset_state and return_gates from torch.onnx.export(dynamo=False), which knows no keywords.

    Raises TypeError for anybody else, in Python's words.
    """
    if len(rest) != 4 or not in_onnx_export():
        given = 3 + len(rest)
        raise TypeError(f"forward() takes from 2 to 3 positional arguments but {given} were given")
    return rest
