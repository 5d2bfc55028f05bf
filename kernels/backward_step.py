"""One step backwards, up to the products with W_hh: what both regimes' backward loops have in common."""

from __future__ import annotations

import triton
import triton.language as tl

from .forward_step import gate_values
from .tiles import add_all, add_to_first, load_gates
from .walk import at_tile, choose, strided_start


@triton.jit
def load_sequence_states(y_ptr, kept, base, offsets, mask, STATES: tl.constexpr):
    """All states of one step, float32: h from y, the later ones from the tensors that a training run keeps."""
    tiles = (tl.load(at_tile(y_ptr + base, offsets), mask=mask, other=0.0).to(tl.float32),)
    for index in tl.static_range(1, STATES):
        tiles = tiles + (tl.load(at_tile(kept[index - 1] + base, offsets), mask=mask, other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def load_states_before(y_ptr, kept, initial, base, tile_start, offsets, at, mask, STATES: tl.constexpr):
    """All states before the step `at`, of the step that begins at `base`, or the initial ones before step 0."""
    if initial is None:
        return load_sequence_states(y_ptr, kept, base, offsets, mask & (at > 0), STATES)
    else:
        tiles = ()
        for index in tl.static_range(STATES):
            sequence = y_ptr if index == 0 else kept[index - 1]
            chosen = tl.where(at == 0, initial[index] + tile_start, sequence + base)
            tiles = tiles + (tl.load(at_tile(chosen, offsets), mask=mask, other=0.0).to(tl.float32),)
        return tiles


@triton.jit
def load_inputs(
    at,  # the step, counted as the forward loop counts
    t,  # its time, and the number of rows before it
    first,
    base,  # where the step begins in tensors as y, and where the step before it does
    base_earlier,
    direction,
    batch0,  # first row of the batch tile, 64-bit
    tile_start,
    row,  # [BLOCK_B]
    unit,  # [BLOCK_H]
    mask,  # [BLOCK_H, BLOCK_B]: rows that have the step
    mask_earlier,  # rows that have the step before it, or an initial state instead
    dy_ptr,  # this and the following as the backward loops have them
    stride_dyt,
    stride_dyb,
    initial,
    y_ptr,
    kept,
    saved_ptr,
    gx_ptr,
    stride_gxd,
    stride_gxt,
    stride_gxb,
    ga_ptr,
    stride_gad,
    starts_ptr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """What a step backwards reads and no step backwards writes, so that it can be on its way long before: the states
    that the step before left; v, or x and a that it is worked out from; the gradient of y, if there is one."""
    rows = row.to(tl.int64)[None, :]
    offsets = row[None, :] * (DIRECTIONS * HIDDEN) + unit[:, None]
    left = load_states_before(y_ptr, kept, initial, base_earlier, tile_start, offsets, at, mask_earlier, STATES)
    if SAVED == 0:
        values = ()
    elif saved_ptr is not None:
        saved_offsets = row[None, :] * (DIRECTIONS * SAVED * HIDDEN) + unit[:, None]
        values = load_gates(at_tile(saved_ptr + base * SAVED, saved_offsets), mask, SAVED, HIDDEN)
    else:
        gx_start = strided_start(t, first, stride_gxt, stride_gxb, starts_ptr) + batch0 * stride_gxb
        gx_tile = at_tile(gx_ptr + direction.to(tl.int64) * stride_gxd + gx_start, rows * stride_gxb + unit[:, None])
        ga_start = direction.to(tl.int64) * stride_gad + (batch0 + first) * (GATES * HIDDEN)
        ga_tile = at_tile(ga_ptr + ga_start, row[None, :] * (GATES * HIDDEN) + unit[:, None])
        values = load_gates(gx_tile, mask, GATES, HIDDEN) + load_gates(ga_tile, mask, GATES, HIDDEN)
    dy = ()
    if dy_ptr is not None:
        dy_start = strided_start(t, first, stride_dyt, stride_dyb, starts_ptr) + batch0 * stride_dyb
        dy_tile = at_tile(dy_ptr + direction * HIDDEN + dy_start, rows * stride_dyb + unit[:, None])
        dy = (tl.load(dy_tile, mask=mask, other=0.0).to(tl.float32),)
    return left, values, dy


@triton.jit
def begin_step(
    inputs,  # as `load_inputs` returns them
    d,  # gradients of the states after the step
    fresh,  # the reset state, and the rows that had it before the step; None where nothing resets
    reset,
    p,
    saved_ptr,
    GATES_OF: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RECURRENT: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
):
    """The states' gradients with those of y added, v, and the states before the step as the cell saw them."""
    left, values, dy = inputs
    before = left
    if fresh is not None:
        before = choose(reset, fresh, left, STATES)
    v = values
    if SAVED > 0 and saved_ptr is None:
        x = ()
        a = ()
        for gate in tl.static_range(GATES):
            x = x + (values[gate],)
            a = a + (values[GATES + gate],)
        v = gate_values(x, a, before, p, GATES_OF, ACTIVATION, RECURRENT)
    if len(dy) > 0:
        d = add_to_first(d, dy[0], STATES)
    return d, v, before


@triton.jit
def inner_gate_gradients(
    d, v, before, after, p, OUTER_GRADIENTS: tl.constexpr, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr
):
    if ACTIVATION == "":
        return OUTER_GRADIENTS(d, v, before, after, p)
    else:
        return OUTER_GRADIENTS(d, v, before, after, p, ACTIVATION, RECURRENT)


@triton.jit
def gate_gradients(d, v, before, after, p, GRADIENTS: tl.constexpr, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    if ACTIVATION == "":
        return GRADIENTS(d, v, before, after, p)
    else:
        return GRADIENTS(d, v, before, after, p, ACTIVATION, RECURRENT)


@triton.jit
def gate_gradients_with_inner(
    d, dq, v, before, after, p, GRADIENTS: tl.constexpr, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr
):
    if ACTIVATION == "":
        return GRADIENTS(d, dq, v, before, after, p)
    else:
        return GRADIENTS(d, dq, v, before, after, p, ACTIVATION, RECURRENT)


@triton.jit
def split_by_zones(zones, d, STATES: tl.constexpr):
    """What of the states' gradients goes to the new values, and what past them to the old ones."""
    new = ()
    past = ()
    for index in tl.static_range(STATES):
        new = new + (d[index] * (1.0 - zones[index]),)
        past = past + (d[index] * zones[index],)
    return new, past


@triton.jit
def through_state(
    d,  # gradients of the states before the step, W_hh's share not yet among them
    d_h,  # W_hh's share, of h
    d_past,  # what zoneout sent past the step, or None
    d_after,  # gradients of the states after the step, for rows that do not have it
    active,
    lengths_ptr,
    STATES: tl.constexpr,
):
    """All of the gradients of the states before the step."""
    d = add_to_first(d, d_h, STATES)
    if d_past is not None:
        d = add_all(d, d_past, STATES)
    if lengths_ptr is not None:
        d = choose(active, d, d_after, STATES)
    return d
