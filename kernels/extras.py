"""What a layer may do besides the plain recurrence over full sequences, and what lies in memory for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .alignment import aligned
from .packed_rows import PackedRows


class Extras(NamedTuple):
    """Options of one layer's call; T steps, B rows, D directions, H units. None leaves each out.

    lengths:      [B] integers: steps of each row. Past them y is zero; the final state is that after the last
                  one; the reverse direction starts there. Values outside [0, T] are clamped.
    starts:       [T] int64: how many rows of a packed sequence lie before those of each time (lengths are
                  given as well, falling). x and everything as y then is [rows, ..] and not [T, B, ..].
    resets:       [T, B] bool: before these steps the state becomes `reset_state`. In the reverse direction the
                  same segments are walked from their ends. Not for packed sequences.
    reset_state:  a tensor [D, B, H] per state; None for zeros.
    dropout:      [D, B, H]: factors of h on its way into W_hh, the same at every step.
    zoneout:      a tensor as y per state: the share of its old value that a state keeps at each step; or one
                  number expanded to that shape.
    """

    lengths: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    resets: torch.Tensor | None = None
    reset_state: Sequence[torch.Tensor] | None = None
    dropout: torch.Tensor | None = None
    zoneout: Sequence[torch.Tensor] | None = None

    @property
    def absent(self) -> bool:
        """Whether all are left out."""
        lengths, starts, resets, reset_state, dropout, zoneout = self
        return lengths is starts is resets is reset_state is dropout is zoneout is None

    @property
    def features(self) -> tuple[str, ...]:
        """Their names, as a `Problem` has them."""
        if self.absent:
            return ()
        given = {
            "lengths": self.lengths,
            "packed": self.starts,
            "recurrent_dropout": self.dropout,
            "reset_state": self.reset_state,
            "resets": self.resets,
            "zoneout": self.zoneout,
        }
        return tuple(name for name, value in given.items() if value is not None)

    @property
    def reorders(self) -> bool:
        """Whether h before a step is not simply that of the step before it in memory."""
        return self.lengths is not None or self.resets is not None

    def extent(self, shape: Sequence[int]) -> tuple[int, int]:
        """Steps and batch size, from the shape of a tensor as y, [T, B, ..] or packed [rows, ..]."""
        if self.starts is None:
            return shape[0], shape[1]
        assert self.lengths is not None, "a packed sequence comes with its lengths"
        return self.starts.shape[0], self.lengths.shape[0]

    def cast(self, dtype: torch.dtype) -> Extras:
        """As the kernels take them."""
        if self.absent:
            return self
        return Extras(
            None if self.lengths is None else aligned(self.lengths.int().contiguous()),
            None if self.starts is None else aligned(self.starts.to(torch.int64).contiguous()),
            None if self.resets is None else aligned(self.resets.contiguous().view(torch.uint8)),
            None if self.reset_state is None else tuple(state.to(dtype) for state in self.reset_state),
            None if self.dropout is None else self.dropout.to(dtype),
            None if self.zoneout is None else tuple(_as_shares(share, dtype) for share in self.zoneout),
        )


def _as_shares(share: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One number expanded stays so: it is read again and again, not written out."""
    if share.numel() and is_one_number(share):
        return share[(0,) * share.dim()].to(dtype).expand(share.shape)
    return share.to(dtype).contiguous()


def is_one_number(tensor: torch.Tensor) -> bool:
    """Whether every element is the same place in memory."""
    return all(stride == 0 for stride in tensor.stride())


def as_steps_of_y(states: Sequence[torch.Tensor] | None) -> tuple[torch.Tensor, ...] | None:
    """[D, B, H] -> [B, D, H], contiguous; no copy for one direction. Equal strides save the loop 30 registers."""
    return None if states is None else tuple([as_step_of_y(state) for state in states])


def as_step_of_y(state: torch.Tensor) -> torch.Tensor:
    return aligned(state.transpose(0, 1).contiguous())


def states_before(
    h: torch.Tensor,
    initial: torch.Tensor | None,
    reset: torch.Tensor | None,
    extras: Extras,
    *,
    steps: int,
    batch_size: int,
    reverse: bool,
) -> torch.Tensor:
    """h before every step of one direction, [rows, H], zero for rows that do not have the step.

    h:               of that direction after every step, [rows, H]: T * B rows, or those of a packed sequence.
    initial, reset:  [B, H], or None for zeros.
    """
    if extras.starts is None:
        rows = torch.arange(h.shape[0], device=h.device)
        time, row = rows // batch_size, rows % batch_size
        starts = torch.arange(steps, device=h.device) * batch_size
    else:
        starts = extras.starts
        time, row, *_ = PackedRows.of(starts, extras.lengths, h.shape[0])
    length = torch.full_like(time, steps) if extras.lengths is None else extras.lengths[row].clamp(0, steps)
    neighbour = time + 1 if reverse else time - 1
    follows = (neighbour < length) if reverse else (neighbour >= 0)
    before = h[(starts[neighbour.clamp(0, steps - 1)] + row).clamp(max=h.shape[0] - 1)]
    before = torch.where(follows[:, None], before, 0 if initial is None else initial[row])
    if extras.resets is not None:
        mark = time + 1 if reverse else time
        marked = (mark < length) & (extras.resets[mark.clamp(max=steps - 1), row] != 0)
        before = torch.where(marked[:, None], 0 if reset is None else reset[row], before)
    return torch.where((time < length)[:, None], before, 0)
