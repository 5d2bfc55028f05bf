"""Who a program is, which rows take part in a step, what time it is for each, and where that lies in memory.

Without lengths every row of a batch tile is at the same time: times and addresses are scalars, as cheap
as they can be. With lengths the reverse direction starts at each row's own end, so they are one number a row.
A packed sequence has its rows of time t from row starts[t] on, as many as still run (torch's PackedSequence).

Groups that are made inside a kernel are made by keyword: the order of their fields is in none of Triton's cache keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..compiled_for import compiled_for
from .interleave import units_of_tile


class Member(NamedTuple):
    """A program's place: which team it belongs to, and what part of the layer it owns."""

    number: Any  # in its team
    team: Any  # of all teams
    group: Any  # of its direction's and head's teams: a team visits the batch tiles group, group + groups, ...
    groups: Any
    direction: Any
    reverse: Any  # whether the direction walks from the end to 0
    by: Any  # from a step to the next: 1, in reverse -1
    head: Any
    unit: Any  # [BLOCK_H]: its hidden units, counted through all heads
    unit_ok: Any  # those that are its head's


class Tile(NamedTuple):
    """The rows of the batch that a team works on, one tile after the other."""

    batch0: Any  # its first row, 64-bit
    row: Any  # [BLOCK_B], counted from there
    row_ok: Any
    length: Any  # steps of each row, or one number for all
    begin: Any  # the time of each row's first step, or of all
    steps: Any  # of its longest row


class Moment(NamedTuple):
    """A step, as the rows of a tile see it."""

    t: Any  # the time, of each row or of all
    first: Any  # how many rows lie before those of that time in memory; 64-bit, as all offsets that depend on a time
    here: Any  # [BLOCK_B]: the rows that have the step


