"""One forward call after all checks: the arguments that every path works from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

State = Tensor | tuple[Tensor, ...]


class Call(NamedTuple):
    """Checked arguments of one forward.

    x:         [T, B, I], or [B, T, I] where the module is batch_first; packed: [rows, I].
    hx:        [layers*D, B, H], for an LSTM (h, c); None stands for zeros. Packed: in sorted order.
    batched:   False where the user's x was [T, I]; x and hx then have a batch of one.
    batch_sizes, sorted_indices, unsorted_indices:  of the PackedSequence, None where x was not packed.
    lengths:   [B] int64, each in [0, T], or None where every sequence has T steps.
    resets:    [T, B] bool, time-major also where the module is batch_first, any strides; or None. True also past a
               sequence's end, where it means nothing.
    reset_hx:  the state that resets lead to, as hx; may be an expanded view.
    return_gates:  the user asks for every gate and state as well.
    lengths, resets and reset_hx are on the device of x.
    """

    x: Tensor
    hx: State | None
    batched: bool = True
    batch_sizes: Tensor | None = None
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    reset_hx: State | None = None
    return_gates: bool = False

    @property
    def states(self) -> tuple[Tensor, ...]:
        """hx as a tuple, empty where it was not given."""
        return _as_tuple(self.hx)

    @property
    def reset_states(self) -> tuple[Tensor, ...]:
        """reset_hx as a tuple, empty for zeros."""
        return _as_tuple(self.reset_hx)

    @property
    def ragged(self) -> bool:
        """Whether sequences end or begin anew inside x."""
        return self.lengths is not None or self.resets is not None

    def batch_size(self, batch_first: bool) -> int:
        if self.batch_sizes is not None:
            return int(self.batch_sizes[0])
        return self.x.size(0 if batch_first else 1)


def _as_tuple(state: State | None) -> tuple[Tensor, ...]:
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor) else tuple(state)
