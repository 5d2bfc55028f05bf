"""One step backwards, up to the product with W_hh: what both regimes' backward loops have in common."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import add_to_first, load_gates


@triton.jit
def load_sequence_states(y_ptr, kept, offsets, mask, STATES: tl.constexpr):
    """All states of one step, float32: h from y, the later ones from the tensors that a training run keeps."""
    tiles = (tl.load(y_ptr + offsets, mask=mask, other=0.0).to(tl.float32),)
    for index in tl.static_range(1, STATES):
        tiles = tiles + (tl.load(kept[index - 1] + offsets, mask=mask, other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def load_states_before(
    y_ptr, kept, initial, start, tile_start, stride_t, offsets, at, reverse, mask, STATES: tl.constexpr
):
    """All states before the step `at` (counted as the forward loop counts), which begins at `start`."""
    first = at == 0
    earlier = tl.where(first, start, start + tl.where(reverse, stride_t, -stride_t))
    if initial is None:
        tiles = load_sequence_states(y_ptr, kept, earlier + offsets, mask & (at > 0), STATES)
    else:
        tiles = ()
        for index in tl.static_range(STATES):
            sequence = y_ptr if index == 0 else kept[index - 1]
            base = tl.where(first, initial[index] + tile_start, sequence + earlier)
            tiles = tiles + (tl.load(base + offsets, mask=mask, other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def load_v(
    saved_ptr,
    saved_offsets,
    gx_ptr,
    gx_offsets,
    ga_ptr,
    ga_offsets,
    mask,
    GATES_OF: tl.constexpr,
    GATES: tl.constexpr,
    SAVED: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """v of one step: as saved, or again from both preactivations; nothing where the cell needs none."""
    if SAVED == 0:
        return ()
    elif saved_ptr is not None:
        return load_gates(saved_ptr + saved_offsets, mask, SAVED, HIDDEN)
    else:
        x = load_gates(gx_ptr + gx_offsets, mask, GATES, HIDDEN)
        return GATES_OF(x, load_gates(ga_ptr + ga_offsets, mask, GATES, HIDDEN))


@triton.jit
def step_backwards(
    d,  # gradients of the states after the step
    after,  # the states after the step
    at,  # the step, counted as the forward loop counts
    t,  # its time index, 64-bit
    direction,
    reverse,
    batch0,  # first row of the batch tile, 64-bit
    row,  # [BLOCK_B]
    unit,  # [BLOCK_H]
    mask,  # [BLOCK_H, BLOCK_B]
    T,
    B,
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
    GATES_OF: tl.constexpr,
    GRADIENTS: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """The gradients dx and da of the step's preactivations, the gradients of the states before it (without W_hh's
    share), and those states."""
    stride_t = tl.cast(B, tl.int64) * (DIRECTIONS * HIDDEN)
    tile_start = batch0 * (DIRECTIONS * HIDDEN) + direction * HIDDEN
    start = tile_start + t * stride_t
    offsets = row[None, :] * (DIRECTIONS * HIDDEN) + unit[:, None]
    rows = (batch0 + row)[None, :]
    before = load_states_before(y_ptr, kept, initial, start, tile_start, stride_t, offsets, at, reverse, mask, STATES)
    v = load_v(
        saved_ptr,
        start * SAVED + row[None, :] * (DIRECTIONS * SAVED * HIDDEN) + unit[:, None],
        gx_ptr,
        direction * stride_gxd + t * stride_gxt + rows * stride_gxb + unit[:, None],
        ga_ptr,
        ((direction * T + t) * B + rows) * (GATES * HIDDEN) + unit[:, None],
        mask,
        GATES_OF,
        GATES,
        SAVED,
        HIDDEN,
    )
    if dy_ptr is not None:
        dy_offsets = t * stride_dyt + rows * stride_dyb + direction * HIDDEN + unit[:, None]
        d = add_to_first(d, tl.load(dy_ptr + dy_offsets, mask=mask, other=0.0).to(tl.float32), STATES)
    dx, da, d = GRADIENTS(d, v, before, after)
    return dx, da, d, before