@triton.jit
def this_member(walk_bits, LOOP: tl.constexpr):
    """The program's own place.

    walk_bits:  bit d: direction d walks from its end to 0. Bits 2 and 3: 0 where the grid holds every direction, and
                1 + d where it holds direction d alone. From bit 4 on: 0 where it holds every head, and 1 + n where it
                holds a team for each of as many heads as it has room for, from head n on.
    """
    groups = tl.num_programs(0) // LOOP.MEMBERS
    number = tl.program_id(0) % LOOP.MEMBERS
    team = tl.program_id(0) // LOOP.MEMBERS
    direction = tl.full((), 0, tl.int32)
    head = tl.full((), 0, tl.int32)
    place = team  # among all teams of its head
    if LOOP.HEADS > 1:
        first = walk_bits >> 4
        head = tl.where(first == 0, team % LOOP.HEADS, team + first - 1)
        place = tl.where(first == 0, team // LOOP.HEADS, 0)
        groups = tl.where(first == 0, groups // LOOP.HEADS, 1)
    if LOOP.DIRECTIONS == 2:
        alone = walk_bits >> 2 & 3 if LOOP.HEADS > 1 else walk_bits >> 2
        groups = tl.where(alone == 0, groups // 2, groups)
        direction = tl.where(alone == 0, place // groups, alone - 1)
    unit = number * LOOP.BLOCK_H + units_of_tile(LOOP)
    back = (walk_bits >> direction) & 1
    return Member(
        number=number,
        team=team,
        group=place % groups,
        groups=groups,
        direction=direction,
        reverse=back == 1,
        by=1 - 2 * back,
        head=head,
        unit=head * LOOP.HEAD + unit,
        unit_ok=unit < LOOP.HEAD,
    )


@triton.jit
def by_heads(me, GATES: tl.constexpr, LOOP: tl.constexpr):
    """Where the first gate of the program's units lies in what is laid out by heads (see `groups`), [BLOCK_H]."""
    return me.unit + me.head * ((GATES - 1) * LOOP.HEAD)


@triton.jit
def tile_at(batch0, me, rows, T, B, LOOP: tl.constexpr):
    """The batch tile that begins at this row."""
    batch0 = tl.cast(batch0, tl.int64)
    row = tl.arange(0, LOOP.BLOCK_B)
    row_ok = batch0 + row < B
    length, steps = _lengths_of(rows.lengths, batch0 + row, row_ok, T)
    begin = tl.where(me.reverse, length - 1, 0)
    return Tile(batch0=batch0, row=row, row_ok=row_ok, length=length, begin=begin, steps=steps)


@triton.jit
def _lengths_of(lengths, row, row_ok, T):
    """The steps of each row, and those of the tile: it ends with its longest row. T, a scalar, where there are none."""
    if lengths is None:
        return T, T
    else:
        # On the device nobody has checked them: clamped, a wrong length is a wrong result and no wild address.
        length = tl.load(lengths + row, mask=row_ok, other=0)
        length = tl.minimum(tl.maximum(length, 0), T)
        return length, tl.max(length, axis=0)


@triton.jit
def moment(step, tile, me, rows, B):
    """The time of each row at a step, where that begins in memory, and which rows have it."""
    t = tile.begin + me.by * step
    here = tile.row_ok
    if rows.lengths is not None:
        t = tl.maximum(t, 0)  # of a row that has ended: any valid one
        here = here & (step < tile.length)
    return Moment(t=t, first=_first_row(t, rows.starts, B), here=here)


@triton.jit
def wide_product(t, by):
    """A time, 32-bit, times a number, in 64 bits: offsets into a sequence may pass 2^31.

    One instruction. Widened first, `by` is widened before the loop, where the compiler no longer sees that its upper
    half is a sign: four instructions one after the other, twice between the wait and what is published.
    """
    if isinstance(by, tl.constexpr):
        return t.to(tl.int64) * by
    elif compiled_for() == "cuda" and by.dtype == tl.int32:
        t, by = tl.broadcast(t, by)
        return tl.inline_asm_elementwise("mul.wide.s32 $0, $1, $2;", "=l,r,r", [t, by], tl.int64, True, 1)
    else:
        return t.to(tl.int64) * by


@triton.jit
def _first_row(t, starts, B):
    """How many rows lie before those of time t."""
    if starts is None:
        return wide_product(t, B)
    else:
        return tl.load(starts + t)


@triton.jit
def rows_known(step, earlier, tile, rows):
    """The rows with a state before a step: those that have the step before it; an initial state is there for all."""
    if rows.lengths is None:
        return tile.row_ok
    else:
        return tl.where(step > 0, earlier.here, tile.row_ok)


@triton.jit
def strided_tile(ptr, strided, now, tile, me, rows, AT_ONCE: tl.constexpr = False):
    """Pointers to a step's tile [units, rows] in a direction of a `Strided` that begins at `ptr`.

    A packed one has a single stride, from row to row. AT_ONCE: where the tile's pointers are all that the loop loads
    by, `wide_product` makes them. LSTM bf16 768 B=16, sm_90: forwards 1,148 issue cycles a step with it and 1,160
    without, backwards 1,488 and 1,469. Of one program's large tile every pointer is made anew then: GRU of 64 units,
    sm_80, 1,371 and 964.
    """
    if rows.starts is not None:
        start = now.first * strided.row
    elif AT_ONCE:
        start = wide_product(now.t, strided.time)
    else:
        start = now.t.to(tl.int64) * strided.time
    base = ptr + start + tile.batch0 * strided.row
    return at_tile(base, tile.row.to(tl.int64)[None, :] * strided.row + me.unit[:, None])


@triton.jit
def reset_rows(marks, now, tile, me, B):
    """Of the rows here, those whose state is the reset state before the step.

    A mark at t begins a segment: the reverse direction enters the segment before it, from t to t - 1.
    """
    at = now.t + me.reverse.to(tl.int32)
    mask = now.here & (at < tile.length)
    return tl.load(marks + wide_product(at, B) + tile.batch0 + tile.row, mask=mask, other=0) != 0


@triton.jit
def at_tile(base, offsets):
    """Pointers to a tile [units, rows], from a base pointer or one for each row."""
    if len(base.shape) == 0:
        return base + offsets
    else:
        return base[None, :] + offsets


@triton.jit
def choose(those, yes, no, COUNT: tl.constexpr):
    """Of two tuples of tiles [units, rows], the first for those rows and the other for the rest."""
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + (tl.where(those[None, :], yes[index], no[index]),)
    return tiles
