"""One forward call as plain records: what was checked (Call) and what was decided (Decision). No path knows more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...kernels.plan import Reason
from ...kernels.problem import Precision

if TYPE_CHECKING:
    from ...kernels.kept import Keep

State = Tensor | tuple[Tensor, ...]
ReturnGates = bool | Literal["differentiable"]


class Layers(NamedTuple):
    """The layers of a module as they are at this call: sizes, options and weights.

    cell:       the cell's name, see `eager.reference`.
    zoneout:    the probability for each state, h first.
    num_heads:  weight_hh is [G*H, H / num_heads], see `kernels.heads`.
    keep:       what the user wants kept for the backward pass, see `RecurrentBase.keep`.
    weights:    in torch's order, each layer's directions one after another; names: what the module calls them.
    The rest is named as torch.nn names it.
    """

    cell: str
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    directions: int
    batch_first: bool
    bias: bool
    dropout: float
    training: bool
    recurrent_dropout: float
    zoneout: tuple[float, ...]
    num_heads: int
    keep: Keep | None
    weights: list[Tensor]
    names: list[str]

    @property
    def n_states(self) -> int:
        return len(self.zoneout)

    @property
    def noisy(self) -> bool:
        """Whether a call draws recurrent dropout or zoneout."""
        return any(self.zoneout) or (self.training and self.recurrent_dropout > 0)

    @property
    def drops(self) -> bool:
        """Whether a call draws dropout between layers."""
        return self.training and self.dropout > 0 and self.num_layers > 1

    @property
    def weights_each(self) -> int:
        """How many weights a layer has in one direction."""
        return len(self.weights) // (self.num_layers * self.directions)

    def zeros(self, x: Tensor, batch_size: int | Tensor) -> tuple[Tensor, ...]:
        """A state of zeros in the dtype and on the device of x."""
        sizes = (self.hidden_size, self.proj_size, self.n_states)
        return zeros(x, self.num_layers * self.directions, batch_size, *sizes)


class Call(NamedTuple):
    """Checked arguments of one forward.

    x:         [T, B, I], or [B, T, I] where the layers are batch_first; packed: [rows, I].
    hx:        [layers*D, B, H], for an LSTM (h, c); None stands for zeros. Packed: in sorted order.
    batched:   False where the user's x was [T, I]; x and hx then have a batch of one.
    batch_sizes, sorted_indices, unsorted_indices:  of the PackedSequence, None where x was not packed.
    lengths:   [B] int64, each in [0, T], or None where every sequence has T steps.
    resets:    [T, B] bool, time-major also where the layers are batch_first, any strides; or None. True also past a
               sequence's end, where it means nothing.
    reset_hx:  the state that resets lead to, as hx; may be an expanded view.
    return_gates:  the user asks for every gate and state as well, "differentiable": with gradients.
    lengths, resets and reset_hx are on the device of x.
    """

    layers: Layers
    x: Tensor
    hx: State | None
    batched: bool = True
    batch_sizes: Tensor | None = None
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    reset_hx: State | None = None
    return_gates: ReturnGates = False

    @property
    def states(self) -> tuple[Tensor, ...]:
        """hx as a tuple, empty where it was not given."""
        return as_tuple(self.hx)

    @property
    def reset_states(self) -> tuple[Tensor, ...]:
        """reset_hx as a tuple, empty for zeros."""
        return as_tuple(self.reset_hx)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that may have a gradient."""
        return (self.x, *self.states, *self.reset_states, *self.layers.weights)

    @property
    def ragged(self) -> bool:
        """Whether sequences end or begin anew inside x."""
        return self.lengths is not None or self.resets is not None

    @property
    def batch_size(self) -> int:
        if self.batch_sizes is not None:
            return int(self.batch_sizes[0])
        return self.x.size(0 if self.layers.batch_first else 1)

    @property
    def steps(self) -> int | None:
        """T, None where x is packed."""
        return None if self.batch_sizes is not None else self.x.size(1 if self.layers.batch_first else 0)

    @property
    def features(self) -> tuple[str, ...]:
        """What a kernel's loop would do besides, in the words of `kernels.problem.FEATURES`."""
        layers, packed = self.layers, self.batch_sizes is not None
        if not (self.ragged or packed or layers.noisy):
            return ()
        asked = {
            "lengths": self.lengths is not None or packed,
            "packed": packed,
            "recurrent_dropout": layers.training and layers.recurrent_dropout > 0,
            "reset_state": bool(self.reset_states),
            "resets": self.resets is not None,
            "zoneout": any(layers.zoneout),
        }
        return tuple(name for name, wanted in asked.items() if wanted)

    def starting_states(self) -> tuple[Tensor, ...]:
        """hx as a tuple, zeros where it was not given."""
        return self.states if self.hx is not None else self.layers.zeros(self.x, self.batch_size)


class Loop(NamedTuple):
    """What the time loop of each layer computes: a `kernels.problem.Problem` without batch size and phase."""

    cell: str
    dtype: torch.dtype
    hidden_size: int
    directions: int
    precision: Precision
    features: tuple[str, ...]
    num_heads: int


class Decision(NamedTuple):
    """What becomes of a call.

    path:      the kernels; torch's fused op, on x as it is or, with lengths or resets, as `eager.ragged` lays it out;
               or the recurrence step by step; or, in a traced graph, one op
               that chooses among these when it runs, or ONNX's operators.
    reasons:   why no kernel runs: the first that was found, or all for those who asked. Empty, too, where x is out of
               reach of any kernel and nobody asked.
    refused:   holdfast.backend is "triton", which is not to fall back.
    trains:    a backward pass may follow.
    autocast:  what autocast turns x into, None where it does not.
    loop:      what a kernel would compute; None where none was thought of.
    keep:      what a call on the kernels keeps for its backward pass.
    notes:     of a remembered decision for the kernels: what repeats each layer of such a call (see `ops.again`), empty
               before the first; None where calls are not alike enough.
    """

    path: Literal["kernels", "onnx", "op", "fused", "ragged", "recurrence"]
    reasons: tuple[Reason, ...] = ()
    refused: bool = False
    trains: bool = False
    autocast: torch.dtype | None = None
    loop: Loop | None = None
    keep: Keep = "nothing"
    notes: list[Any] | None = None


def zeros(
    x: Tensor, rows: int, batch_size: int | Tensor, hidden_size: int, proj_size: int, n_states: int
) -> tuple[Tensor, ...]:
    """h [rows, B, P or H] and the other states [rows, B, H], all zero, in the dtype and on the device of x."""
    like = {"dtype": x.dtype, "device": x.device}
    h = torch.zeros(rows, batch_size, proj_size or hidden_size, **like)  # type: ignore[call-overload]
    if n_states == 1:
        return (h,)
    return h, *[torch.zeros(rows, batch_size, hidden_size, **like) for _ in range(n_states - 1)]  # type: ignore[call-overload]


def as_tuple(state: State | None) -> tuple[Tensor, ...]:
    """The states of hx, h first; none where it is None."""
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor) else tuple(state)


def as_hx(states: tuple[Tensor, ...]) -> State:
    """States in the form of hx: the only one, or a tuple."""
    return states[0] if len(states) == 1 else states
