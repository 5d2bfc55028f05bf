"""A long, wide call in chunks of steps: its projections lie in memory for one chunk at a time.

W_ih x + b_ih of a whole call is G * H wide at every step: 2.1 GB for an LSTM in bf16 with T=1024, B=256, H=1024.
Backwards, where v is worked out again, W_hh h + b_hh takes as much once more. Where a call's projections would pass
CHUNK_BYTES, each direction walks chunks of steps, a GEMM and a launch for each. States and their gradients pass from
chunk to chunk in float32, as a loop carries them, so a loop's results are the same bit for bit. (A library's GEMM is
free to round a row otherwise among more or fewer others; MKL does for a single row.)

Estimate, nothing measured: a launch and loading W_hh take some 20 us, a chunk of 512 MiB 128 steps of the LSTM above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from .alignment import aligned
from .cell_spec import find_cell
from .extras import Extras
from .launch import alone
from .problem import Problem

CHUNK_BYTES = 512 * 2**20
"""Projections of a call that take more memory are made in chunks that take at most as much, or 16 steps."""


class Chunk(NamedTuple):
    """Steps of a call, [first, end), and the call's options as they are for a call of those steps alone."""

    first: int
    end: int
    extras: Extras

    @property
    def steps(self) -> int:
        return self.end - self.first

    def of(self, given: Any, dim: int = 0) -> Any:
        """The chunk's steps of a tensor [T, ..], of several, or of none."""
        if isinstance(given, tuple):
            return tuple([self.of(tensor, dim) for tensor in given])
        return None if given is None else given.narrow(dim, self.first, self.steps)


def chunks(problem: Problem, extras: Extras, steps: int, batch_size: int, projections: int) -> list[Chunk]:
    """A call's chunks in the order of time; empty where its projections are made whole.

    projections:  how many each direction needs at the same time.

    With packed rows, resets, dropout or zoneout they always are: what such a call's chunk begins with depends on more
    than the states.
    """
    a_step = projections * batch_size * find_cell(problem.cell).gates * problem.hidden_size * problem.dtype.itemsize
    if problem.directions * steps * a_step <= CHUNK_BYTES or not set(problem.features) <= {"lengths"}:
        return []
    size = max(16, CHUNK_BYTES // a_step // 16 * 16)  # in sixteens, so that a chunk begins where vectors do
    return [
        Chunk(first, end, _shifted(extras, first, end - first))
        for first in range(0, steps, size)
        for end in (min(first + size, steps),)
    ]


def _shifted(extras: Extras, first: int, steps: int) -> Extras:
    if extras.lengths is None:
        return extras
    return extras._replace(lengths=(extras.lengths - first).clamp(0, steps))


def each_direction(parts: Sequence[Chunk], walk_bits: int, directions: int) -> Iterator[tuple[int, int, list[Chunk]]]:
    """Of each direction its number, the bits of its launches (see `walk.this_member`) and its chunks as it walks them;
    nothing where there are no chunks."""
    for direction in range(directions if parts else 0):
        bits = alone(walk_bits, direction) if directions > 1 else walk_bits
        yield direction, bits, [*reversed(parts)] if walk_bits >> direction & 1 else [*parts]


def in_float32(given: Sequence[torch.Tensor] | None, like: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """States as they pass from chunk to chunk, [D, B, H]; zeros where none are given."""
    if given is None:
        return tuple([torch.zeros_like(state, dtype=torch.float32) for state in like])
    return tuple([state.to(torch.float32) for state in given])


def states_before(
    chunk: Chunk,
    states: Sequence[torch.Tensor],
    initial: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
    *,
    back: bool,
) -> tuple[torch.Tensor, ...]:
    """The states that a chunk begins with, as steps of y [B, D, H], from those after every step of the call.

    states:   [T, B, D * H] each.
    initial:  as steps of y.
    lengths:  [B] of the call.
    back:     the chunk is walked from its end.
    """
    neighbour = chunk.end if back else chunk.first - 1
    if not 0 <= neighbour < states[0].shape[0]:
        return tuple(initial)
    found = [aligned(of_all[neighbour]).view_as(given) for of_all, given in zip(states, initial, strict=True)]
    if lengths is None or not back:
        return tuple(found)
    runs = (lengths > neighbour)[:, None, None]  # the others begin inside the chunk, or have no step there
    return tuple([torch.where(runs, state, given) for state, given in zip(found, initial, strict=True)])
