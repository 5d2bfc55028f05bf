"""The single-CTA regime: one program holds all of W_hh for its batch tile; nothing is exchanged."""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_step import load_sequence_states, step_backwards
from .tiles import (
    add_product,
    add_to_first,
    load_bias,
    load_gate_blocks,
    load_gates,
    load_states,
    load_weights,
    of_direction,
    recurrent_gates,
    store_gates,
    store_kept,
    store_states,
    time_of,
    total,
    zero_sums,
)


@triton.jit(do_not_specialize=["T", "B", "reverse_bits"])
def forward(
    gx_ptr,  # [D, T, B, GATES * HIDDEN] by strides: W_ih x + b_ih
    stride_gxd,
    stride_gxt,
    stride_gxb,
    w_hh,  # D pointers to [GATES * HIDDEN, HIDDEN]
    b_hh,  # D pointers to [GATES * HIDDEN], or None
    initial,  # STATES pointers to [B, D * HIDDEN], as in the cooperative regime; None for zeros
    final,  # STATES pointers to [D, B, HIDDEN]
    y_ptr,  # [T, B, D * HIDDEN]
    kept,  # STATES - 1 pointers to [T, B, D * HIDDEN]: the later states of every step; None: not kept
    saved_ptr,  # [T, B, D * SAVED * HIDDEN]: v of every step; None: not saved
    T,
    B,
    reverse_bits,  # bit d: direction d walks from T - 1 to 0
    GATES_OF: tl.constexpr,
    UPDATE: tl.constexpr,
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    tiles = (B + BLOCK_B - 1) // BLOCK_B
    direction = tl.program_id(0) // tiles
    batch0 = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_B
    reverse = ((reverse_bits >> direction) & 1) == 1

    unit = tl.arange(0, BLOCK_H)
    unit_ok = unit < HIDDEN
    w_ptr = of_direction(w_hh, direction, DIRECTIONS)
    weights = load_weights(w_ptr, 0, GATES, PADDED_GATES, HIDDEN, BLOCK_H, BLOCK_H, PRECISION)
    bias = load_bias(b_hh, direction, unit, unit_ok, GATES, HIDDEN, DIRECTIONS)

    row = tl.arange(0, BLOCK_B)
    row_ok = batch0 + row < B
    mask = unit_ok[:, None] & row_ok[None, :]
    tile_start = batch0 * (DIRECTIONS * HIDDEN) + direction * HIDDEN
    tile_offsets = row[None, :] * (DIRECTIONS * HIDDEN) + unit[:, None]
    state = load_states(initial, tile_start + tile_offsets, mask, STATES)
    gx_tile = gx_ptr + direction.to(tl.int64) * stride_gxd + batch0 * stride_gxb
    gx_offsets = row.to(tl.int64)[None, :] * stride_gxb + unit[:, None]
    stride_yt = tl.cast(B, tl.int64) * (DIRECTIONS * HIDDEN)

    x = load_gates(gx_tile + time_of(0, T, reverse) * stride_gxt + gx_offsets, mask, GATES, HIDDEN)
    for step in tl.range(T, disable_licm=True):
        # The next step's input travels while this step computes.
        ahead = tl.minimum(step + 1, T - 1)
        x_ahead = load_gates(gx_tile + time_of(ahead, T, reverse) * stride_gxt + gx_offsets, mask, GATES, HIDDEN)
        # Padding units are zeroed: an infinite h (relu) times a zero weight would make them NaN.
        h = tl.where(unit_ok[:, None], state[0], 0.0).to(weights[0].dtype)
        acc = total(add_product(zero_sums(weights, BLOCK_B, PRECISION), weights, 0, h, 1, PRECISION), PRECISION)
        v = GATES_OF(x, recurrent_gates(acc, bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B))
        state = UPDATE(v, state)
        step_start = tile_start + time_of(step, T, reverse) * stride_yt
        tl.store(y_ptr + step_start + tile_offsets, state[0], mask=mask)
        if kept is not None:
            store_kept(kept, step_start + tile_offsets, state, mask, STATES)
        if saved_ptr is not None:
            saved_offsets = row[None, :] * (DIRECTIONS * SAVED * HIDDEN) + unit[:, None]
            store_gates(saved_ptr + step_start * SAVED + saved_offsets, v, mask, SAVED, HIDDEN)
        x = x_ahead
    final_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]
    store_states(final, final_offsets, state, mask, STATES)


