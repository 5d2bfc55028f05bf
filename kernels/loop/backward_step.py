"""One step backwards: what it reads, and the gradients around the functions of the cell (see `cell_math`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .forward_step import gate_values
from .tiles import add_all, add_to_first, load_each, load_gates, load_once
from .walk import at_tile, by_heads, choose, reset_rows, rows_known, strided_tile


class Reads(NamedTuple):
    """What a step backwards reads and no step backwards writes, so that it can be on its way long before. Made by
    keyword; () for what a call does not have."""

    left: Any  # the states that the step before left
    gates: Any  # v, or x and a that it is worked out from
    dy: Any  # the gradient of y: one tile
    reset: Any  # [BLOCK_B]: rows whose state is the reset state before the step


@triton.jit
def load_states_after(past, base, offsets, mask, STATES: tl.constexpr):
    """All states after one step, float32: h from y, the later ones from the tensors that a training run keeps."""
    h = tl.load(at_tile(past.y + base, offsets), mask=mask, other=0.0).to(tl.float32)
    if STATES == 1:
        return (h,)
    else:
        return (h,) + load_each(past.later, base, offsets, mask, STATES - 1)


@triton.jit
def _load_states_before(past, base, tile_start, offsets, at, mask, STATES: tl.constexpr):
    """All states before the step `at`: after the one that begins at `base`, or the initial ones before step 0."""
    if past.initial is None:
        return load_states_after(past, base, offsets, mask & (at > 0), STATES)
    else:
        tiles = ()
        for index in tl.static_range(STATES):
            sequence = past.y if index == 0 else past.later[index - 1]
            chosen = tl.where(at == 0, past.initial[index] + tile_start, sequence + base)
            tiles = tiles + (tl.load(at_tile(chosen, offsets), mask=mask, other=0.0).to(tl.float32),)
        return tiles


@triton.jit
def load_reads(
    at,  # the step, counted as the forward loop counts
    now,  # its Moment, and that of the step before it
    earlier,
    tile,
    me,
    past,
    gx,
    ga,
    dy,
    rows,
    resets,
    B,
    CELL: tl.constexpr,
    LOOP: tl.constexpr,
):
    HIDDEN: tl.constexpr = LOOP.HIDDEN
    WIDTH: tl.constexpr = LOOP.DIRECTIONS * HIDDEN
    mask = me.unit_ok[:, None] & now.here[None, :]
    tile_start = tile.batch0 * WIDTH + me.direction * HIDDEN
    start = tile_start + now.first * WIDTH
    offsets = tile.row[None, :] * WIDTH + me.unit[:, None]
    known = me.unit_ok[:, None] & rows_known(at, earlier, tile, rows)[None, :]
    left = _load_states_before(past, tile_start + earlier.first * WIDTH, tile_start, offsets, at, known, CELL.states)
    if LOOP.SAVED == 0:
        gates = ()
    elif past.saved is not None:
        saved_offsets = tile.row[None, :] * (WIDTH * LOOP.SAVED) + me.unit[:, None]
        gates = load_gates(at_tile(past.saved + start * LOOP.SAVED, saved_offsets), mask, LOOP.SAVED, HIDDEN, LOOP)
    else:
        GATES: tl.constexpr = CELL.gates
        gx_ptr = gx.ptr + me.direction.to(tl.int64) * gx.direction
        x = load_gates(strided_tile(gx_ptr, gx, now, tile, me, rows), mask, GATES, HIDDEN, LOOP)
        ga_start = me.direction.to(tl.int64) * ga.direction + (tile.batch0 + now.first) * (GATES * HIDDEN)
        ga_offsets = tile.row[None, :] * (GATES * HIDDEN) + by_heads(me, GATES, LOOP)[:, None]
        gates = x + load_gates(at_tile(ga.ptr + ga_start, ga_offsets), mask, GATES, LOOP.HEAD, LOOP)
    of_y = ()
    if dy.ptr is not None:
        dy_tile = strided_tile(dy.ptr + me.direction * HIDDEN, dy, now, tile, me, rows)
        of_y = (load_once(dy_tile, mask, LOOP).to(tl.float32),)
    reset = ()
    if resets.marks is not None:
        reset = reset_rows(resets.marks, now, tile, me, B)
    return Reads(left=left, gates=gates, dy=of_y, reset=reset)


@triton.jit
def begin_step(
    reads,
    d,  # gradients of the states after the step
    fresh,  # the reset state; None where nothing resets
    p,
    past,
    CELL: tl.constexpr,
    LOOP: tl.constexpr,
):
    """The states' gradients with those of y added, v, and the states before the step as the cell saw them."""
    GATES: tl.constexpr = CELL.gates
    before = reads.left
    if fresh is not None:
        before = choose(reads.reset, fresh, reads.left, CELL.states)
    v = reads.gates
    if LOOP.SAVED > 0 and past.saved is None:
        x = ()
        a = ()
        for gate in tl.static_range(GATES):
            x = x + (reads.gates[gate],)
            a = a + (reads.gates[CELL.gates + gate],)
        v = gate_values(x, a, before, p, CELL)
    if len(reads.dy) > 0:
        d = add_to_first(d, reads.dy[0], CELL.states)
    return d, v, before


@triton.jit
def inner_gate_gradients(d, v, before, after, p, CELL: tl.constexpr):
    if CELL.activation == "":
        return CELL.outer_gradients(d, v, before, after, p)
    else:
        ACTIVATION: tl.constexpr = CELL.activation
        RECURRENT: tl.constexpr = CELL.recurrent_activation
        return CELL.outer_gradients(d, v, before, after, p, ACTIVATION, RECURRENT)


@triton.jit
def gate_gradients(d, v, before, after, p, CELL: tl.constexpr):
    if CELL.activation == "":
        return CELL.gradients(d, v, before, after, p)
    else:
        ACTIVATION: tl.constexpr = CELL.activation
        RECURRENT: tl.constexpr = CELL.recurrent_activation
        return CELL.gradients(d, v, before, after, p, ACTIVATION, RECURRENT)


@triton.jit
def gate_gradients_with_inner(d, dq, v, before, after, p, CELL: tl.constexpr):
    if CELL.activation == "":
        return CELL.gradients(d, dq, v, before, after, p)
    else:
        ACTIVATION: tl.constexpr = CELL.activation
        RECURRENT: tl.constexpr = CELL.recurrent_activation
        return CELL.gradients(d, dq, v, before, after, p, ACTIVATION, RECURRENT)


@triton.jit
def split_by_zones(shares, d, STATES: tl.constexpr):
    """What of the states' gradients goes to the new values, and what past them to the old ones."""
    new = ()
    past = ()
    for index in tl.static_range(STATES):
        new = new + (d[index] * (1.0 - shares[index]),)
        past = past + (d[index] * shares[index],)
    return new, past


@triton.jit
def through_state(
    d,  # gradients of the states before the step, W_hh's share not yet among them
    d_h,  # W_hh's share, of h
    d_past,  # what zoneout sent past the step, or None
    d_after,  # gradients of the states after the step, for rows that do not have it
    now,
    rows,
    STATES: tl.constexpr,
):
    """All of the gradients of the states before the step."""
    d = add_to_first(d, d_h, STATES)
    if d_past is not None:
        d = add_all(d, d_past, STATES)
    if rows.lengths is not None:
        d = choose(now.here, d, d_after, STATES)
    return d
