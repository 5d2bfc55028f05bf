"""The cooperative regime: a team of programs shares one batch tile and exchanges h_t every step.

Each program owns BLOCK_H hidden units and keeps their rows of W_hh on chip. Teams (one per
direction and group of batch tiles) run side by side and never wait for each other; a group's batch
tiles run one after the other. All programs must be resident at once: `launch` checks that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_step import load_sequence_states, step_backwards
from .exchange import gather_product, publish
from .tiles import (
    add_to_first,
    load_bias,
    load_gates,
    load_states,
    load_weights,
    load_weights_transposed,
    of_direction,
    recurrent_gates,
    store_gates,
    store_kept,
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
    kept,  # STATES - 1 pointers to [T, B, D * HIDDEN]: the later states of every step; None: not kept
    saved_ptr,  # [T, B, D * SAVED * HIDDEN]: v of every step; None: not saved
    arrivals_ptr,  # [D * num_groups, 32] int32, zero, a cache line a team ("barrier"; else None)
    status_ptr,  # [1] int32: 1 if a wait ran out
    T,
    B,
    reverse_bits,  # bit d: direction d walks from T - 1 to 0
    num_groups,  # teams per direction; a team visits batch tiles group, group + num_groups, ...
    spin_limit,  # polls a program spends on a wait before it gives up
    GATES_OF: tl.constexpr,
    UPDATE: tl.constexpr,
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
    EXCHANGE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    MEMBERS: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
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
    saved_offsets = row_offsets[None, :] * SAVED + unit[:, None]
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
            acc, budget = gather_product(
                weights,
                h_base,
                row_offsets,
                row_ok & ((initial is not None) | follows),
                follows,
                arrivals_ptr,
                (passed + step) * MEMBERS,
                budget,
                status_ptr,
                EXCHANGE,
                PRECISION,
                1,
                HIDDEN,
                BLOCK_B,
                BLOCK_K,
            )
            v = GATES_OF(x, recurrent_gates(acc, bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B))
            state = UPDATE(v, state)
            step_start = time_of(step, T, reverse) * stride_yt
            h_base = y_tile + step_start
            publish(h_base + tile_offsets, state, mask, arrivals_ptr, EXCHANGE, 1, HIDDEN)
            if kept is not None:
                store_kept(kept, tile_start + step_start + tile_offsets, state, mask, STATES)
            if saved_ptr is not None:
                saved_tile = saved_ptr + (tile_start + step_start) * SAVED
                store_gates(saved_tile + saved_offsets, v, mask, SAVED, HIDDEN)
            x = x_ahead
        final_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]
        store_states(final, final_offsets, state, mask, STATES)
        passed += T


@triton.jit(do_not_specialize=["T", "B", "reverse_bits", "num_groups", "spin_limit"])
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
    da_ptr,  # [T, B, D * GATES * HIDDEN]: written; for "dataflow" filled with the sentinel
    dx_ptr,  # as da_ptr, where the cell's gradients differ; else None
    arrivals_ptr,  # [D * num_groups, 32] int32, zero ("barrier"; else None)
    status_ptr,  # [1] int32: 1 if a wait ran out
    T,
    B,
    reverse_bits,  # bit d: direction d walked from T - 1 to 0 going forward
    num_groups,
    spin_limit,
    GATES_OF: tl.constexpr,
    GRADIENTS: tl.constexpr,
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
    EXCHANGE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The loop backwards: a program owns BLOCK_H units' columns of W_hh and publishes their da every step."""
    MEMBERS: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
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
    weights = load_weights_transposed(w_ptr, member * BLOCK_H, GATES, PADDED_GATES, HIDDEN, BLOCK_H, BLOCK_K, PRECISION)

    row = tl.arange(0, BLOCK_B)
    tile_offsets = row[None, :] * (DIRECTIONS * HIDDEN) + unit[:, None]
    gate_offsets = row[None, :] * (DIRECTIONS * GATES * HIDDEN) + unit[:, None]
    # The team's da of one step: PADDED_GATES rows of HIDDEN for every row of the batch tile, gate by gate.
    gate_of = tl.arange(0, PADDED_GATES * BLOCK_B) // BLOCK_B
    row_of = tl.arange(0, PADDED_GATES * BLOCK_B) % BLOCK_B
    gather_offsets = row_of * (DIRECTIONS * GATES * HIDDEN) + gate_of * HIDDEN
    budget = spin_limit
    passed = 0

    for tile in range(group, (B + BLOCK_B - 1) // BLOCK_B, num_groups):
        batch0 = tl.cast(tile, tl.int64) * BLOCK_B
        mask = unit_ok[:, None] & (batch0 + row < B)[None, :]
        gather_ok = (batch0 + row_of < B) & (gate_of < GATES)
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
            publish(da_ptr + start * GATES + gate_offsets, da, mask, arrivals_ptr, EXCHANGE, GATES, HIDDEN)
            if dx_ptr is not None:
                store_gates(dx_ptr + start * GATES + gate_offsets, dx, mask, GATES, HIDDEN)
            acc, budget = gather_product(
                weights,
                da_ptr + start * GATES,
                gather_offsets,
                gather_ok,
                True,
                arrivals_ptr,
                (passed + step + 1) * MEMBERS,
                budget,
                status_ptr,
                EXCHANGE,
                PRECISION,
                PADDED_GATES,
                HIDDEN,
                BLOCK_B,
                BLOCK_K,
            )
            if PADDED_GATES > 1:
                acc = tl.sum(acc, axis=0)
            d = add_to_first(d, acc, STATES)
            after = before
        store_states(d_initial, state_offsets, d, mask, STATES)
        passed += T
