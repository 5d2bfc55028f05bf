"""holdfast.Stateful: a recurrent module that remembers its state from call to call, for streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import _VF, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..kernels.heads import block_diagonal
from .backend import current_backend
from .base import RecurrentBase
from .call.checks import Lengths
from .call.decision import refusal
from .call.records import Layers, State, as_hx, as_tuple
from .eager.recurrence import named_weights
from .eager.reference import reference_of
from .step import SINGLE_STEP

States = tuple[Tensor, ...]

# torch's ops for one step. At 16 units and one row a step takes 15, 24, 23 us of a CPU core (RNN, GRU, LSTM), torch.nn
# on a sequence of one 24, 33, 77 us.
STEP_OPS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": _VF.rnn_tanh_cell,
    "rnn_relu": _VF.rnn_relu_cell,
    "gru": _VF.gru_cell,
    "lstm": _VF.lstm_cell,
}


class Stateful(nn.Module):
    """A holdfast.RNN, GRU, LSTM or Recurrent of one direction that carries its state from one call to the next.

    module:  the module; its parameters are this one's. Not bidirectional: a stream has no end to start from.
    detach:  cut the state from the graph after each call, which is truncated backpropagation through time. False
             lets a gradient flow back through all chunks since the last `reset`.

    Chunks of any length one after another give what the whole sequence gives. The state moves with `.to()` and is
    copied and pickled with the module, but is no part of the state_dict.

        stream = holdfast.Stateful(holdfast.GRU(40, 128))
        y = stream(frames)       # [T, B, 40] -> [T, B, 128]
        y_t = stream.step(frame) # [B, 40] -> [B, 128]

    A single step is mostly the host's time. On a GPU a CUDA graph replays it without; it writes where it was captured,
    so the state is a tensor of yours (an LSTM has two):

        x, h = torch.zeros(1, B, 40, device="cuda"), torch.zeros(1, B, 128, device="cuda")
        with torch.no_grad():
            module(x, h)  # once before the capture: compiles and loads what is captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y, h_n = module(x, h)
                h.copy_(h_n)
        for frame in frames:  # [B, 40]
            x[0].copy_(frame)
            graph.replay()
            outputs.append(y[0].clone())
        holdfast.check_stalled()

    Raises TypeError where module is none of holdfast's, ValueError where it is bidirectional.
    """

    def __init__(self, module: RecurrentBase, *, detach: bool = True) -> None:
        if not isinstance(module, RecurrentBase):
            raise TypeError(
                "module should be a holdfast.RNN, GRU, LSTM or Recurrent, "
                f"got {type(module).__name__}; holdfast.convert turns torch.nn's into holdfast's"
            )
        if module.bidirectional:
            raise ValueError("module should have one direction, got bidirectional=True: a stream has no end")
        super().__init__()
        self.module = module
        self.detach = detach
        # Of each layer [B, H], h first; None stands for the initial state. No buffers: DDP would overwrite them.
        self._layers: list[States] | None = None

    @property
    def state(self) -> State | None:
        """The state as hx, [num_layers, B, H], for an LSTM a pair; None where the next call starts afresh. May be set.

        Raises ValueError for a state that does not fit the module.
        """
        if self._layers is None:
            return None
        return as_hx(tuple(torch.stack(each) for each in zip(*self._layers, strict=True)))

    @state.setter
    def state(self, hx: State | None) -> None:
        self._layers = None if hx is None else self._by_layer(hx)

    def _by_layer(self, hx: State) -> list[States]:
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        module = self.module
        sizes = (module.proj_size or module.hidden_size, *[module.hidden_size] * (module.n_states - 1))
        found = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in states]
        B = states[0].shape[1] if states and isinstance(states[0], Tensor) and states[0].dim() == 3 else "B"
        expected = [(module.num_layers, B, size) for size in sizes]
        if found != expected:
            raise ValueError(f"state should be None or of shape {_shapes(expected)}, as hx, got {_shapes(found)}")
        return list(zip(*(state.unbind(0) for state in states), strict=True))

    def reset(self, rows: Tensor | Sequence[int] | None = None) -> None:
        """Return to the module's initial state: all rows, or those in a bool mask [B] or among these indices.

        After reset() the next chunk may have another batch size.

        Raises ValueError for a mask of another length or an index outside of the batch.
        """
        if rows is None:
            self._layers = None
        elif self._layers is not None:
            h = self._layers[0][0]
            mask = _mask(rows, len(h), h.device).unsqueeze(-1)
            initial = self._by_layer(self.module.initial_state(h, len(h)))
            self._layers = [
                tuple(torch.where(mask, i.to(s.dtype), s) for i, s in zip(of_layer, states, strict=True))
                for of_layer, states in zip(initial, self._layers, strict=True)
            ]

    def forward(self, input: Tensor, resets: Tensor | None = None, *, lengths: Lengths | None = None) -> Tensor:
        """The output of the next chunk: [T, B, I] -> [T, B, H], [B, T, I] if batch_first, or [T, I] -> [T, H].

        resets:   [T, B], as x without its features, nonzero: the state returns to the initial one before these steps.
        lengths:  [B], how many steps of the chunk each row has; the others leave the row's state alone.

        Raises ValueError for a PackedSequence or another batch size than before; else as the module.
        """
        if isinstance(input, PackedSequence):
            raise ValueError("input should be a tensor, got a PackedSequence: pass the padded tensor with lengths")
        batched = input.dim() != 2
        if input.dim() in (2, 3):
            self._check_batch(input.size(self.module._batch_dim) if batched else 1)
        hx: Any = self.state
        if hx is not None and not batched:
            hx = self.module._map_state(lambda t: t.squeeze(1), hx)
        y, hx = self.module(input, hx, resets=resets, lengths=lengths)
        if not batched:
            hx = self.module._map_state(lambda t: t.unsqueeze(1), hx)
        self._keep(list(zip(*(t.unbind(0) for t in as_tuple(hx)), strict=True)))
        return y

    def step(self, input: Tensor) -> Tensor:
        """The output of the next step, [B, I] -> [B, H] or [I] -> [H], at less overhead than a chunk of one.

        Raises ValueError for an input of another shape or another batch size than before; RuntimeError where
        holdfast.backend is "triton", as a step is one op of torch.
        """
        module = self.module
        if input.dim() == 1:
            return self.step(input.unsqueeze(0)).squeeze(0)
        if input.dim() != 2 or input.size(1) != module.input_size:
            raise ValueError(f"input should be of shape [B, {module.input_size}], got {[*input.shape]}")
        self._check_batch(len(input))
        if current_backend() == "triton":
            raise RuntimeError(refusal(type(self).__name__, (SINGLE_STEP,)))
        module._update_flat_weights()
        layers = module._describe()
        if layers.noisy:
            return self(input.unsqueeze(1 - module._batch_dim)).squeeze(1 - module._batch_dim)
        before = self._layers or self._by_layer(module.initial_state(input, len(input)))
        after = []
        h = input
        for layer, states in enumerate(before):
            if layer and layers.dropout and layers.training:
                h = F.dropout(h, layers.dropout)
            after.append(_one_step(layers, layer, h, states))
            h = after[-1][0]
        self._keep(after)
        return h

    def _keep(self, layers: list[States]) -> None:
        if self.detach and layers[0][0].requires_grad:
            layers = [tuple(state.detach() for state in states) for states in layers]
        self._layers = layers

    def _check_batch(self, rows: int) -> None:
        if self._layers is not None and len(self._layers[0][0]) != rows:
            began = len(self._layers[0][0])
            raise ValueError(
                f"input should have {began} rows, as the stream began with, got {rows}; reset() begins anew"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stateful:
        super()._apply(fn, recurse)
        if self._layers is not None:
            self._layers = [tuple(fn(state) for state in states) for states in self._layers]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph behind the state, which cannot be copied or pickled."""
        members = self.__dict__.copy()
        if self._layers is not None:
            members["_layers"] = [tuple(state.detach() for state in states) for states in self._layers]
        return members

    def extra_repr(self) -> str:
        return "" if self.detach else "detach=False"