@triton.jit(do_not_specialize=["T", "B", "reverse_bits"])
def backward(
    dy_ptr,  # [T, B, D * HIDDEN] by strides, the last contiguous; None: no gradient of y
    stride_dyt,
    stride_dyb,
    d_final,  # STATES pointers to [D, B, HIDDEN]; None: no gradient of the final states
    d_initial,  # STATES pointers to [D, B, HIDDEN]: written
    w_hh,  # D pointers to [GATES * HIDDEN, HIDDEN]
    initial,  # STATES pointers to [B, D * HIDDEN]; None for zeros
    y_ptr,  # [T, B, D * HIDDEN]
    kept,  # STATES - 1 pointers to [T, B, D * HIDDEN]; None where STATES is 1
    saved_ptr,  # [T, B, D * SAVED * HIDDEN]: v as the forward loop saved it; None: from gx and ga
    gx_ptr,  # [D, T, B, GATES * HIDDEN] by strides: W_ih x + b_ih; None where saved
    stride_gxd,
    stride_gxt,
    stride_gxb,
    ga_ptr,  # [D, T, B, GATES * HIDDEN], contiguous: W_hh h + b_hh; None where saved
    da_ptr,  # [T, B, D * GATES * HIDDEN]: written
    dx_ptr,  # as da_ptr, where the cell's gradients differ; else None
    T,
    B,
    reverse_bits,  # bit d: direction d walked from T - 1 to 0 going forward
    GATES_OF: tl.constexpr,
    GRADIENTS: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The loop backwards; W^T da is one dot per gate, each with that gate's own resident block of W_hh."""
    tiles = (B + BLOCK_B - 1) // BLOCK_B
    direction = tl.program_id(0) // tiles
    batch0 = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_B
    reverse = ((reverse_bits >> direction) & 1) == 1

    unit = tl.arange(0, BLOCK_H)
    w_ptr = of_direction(w_hh, direction, DIRECTIONS)
    weights = load_gate_blocks(w_ptr, GATES, HIDDEN, BLOCK_H, PRECISION)

    row = tl.arange(0, BLOCK_B)
    mask = (unit < HIDDEN)[:, None] & (batch0 + row < B)[None, :]
    tile_offsets = row[None, :] * (DIRECTIONS * HIDDEN) + unit[:, None]
    gate_offsets = row[None, :] * (DIRECTIONS * GATES * HIDDEN) + unit[:, None]
    stride_t = tl.cast(B, tl.int64) * (DIRECTIONS * HIDDEN)
    tile_start = batch0 * (DIRECTIONS * HIDDEN) + direction * HIDDEN
    state_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]

    d = load_states(d_final, state_offsets, mask, STATES)
    last = time_of(T - 1, T, reverse)
    after = load_sequence_states(y_ptr, kept, tile_start + last * stride_t + tile_offsets, mask, STATES)
    for step in tl.range(T, disable_licm=True):
        at = T - 1 - step
        t = time_of(at, T, reverse)
        start = tile_start + t * stride_t
        dx, da, d, before = step_backwards(
            d,
            after,
            at,
            t,
            direction,
            reverse,
            batch0,
            row,
            unit,
            mask,
            T,
            B,
            dy_ptr,
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
            GATES_OF,
            GRADIENTS,
            GATES,
            STATES,
            SAVED,
            HIDDEN,
            DIRECTIONS,
        )
        store_gates(da_ptr + start * GATES + gate_offsets, da, mask, GATES, HIDDEN)
        if dx_ptr is not None:
            store_gates(dx_ptr + start * GATES + gate_offsets, dx, mask, GATES, HIDDEN)
        sums = zero_sums(weights, BLOCK_B, PRECISION)
        for gate in tl.static_range(GATES):
            # Padding units are zeroed: an infinite gradient times a zero weight would make them NaN.
            operand = tl.where(mask, da[gate], 0.0).to(weights[0].dtype)
            sums = add_product(sums, weights, gate, operand, GATES, PRECISION)
        d = add_to_first(d, total(sums, PRECISION), STATES)
        after = before
    store_states(d_initial, state_offsets, d, mask, STATES)
