"""What RNN, GRU and LSTM share: torch.nn's checks, the choice of path, and both paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy, Tracer
from torch.nn.utils.rnn import PackedSequence

from ..kernels.plan import Plan
from .call import Call, State
from .fused import run_fused
from .keep import KEEP
from .layers import run_layers
from .planning import full_plan, takes_kernels
from .unfused import needs_unfused, run_unfused

if TYPE_CHECKING:
    from ..kernels.layer import Keep


class RecurrentBase(nn.RNNBase):
    """Base of `holdfast.RNN`, `GRU` and `LSTM`.

    Parameters, attributes, state_dict, pickles and the methods that look after them are `torch.nn.RNNBase`'s.
    It derives from RNNBase and not from nn.LSTM (nn.GRU, nn.RNN), because torch.compile refuses those and their
    subclasses: `isinstance(module, nn.LSTM)` is False. `holdfast.to_torch` gives the torch.nn module back, for
    torch.jit.script too, which does not take these modules.
    """

    # torch.nn words this differently for each module.
    _rank_error: ClassVar[str]
    # On the class, so that a module unpickled from an older version or converted from torch.nn has it as well.
    _keep: Keep | None = None

    @property
    def keep(self) -> Keep | None:
        """What the kernels keep between a forward and a backward pass, "save", "recompute" or None; may be set.

        "save":       the gate values of every step, 4 numbers a unit for GRU and LSTM, and an LSTM's cell states.
        "recompute":  only the cell states; the gates are worked out again by one GEMM over all steps.
        None:         "save" if that keeps at most 1 GiB for the call, all layers together, else "recompute"; always
                      "save" under torch.compile, which does not know the sizes. The default.

        An RNN needs only its outputs, so there the choice changes nothing. It is copied and pickled with the module
        and is no part of the state_dict. Without a backward pass to follow (no_grad) nothing is kept.

        Raises ValueError for another value.
        """
        return self._keep

    @keep.setter
    def keep(self, value: Keep | None) -> None:
        if value is not None and value not in KEEP:
            raise ValueError(f"keep should be one of 'save', 'recompute', None, got {value!r}")
        self._keep = value

    def fused_op(self) -> Callable[..., tuple[Tensor, ...]]:
        """torch's op for the whole module."""
        raise NotImplementedError

    def zero_state(self, x: Tensor, batch_size: int | Tensor) -> State:
        """The initial state that hx=None stands for, in the dtype and on the device of x."""
        return self._zeros(x, batch_size, self.hidden_size)

    def _zeros(self, x: Tensor, batch_size: int | Tensor, size: int) -> Tensor:
        rows = self.num_layers * (2 if self.bidirectional else 1)
        return torch.zeros(rows, batch_size, size, dtype=x.dtype, device=x.device)  # type: ignore[arg-type]

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

    def _join_states(self, states: tuple[Tensor, ...]) -> State:
        """The final states in the form of hx."""
        return states[0]

    def _check_packed(self, x: Tensor, hx: Any, batch_sizes: Tensor) -> None:
        self.check_forward_args(x, hx, batch_sizes)

    def flat_weights(self) -> list[Tensor]:
        """The weights in torch's order, as they are now: forward has just looked them up by name."""
        return cast("list[Tensor]", self._flat_weights)

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Run the module. Arguments, results and errors are those of the torch.nn module of the same name.

        With holdfast.backend "triton", RuntimeError where no kernel can run.
        """
        if isinstance(input, Proxy):
            return self._as_one_node(input, hx)
        call = self._checked(input, hx)
        if takes_kernels(self, call):
            output, states = run_layers(self, call)
        elif needs_unfused(self, call):
            output, states = run_unfused(self, call)
        else:
            output, states = run_fused(self, call)
        return self._as_asked(call, output, states)

    def explain(self, x: Tensor | PackedSequence, hx: Any = None) -> Plan:
        """The path that `forward(x, hx)` would take here and now, with every reason against a kernel.

        Nothing is run. x and hx are as for forward, and what forward refuses is refused here in the same words.
        """
        return full_plan(self, self._checked(x, hx))

    def _as_one_node(self, input: Proxy, hx: Any) -> Any:
        """Stay a single call in a torch.fx graph, which fx grants of itself only to modules under torch.nn."""
        tracer = cast(Tracer, input.tracer)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input, hx), {})

    def _checked(self, input: Tensor | PackedSequence, hx: Any) -> Call:
        """torch.nn's checks in torch.nn's order. Weights that were replaced are looked up anew, as torch.nn does."""
        self._update_flat_weights()
        if isinstance(input, PackedSequence):
            x, batch_sizes, sorted_indices, unsorted_indices = input
            # torch.nn checks a packed call against the zeros it makes; they are right by construction.
            hx = self.zero_state(x, batch_sizes[0]) if hx is None else self.permute_hidden(hx, sorted_indices)
            self._check_packed(x, hx, batch_sizes)
            return Call(x, hx, True, batch_sizes, sorted_indices, unsorted_indices)
        if input.dim() not in (2, 3):
            raise ValueError(self._rank_error.format(input.dim()))
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(self._batch_dim)
        if hx is None:
            self.check_input(x, None)
        else:
            self._check_rank(hx, batched)
            if not batched:
                hx = self._map_state(lambda state: state.unsqueeze(1), hx)
            self.check_forward_args(x, hx, None)
        if x.size(1 - self._batch_dim) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return Call(x, hx, batched)

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

    @property
    def _batch_dim(self) -> int:
        return 0 if self.batch_first else 1

    def _as_asked(self, call: Call, output: Tensor, states: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """The results in the form of the input: packed, unbatched or as they are."""
        hidden = self._join_states(states)
        if call.batch_sizes is not None:
            packed = PackedSequence(output, call.batch_sizes, call.sorted_indices, call.unsorted_indices)
            return packed, self.permute_hidden(cast(Tensor, hidden), call.unsorted_indices)
        if not call.batched:
            output = output.squeeze(self._batch_dim)
            hidden = self._map_state(lambda state: state.squeeze(1), hidden)
        return output, hidden