def _one_step(layers: Layers, layer: int, x: Tensor, states: States) -> States:
    """The states [B, H] of a layer after the step x [B, I]."""
    each = layers.weights_each
    weights = layers.weights[layer * each : (layer + 1) * each]
    heads = layers.num_heads
    weights[1] = block_diagonal(weights[1], heads)
    op = STEP_OPS.get(layers.cell)
    if op is None or layers.proj_size > 0:
        w_hr = weights.pop() if layers.proj_size > 0 else None
        w_ih, w_hh, b_ih, b_hh, parameters = named_weights(weights)
        after, _ = reference_of(layers.cell)(
            F.linear(x, w_ih, b_ih), lambda h: F.linear(h, w_hh, b_hh), states, parameters, heads
        )
        return after if w_hr is None else (F.linear(after[0], w_hr), *after[1:])
    if len(states) == 1:
        return (op(x, *states, *weights),)
    return cast(States, op(x, states, *weights))


def _mask(rows: Tensor | Sequence[int], B: int, device: torch.device) -> Tensor:
    """rows, a mask or indices, as a bool mask [B]."""
    given = torch.as_tensor(rows, device=device)
    if given.dtype is torch.bool:
        if given.shape != (B,):
            raise ValueError(
                f"rows should be a mask of shape ({B},), as the stream has {B} rows, got {tuple(given.shape)}"
            )
        return given
    if given.numel() and (given.is_floating_point() or given.is_complex()):
        raise ValueError(f"rows should be a bool mask or integer indices, got {given.dtype}")
    wrong = [row for row in given.flatten().tolist() if not 0 <= row < B]
    if wrong:
        raise ValueError(f"rows should be indices from 0 to {B - 1}, as the stream has {B} rows, got {wrong[0]}")
    return torch.zeros(B, dtype=torch.bool, device=device).index_fill(0, given.flatten().long(), True)


def _shapes(shapes: Sequence[Any]) -> str:
    return " and ".join(str(shape).replace("'B'", "B") for shape in shapes)
