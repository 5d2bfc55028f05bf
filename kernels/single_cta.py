"""The single-CTA regime: one program holds all of W_hh for its batch tile; nothing is exchanged."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    load_bias,
    load_gates,
    load_states,
    load_weights,
    multiply,
    of_direction,
    recurrent_gates,
    store_states,
    time_of,
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
    T,
    B,
    reverse_bits,  # bit d: direction d walks from T - 1 to 0
    STEP: tl.constexpr,
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    STATES: tl.constexpr,
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
    y_tile = y_ptr + tile_start
    stride_yt = tl.cast(B, tl.int64) * (DIRECTIONS * HIDDEN)

    x = load_gates(gx_tile + time_of(0, T, reverse) * stride_gxt + gx_offsets, mask, GATES, HIDDEN)
    for step in tl.range(T, disable_licm=True):
        # The next step's input travels while this step computes.
        ahead = tl.minimum(step + 1, T - 1)
        x_ahead = load_gates(gx_tile + time_of(ahead, T, reverse) * stride_gxt + gx_offsets, mask, GATES, HIDDEN)
        # Padding units are zeroed: an infinite h (relu) times a zero weight would make them NaN.
        h = tl.where(unit_ok[:, None], state[0], 0.0).to(weights[0].dtype)
        acc = multiply(weights, (h,), 1, PRECISION)
        state = STEP(x, recurrent_gates(acc, bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B), state)
        tl.store(y_tile + time_of(step, T, reverse) * stride_yt + tile_offsets, state[0], mask=mask)
        x = x_ahead
    final_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]
    store_states(final, final_offsets, state, mask, STATES)
