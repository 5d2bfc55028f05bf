"""The cooperative regime: a team of programs shares one batch tile and exchanges h_t every step.

Each program owns BLOCK_H hidden units and keeps their rows of W_hh on chip. Teams (one per
direction and group of batch tiles) run side by side and never wait for each other; a group's batch
tiles run one after the other. All programs must be resident at once: `launch` checks that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .exchange import gather, publish
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


@triton.jit(do_not_specialize=["T", "B", "reverse_bits", "num_groups", "spin_limit"])
def forward(
    gx_ptr,  # [D, T, B, GATES * HIDDEN] by strides: W_ih x + b_ih
    stride_gxd,
    stride_gxt,
    stride_gxb,
    w_hh,  # D pointers to [GATES * HIDDEN, HIDDEN]
    b_hh,  # D pointers to [GATES * HIDDEN], or None
    initial,  # STATES pointers to [B, D * HIDDEN], h_0 laid out as a step of y; None for zeros
    final,  # STATES pointers to [D, B, HIDDEN]
    y_ptr,  # [T, B, D * HIDDEN]; for "dataflow" filled with the sentinel
    arrivals_ptr,  # [D * num_groups, 32] int32, zero, a cache line a team ("barrier"; else None)
    status_ptr,  # [1] int32: 1 if a wait ran out
    T,
    B,
    reverse_bits,  # bit d: direction d walks from T - 1 to 0
    num_groups,  # teams per direction; a team visits batch tiles group, group + num_groups, ...
    spin_limit,  # polls a program spends on a wait before it gives up
    STEP: tl.constexpr,
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    STATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
    EXCHANGE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    MEMBERS: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    CHUNKS: tl.constexpr = (HIDDEN + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    member = pid % MEMBERS
    team = pid // MEMBERS
    direction = team // num_groups
    group = team % num_groups
    reverse = ((reverse_bits >> direction) & 1) == 1
    if EXCHANGE == "barrier":
        arrivals_ptr += team * 32

    unit = member * BLOCK_H + tl.arange(0, BLOCK_H)
    unit_ok = unit < HIDDEN
    w_ptr = of_direction(w_hh, direction, DIRECTIONS)
    weights = load_weights(w_ptr, member * BLOCK_H, GATES, PADDED_GATES, HIDDEN, BLOCK_H, BLOCK_K, PRECISION)
    bias = load_bias(b_hh, direction, unit, unit_ok, GATES, HIDDEN, DIRECTIONS)

    gx_ptr += direction.to(tl.int64) * stride_gxd
    row = tl.arange(0, BLOCK_B)
    gx_offsets = row.to(tl.int64)[None, :] * stride_gxb + unit[:, None]
    row_offsets = row * (DIRECTIONS * HIDDEN)
    tile_offsets = row_offsets[None, :] + unit[:, None]
    budget = spin_limit
    passed = 0  # steps of earlier batch tiles: the arrivals counter is never reset

    for tile in range(group, (B + BLOCK_B - 1) // BLOCK_B, num_groups):
        batch0 = tl.cast(tile, tl.int64) * BLOCK_B
        row_ok = batch0 + row < B
        mask = unit_ok[:, None] & row_ok[None, :]
        tile_start = batch0 * (DIRECTIONS * HIDDEN) + direction * HIDDEN
        state = load_states(initial, tile_start + tile_offsets, mask, STATES)
        gx_tile = gx_ptr + batch0 * stride_gxb
        y_tile = y_ptr + tile_start
        stride_yt = tl.cast(B, tl.int64) * (DIRECTIONS * HIDDEN)

        h_base = y_tile if initial is None else initial[0] + tile_start
        x = load_gates(gx_tile + time_of(0, T, reverse) * stride_gxt + gx_offsets, mask, GATES, HIDDEN)
        # Without disable_licm LLVM hoists the descriptors of every matrix instruction out of the loop, two
        # 64-bit registers each. LSTM bf16 H=768, "barrier", sm_90: 255 registers and a spill with it, 74 without.
        for step in tl.range(T, disable_licm=True):
            # The next step's input travels while this step waits for its neighbours.
            ahead = tl.minimum(step + 1, T - 1)
            x_ahead = load_gates(gx_tile + time_of(ahead, T, reverse) * stride_gxt + gx_offsets, mask, GATES, HIDDEN)
            follows = step > 0
            h, budget = gather(
                h_base,
                row_offsets,
                row_ok & ((initial is not None) | follows),
                follows,
                arrivals_ptr,
                (passed + step) * MEMBERS,
                budget,
                status_ptr,
                EXCHANGE,
                HIDDEN,
                BLOCK_K,
            )
            h_t = ()
            for chunk in tl.static_range(CHUNKS):
                h_t = h_t + (tl.trans(h[chunk]),)
            acc = multiply(weights, h_t, CHUNKS, PRECISION)
            acc = tl.where(budget > 0, acc, float("nan"))
            state = STEP(x, recurrent_gates(acc, bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B), state)
            h_base = y_tile + time_of(step, T, reverse) * stride_yt
            publish(h_base + tile_offsets, state[0], mask, arrivals_ptr, EXCHANGE)
            x = x_ahead
        final_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]
        store_states(final, final_offsets, state, mask, STATES)
        passed += T
