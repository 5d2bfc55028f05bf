"""One forward call after torch.nn's checks: the arguments that every path works from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

State = Tensor | tuple[Tensor, ...]


class Call(NamedTuple):
    """Checked arguments of one forward.

    x:         [T, B, I], or [B, T, I] where the module is batch_first; packed: [rows, I].
    hx:        [layers*D, B, H], for an LSTM (h, c); None stands for zeros. Packed: in sorted order.
    batched:   False where the user's x was [T, I]; x and hx then have a batch of one.
    The other fields are those of the PackedSequence, None where x was not packed.
    """

    x: Tensor
    hx: State | None
    batched: bool = True
    batch_sizes: Tensor | None = None
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    @property
    def states(self) -> tuple[Tensor, ...]:
        """hx as a tuple, empty where it was not given."""
        if self.hx is None:
            return ()
        return (self.hx,) if isinstance(self.hx, Tensor) else tuple(self.hx)

    def batch_size(self, batch_first: bool) -> int:
        if self.batch_sizes is not None:
            return int(self.batch_sizes[0])
        return self.x.size(0 if batch_first else 1)
