"""The cooperative regime: a team of programs shares one batch tile and exchanges h_t every step.

Each program owns BLOCK_H hidden units and keeps their rows of W_hh on chip. Teams (one per
direction and group of batch tiles) run side by side and never wait for each other; a group's batch
tiles run one after the other. All programs must be resident at once: `launch` checks that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_step import (
    begin_step,
    gate_gradients,
    gate_gradients_with_inner,
    inner_gate_gradients,
    load_inputs,
    load_sequence_states,
    split_by_zones,
    through_state,
)
from .exchange import gather_product, publish
from .forward_step import gate_values, inner_tile, load_zones, next_state, outer_then_inner, updated
from .split_k import columns_of_part, sum_of_parts
from .tiles import (
    add_all,
    add_masked,
    load_bias,
    load_factors,
    load_gates,
    load_parameters,
    load_states,
    load_weights,
    load_weights_transposed,
    of_direction,
    recurrent_gates,
    store_gates,
    store_kept,
    store_row_sums,
    store_states,
    zeros_like_all,
)
from .walk import (
    active_rows,
    at_tile,
    choose,
    first_row,
    lengths_of,
    place,
    reset_rows,
    rows_known,
    strided_start,
    time_of,
)


@triton.jit(do_not_specialize=["T", "B", "reverse_bits", "num_groups", "spin_limit"])
def forward(
    gx_ptr,  # [D, T, B, GATES * HIDDEN] by strides: W_ih x + b_ih; packed: [D, rows, GATES * HIDDEN]
    stride_gxd,
    stride_gxt,
    stride_gxb,
    w_hh,  # D pointers to [GATES * HIDDEN, HIDDEN]
    b_hh,  # D pointers to [GATES * HIDDEN], or None
    parameters,  # D pointers to [PARAMETERS, HIDDEN]; None where the cell has none
    initial,  # STATES pointers to [B, D * HIDDEN], h_0 laid out as a step of y; None for zeros
    final,  # STATES pointers to [D, B, HIDDEN]
    y_ptr,  # [T, B, D * HIDDEN], packed: [rows, D * HIDDEN]; what the team exchanges unless `sent_ptr` is given
    kept,  # STATES - 1 pointers to tensors as y: the later states of every step; None: not kept
    saved_ptr,  # as y, SAVED * HIDDEN wide for each direction: v of every step; None: not saved
    inner_ptr,  # as y: what the second product of a step multiplies; None for cells with one
    lengths_ptr,  # [B] int32: steps of each row; None: all have T. What lies past them in y and kept is not touched
    starts_ptr,  # [T] int64: rows before those of each time, for a packed sequence; None: t * B
    resets_ptr,  # [T, B] uint8: before these steps the state is the reset state; None: never
    reset_state,  # STATES pointers as initial; None for zeros
    dropout_ptr,  # [B, D * HIDDEN]: factors of h on its way into W_hh; None: ones
    sent_ptr,  # as y: h times those factors, which is then what the team exchanges; None without factors
    sent_initial_ptr,  # as initial: h_0 times the factors; None without factors or h_0
    sent_reset_ptr,  # as initial: the reset state's h times the factors, never the sentinel; None for zeros
    zones,  # STATES pointers: shares of the old state that a step keeps; None: zeros
    stride_zone_row,  # from row to row of zones, and from unit to unit: D * HIDDEN and 1, or 0 and 0
    stride_zone_unit,
    arrivals_ptr,  # [D * num_groups, 32] int32, zero, a cache line a team ("barrier"; else None)
    status_ptr,  # [1] int32: 1 if a wait ran out
    T,
    B,
    reverse_bits,  # bit d: direction d walks from its end to 0
    num_groups,  # teams per direction; a team visits batch tiles group, group + num_groups, ...
    spin_limit,  # polls a program spends on a wait before it gives up
    GATES_OF: tl.constexpr,
    UPDATE: tl.constexpr,
    INNER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RECURRENT: tl.constexpr,
    GATES: tl.constexpr,
    OUTER_GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    PARAMETERS: tl.constexpr,
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
    WIDTH: tl.constexpr = DIRECTIONS * HIDDEN
    PRODUCTS: tl.constexpr = 1 if INNER is None else 2
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
    p = load_parameters(parameters, direction, unit, unit_ok, PARAMETERS, HIDDEN, DIRECTIONS)

    gx_ptr += direction.to(tl.int64) * stride_gxd
    row = tl.arange(0, BLOCK_B)
    gx_offsets = row.to(tl.int64)[None, :] * stride_gxb + unit[:, None]
    row_offsets = row * WIDTH
    tile_offsets = row_offsets[None, :] + unit[:, None]
    saved_offsets = row_offsets[None, :] * SAVED + unit[:, None]
    budget = spin_limit
    passed = 0  # steps of earlier batch tiles: the arrivals counter is never reset

    for tile in range(group, (B + BLOCK_B - 1) // BLOCK_B, num_groups):
        batch0 = tl.cast(tile, tl.int64) * BLOCK_B
        row_ok = batch0 + row < B
        length, steps = lengths_of(lengths_ptr, batch0 + row, row_ok, T)
        mask = unit_ok[:, None] & row_ok[None, :]
        tile_start = batch0 * WIDTH + direction * HIDDEN
        state = load_states(initial, tile_start + tile_offsets, mask, STATES)
        factors = None
        if dropout_ptr is not None:
            factors = load_factors(dropout_ptr, tile_start + tile_offsets, mask)
        if resets_ptr is not None:
            fresh = load_states(reset_state, tile_start + tile_offsets, mask, STATES)
        gx_tile = gx_ptr + batch0 * stride_gxb
        sent_tile = (y_ptr if sent_ptr is None else sent_ptr) + tile_start

        t = time_of(0, length, reverse, lengths_ptr)
        first = first_row(t, starts_ptr, B)
        here = active_rows(0, length, row_ok, lengths_ptr)
        gx_start = strided_start(t, first, stride_gxt, stride_gxb, starts_ptr)
        x = load_gates(at_tile(gx_tile + gx_start, gx_offsets), unit_ok[:, None] & here[None, :], GATES, HIDDEN)
        if resets_ptr is not None:
            reset = reset_rows(resets_ptr, t, length, batch0 + row, here, B, reverse)
        # `first * 0` makes this one pointer for each row where the steps' are.
        h_base = sent_tile + first * 0
        if initial is not None:
            h_base = (initial[0] if sent_initial_ptr is None else sent_initial_ptr) + tile_start + first * 0
        # Without disable_licm LLVM hoists the descriptors of every matrix instruction out of the loop, two
        # 64-bit registers each. LSTM bf16 H=768, "barrier", sm_90: 255 registers and a spill with it, 74 without.
        for step in tl.range(steps, disable_licm=True):
            # The next step's input travels while this step waits for its neighbours.
            ahead = tl.minimum(step + 1, steps - 1)
            t_ahead = time_of(ahead, length, reverse, lengths_ptr)
            first_ahead = first_row(t_ahead, starts_ptr, B)
            here_ahead = active_rows(ahead, length, row_ok, lengths_ptr)
            gx_start = strided_start(t_ahead, first_ahead, stride_gxt, stride_gxb, starts_ptr)
            mask_ahead = unit_ok[:, None] & here_ahead[None, :]
            x_ahead = load_gates(at_tile(gx_tile + gx_start, gx_offsets), mask_ahead, GATES, HIDDEN)
            follows = step > 0
            readable = here & ((initial is not None) | follows)
            source = h_base
            if resets_ptr is not None:
                reset_ahead = reset_rows(resets_ptr, t_ahead, length, batch0 + row, here_ahead, B, reverse)
                state = choose(reset, fresh, state, STATES)
                if reset_state is None:
                    readable = readable & (reset == 0)
                else:
                    readable = readable | reset
                    source = tl.where(reset, sent_reset_ptr + tile_start, h_base)
            acc, budget = gather_product(
                weights,
                source,
                row_offsets,
                readable,
                None,
                HIDDEN,
                follows,
                arrivals_ptr,
                (passed + step) * (MEMBERS * PRODUCTS),
                budget,
                status_ptr,
                EXCHANGE,
                PRECISION,
                CHUNKS,
                HIDDEN,
                BLOCK_B,
                BLOCK_K,
            )
            a = recurrent_gates(acc, bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B)
            mask_here = unit_ok[:, None] & here[None, :]
            step_start = first * WIDTH
            if INNER is not None:
                q = inner_tile(x, a, state, p, INNER, ACTIVATION, RECURRENT)
                q = q if factors is None else q * factors
                inner_base = inner_ptr + tile_start + step_start
                publish(at_tile(inner_base, tile_offsets), (q,), mask_here, arrivals_ptr, EXCHANGE, 1, HIDDEN)
                acc, budget = gather_product(
                    weights,
                    inner_base,
                    row_offsets,
                    here,
                    None,
                    HIDDEN,
                    True,
                    arrivals_ptr,
                    (passed + step) * (MEMBERS * PRODUCTS) + MEMBERS,
                    budget,
                    status_ptr,
                    EXCHANGE,
                    PRECISION,
                    CHUNKS,
                    HIDDEN,
                    BLOCK_B,
                    BLOCK_K,
                )
                inner = recurrent_gates(acc, bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B)
                a = outer_then_inner(a, inner, OUTER_GATES, GATES)
            v = gate_values(x, a, state, p, GATES_OF, ACTIVATION, RECURRENT)
            shares = None
            if zones is not None:
                zone_start = (first + batch0) * stride_zone_row + direction.to(tl.int64) * HIDDEN * stride_zone_unit
                zone_offsets = row[None, :] * stride_zone_row + unit[:, None] * stride_zone_unit
                shares = load_zones(zones, zone_start, zone_offsets, mask_here, STATES)
            state = next_state(v, state, p, shares, here, lengths_ptr, UPDATE, ACTIVATION, RECURRENT, STATES)
            h_base = sent_tile + step_start
            sent = (state[0] if factors is None else state[0] * factors,)
            publish(at_tile(h_base, tile_offsets), sent, mask_here, arrivals_ptr, EXCHANGE, 1, HIDDEN)
            if sent_ptr is not None:
                tl.store(at_tile(y_ptr + tile_start + step_start, tile_offsets), state[0], mask=mask_here)
            if kept is not None:
                store_kept(kept, tile_start + step_start, tile_offsets, state, mask_here, STATES)
            if saved_ptr is not None:
                saved_tile = at_tile(saved_ptr + (tile_start + step_start) * SAVED, saved_offsets)
                store_gates(saved_tile, v, mask_here, SAVED, HIDDEN)
            x = x_ahead
            first = first_ahead
            here = here_ahead
            if resets_ptr is not None:
                reset = reset_ahead
        final_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]
        store_states(final, final_offsets, state, mask, STATES)
        passed += steps


@triton.jit(do_not_specialize=["T", "B", "reverse_bits", "num_groups", "spin_limit"])
def backward(
    dy_ptr,  # as y, by strides, the last contiguous; None: no gradient of y
    stride_dyt,
    stride_dyb,
    d_final,  # STATES pointers to [D, B, HIDDEN]; None: no gradient of the final states
    d_initial,  # STATES pointers to [D, B, HIDDEN]: written
    d_reset,  # STATES pointers to [D, B, HIDDEN]: written; None: nobody asks for the reset state's gradient
    d_parameters_ptr,  # [batch tiles, D, PARAMETERS, HIDDEN] float32: written; None where the cell has none
    w_hh,  # D pointers to [GATES * HIDDEN, HIDDEN]
    parameters,  # this and what is not described here: as for `forward`
    initial,
    y_ptr,  # [T, B, D * HIDDEN], packed: [rows, D * HIDDEN]
    kept,  # None where STATES is 1
    saved_ptr,  # v as the forward loop saved it; None: from gx and ga
    gx_ptr,  # None where saved
    stride_gxd,
    stride_gxt,
    stride_gxb,
    ga_ptr,  # [D, T, B, GATES * HIDDEN], packed: [D, rows, GATES * HIDDEN]: W_hh h + b_hh; None where saved
    stride_gad,
    da_ptr,  # as y, GATES * HIDDEN wide for each direction: written; for "dataflow" filled with the sentinel
    dx_ptr,  # as da_ptr, where the cell's gradients differ; else None
    lengths_ptr,
    starts_ptr,
    resets_ptr,
    reset_state,
    dropout_ptr,
    zones,
    stride_zone_row,
    stride_zone_unit,
    partial_ptr,  # [D * num_groups, unit blocks, 2, SPLIT_K, BLOCK_B, SPLIT_K * BLOCK_H] int32, all ones; None for 1
    arrivals_ptr,
    status_ptr,
    T,
    B,
    reverse_bits,  # bit d: direction d walked from its end to 0 going forward
    num_groups,
    spin_limit,
    GATES_OF: tl.constexpr,
    UPDATE: tl.constexpr,
    GRADIENTS: tl.constexpr,
    OUTER_GRADIENTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RECURRENT: tl.constexpr,
    GATES: tl.constexpr,
    OUTER_GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    PARAMETERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
    EXCHANGE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The loop backwards: a program publishes the da of its own BLOCK_H units every step.

    SPLIT_K programs share the columns of W_hh of all their units: each keeps PART of those columns' rows, multiplies
    them with the same part of the team's da, and they sum up.
    """
    MEMBERS: tl.constexpr = (HIDDEN + SPLIT_K * BLOCK_H - 1) // (SPLIT_K * BLOCK_H) * SPLIT_K
    CHUNKS: tl.constexpr = (PART + BLOCK_K - 1) // BLOCK_K
    ARRIVALS: tl.constexpr = MEMBERS * (1 if SPLIT_K == 1 else 2)  # of one product
    WIDTH: tl.constexpr = DIRECTIONS * HIDDEN
    PRODUCTS: tl.constexpr = 1 if OUTER_GRADIENTS is None else 2
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
    part = member % SPLIT_K
    if partial_ptr is not None:
        partial_ptr += (team * MEMBERS + member - part) * (2 * BLOCK_B * SPLIT_K * BLOCK_H)
    w_ptr = of_direction(w_hh, direction, DIRECTIONS)
    weights = load_weights_transposed(
        w_ptr, (member - part) * BLOCK_H, part, SPLIT_K * BLOCK_H, PART, GATES, HIDDEN, BLOCK_K, PRECISION
    )
    p = load_parameters(parameters, direction, unit, unit_ok, PARAMETERS, HIDDEN, DIRECTIONS)

    row = tl.arange(0, BLOCK_B)
    tile_offsets = row[None, :] * WIDTH + unit[:, None]
    gate_offsets = row[None, :] * (GATES * WIDTH) + unit[:, None]
    row_offsets = row * (GATES * WIDTH)
    columns = columns_of_part(GATES * HIDDEN, part, PART, HIDDEN)
    budget = spin_limit
    passed = 0

    for tile in range(group, (B + BLOCK_B - 1) // BLOCK_B, num_groups):
        batch0 = tl.cast(tile, tl.int64) * BLOCK_B
        row_ok = batch0 + row < B
        length, steps = lengths_of(lengths_ptr, batch0 + row, row_ok, T)
        mask = unit_ok[:, None] & row_ok[None, :]
        tile_start = batch0 * WIDTH + direction * HIDDEN
        state_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]
        factors = None
        if dropout_ptr is not None:
            factors = load_factors(dropout_ptr, tile_start + tile_offsets, mask)

        d = load_states(d_final, state_offsets, mask, STATES)
        fresh = None
        if resets_ptr is not None:
            fresh = load_states(reset_state, tile_start + tile_offsets, mask, STATES)
            if d_reset is not None:
                of_reset = zeros_like_all(d, STATES)
        if PARAMETERS > 0:
            of_parameters = load_states(None, 0, mask, PARAMETERS)
        t, first, here = place(steps - 1, length, row_ok, reverse, lengths_ptr, starts_ptr, B)
        t_earlier, first_earlier, here_earlier = place(steps - 2, length, row_ok, reverse, lengths_ptr, starts_ptr, B)
        mask_here = unit_ok[:, None] & here[None, :]
        after = load_sequence_states(y_ptr, kept, tile_start + first * WIDTH, tile_offsets, mask_here, STATES)
        known = rows_known(steps - 1, here_earlier, row_ok, lengths_ptr)
        inputs = load_inputs(
            steps - 1,
            t,
            first,
            tile_start + first * WIDTH,
            tile_start + first_earlier * WIDTH,
            direction,
            batch0,
            tile_start,
            row,
            unit,
            mask_here,
            unit_ok[:, None] & known[None, :],
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
            stride_gad,
            starts_ptr,
            GATES,
            STATES,
            SAVED,
            HIDDEN,
            DIRECTIONS,
        )
        reset = None
        if resets_ptr is not None:
            reset = reset_rows(resets_ptr, t, length, batch0 + row, here, B, reverse)
        for step in tl.range(steps, disable_licm=True):
            at = steps - 1 - step
            # What the next step backwards reads travels while this one waits: device memory is a step away.
            t_beyond, first_beyond, here_beyond = place(at - 2, length, row_ok, reverse, lengths_ptr, starts_ptr, B)
            ahead = tl.maximum(at - 1, 0)
            known = rows_known(ahead, here_beyond, row_ok, lengths_ptr)
            inputs_ahead = load_inputs(
                ahead,
                t_earlier,
                first_earlier,
                tile_start + first_earlier * WIDTH,
                tile_start + first_beyond * WIDTH,
                direction,
                batch0,
                tile_start,
                row,
                unit,
                unit_ok[:, None] & here_earlier[None, :],
                unit_ok[:, None] & known[None, :],
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
                stride_gad,
                starts_ptr,
                GATES,
                STATES,
                SAVED,
                HIDDEN,
                DIRECTIONS,
            )
            if resets_ptr is not None:
                reset_ahead = reset_rows(resets_ptr, t_earlier, length, batch0 + row, here_earlier, B, reverse)
            mask_here = unit_ok[:, None] & here[None, :]
            start = tile_start + first * WIDTH
            d_after = d
            d, v, before = begin_step(
                inputs, d, fresh, reset, p, saved_ptr, GATES_OF, ACTIVATION, RECURRENT, GATES, STATES, SAVED
            )
            d_past = None
            if zones is not None:
                zone_start = (first + batch0) * stride_zone_row + direction.to(tl.int64) * HIDDEN * stride_zone_unit
                zone_offsets = row[None, :] * stride_zone_row + unit[:, None] * stride_zone_unit
                shares = load_zones(zones, zone_start, zone_offsets, mask_here, STATES)
                d, d_past = split_by_zones(shares, d, STATES)
                after = updated(v, before, p, UPDATE, ACTIVATION, RECURRENT)
            da_base = da_ptr + start * GATES
            da_tile = at_tile(da_base, gate_offsets)
            part_base = da_base + part * PART
            turn = (passed + step) * PRODUCTS
            outer_columns = columns
            if OUTER_GRADIENTS is None:
                dx, da, d, dp = gate_gradients(d, v, before, after, p, GRADIENTS, ACTIVATION, RECURRENT)
                publish(da_tile, da, mask_here, arrivals_ptr, EXCHANGE, GATES, HIDDEN)
            else:
                inner = inner_gate_gradients(d, v, before, after, p, OUTER_GRADIENTS, ACTIVATION, RECURRENT)
                inner_tiles = da_tile + OUTER_GATES * HIDDEN
                publish(inner_tiles, inner, mask_here, arrivals_ptr, EXCHANGE, GATES - OUTER_GATES, HIDDEN)
                inner_columns = columns_of_part(OUTER_GATES * HIDDEN, part, PART, HIDDEN)
                dq, budget = gather_product(
                    weights,
                    part_base,
                    row_offsets,
                    here,
                    inner_columns,
                    columns,
                    True,
                    arrivals_ptr,
                    turn * ARRIVALS + MEMBERS,
                    budget,
                    status_ptr,
                    EXCHANGE,
                    PRECISION,
                    CHUNKS,
                    HIDDEN,
                    BLOCK_B,
                    BLOCK_K,
                )
                if SPLIT_K > 1:
                    dq, budget = sum_of_parts(
                        dq,
                        partial_ptr,
                        part,
                        turn,
                        arrivals_ptr,
                        (turn + 1) * ARRIVALS,
                        budget,
                        status_ptr,
                        EXCHANGE,
                        SPLIT_K,
                        BLOCK_H,
                        BLOCK_B,
                    )
                dq = dq if factors is None else dq * factors
                dx, da, d, dp = gate_gradients_with_inner(d, dq, v, before, after, p, GRADIENTS, ACTIVATION, RECURRENT)
                publish(da_tile, da, mask_here, arrivals_ptr, EXCHANGE, OUTER_GATES, HIDDEN)
                outer_columns = inner_columns
                turn += 1
            if dx_ptr is not None:
                store_gates(at_tile(dx_ptr + start * GATES, gate_offsets), dx, mask_here, GATES, HIDDEN)
            if PARAMETERS > 0:
                of_parameters = add_masked(of_parameters, dp, mask_here, PARAMETERS)
            acc, budget = gather_product(
                weights,
                part_base,
                row_offsets,
                here,
                None,
                outer_columns,
                True,
                arrivals_ptr,
                turn * ARRIVALS + MEMBERS,
                budget,
                status_ptr,
                EXCHANGE,
                PRECISION,
                CHUNKS,
                HIDDEN,
                BLOCK_B,
                BLOCK_K,
            )
            if SPLIT_K > 1:
                acc, budget = sum_of_parts(
                    acc,
                    partial_ptr,
                    part,
                    turn,
                    arrivals_ptr,
                    (turn + 1) * ARRIVALS,
                    budget,
                    status_ptr,
                    EXCHANGE,
                    SPLIT_K,
                    BLOCK_H,
                    BLOCK_B,
                )
            acc = acc if factors is None else acc * factors
            d = through_state(d, acc, d_past, d_after, here, lengths_ptr, STATES)
            if resets_ptr is not None:
                if d_reset is not None:
                    of_reset = add_all(of_reset, choose(reset, d, zeros_like_all(d, STATES), STATES), STATES)
                d = choose(reset, zeros_like_all(d, STATES), d, STATES)
            after = inputs[0]
            inputs = inputs_ahead
            first = first_earlier
            here = here_earlier
            t_earlier = t_beyond
            first_earlier = first_beyond
            here_earlier = here_beyond
            if resets_ptr is not None:
                reset = reset_ahead
        store_states(d_initial, state_offsets, d, mask, STATES)
        if d_reset is not None:
            store_states(d_reset, state_offsets, of_reset, mask, STATES)
        if PARAMETERS > 0:
            sums = (tl.cast(tile, tl.int64) * DIRECTIONS + direction) * (PARAMETERS * HIDDEN)
            store_row_sums(d_parameters_ptr + sums, of_parameters, unit, unit_ok, PARAMETERS, HIDDEN)
        passed += steps
