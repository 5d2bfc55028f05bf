"""The single-CTA regime: one program holds all of W_hh for its batch tile; nothing is exchanged."""

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
from .forward_step import gate_values, inner_tile, load_zones, next_state, outer_then_inner, updated
from .tiles import (
    add_all,
    add_masked,
    add_product,
    load_bias,
    load_factors,
    load_gate_blocks,
    load_gates,
    load_parameters,
    load_states,
    load_weights,
    of_direction,
    recurrent_gates,
    store_gates,
    store_kept,
    store_row_sums,
    store_states,
    total,
    zero_sums,
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


@triton.jit
def product(weights, tile, BLOCK_B: tl.constexpr, PRECISION: tl.constexpr):
    """W_hh times a float32 tile [BLOCK_H, BLOCK_B] in which padding units are zero."""
    operand = tile.to(weights[0].dtype)
    return total(add_product(zero_sums(weights, BLOCK_B, PRECISION), weights, 0, operand, 1, PRECISION), PRECISION)


@triton.jit
def transposed_product(
    weights,
    da,
    here,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W_hh^T da over the gates from FIRST to LAST (without it); da[0] is gate FIRST."""
    sums = zero_sums(weights, BLOCK_B, PRECISION)
    for gate in tl.static_range(FIRST, LAST):
        # Padding units are zeroed: an infinite gradient times a zero weight would make them NaN.
        operand = tl.where(here, da[gate - FIRST], 0.0).to(weights[0].dtype)
        sums = add_product(sums, weights, gate, operand, GATES, PRECISION)
    return total(sums, PRECISION)


@triton.jit(do_not_specialize=["T", "B", "reverse_bits"])
def forward(
    gx_ptr,  # [D, T, B, GATES * HIDDEN] by strides: W_ih x + b_ih; packed: [D, rows, GATES * HIDDEN]
    stride_gxd,
    stride_gxt,
    stride_gxb,
    w_hh,  # D pointers to [GATES * HIDDEN, HIDDEN]
    b_hh,  # this and what is not described here: as in the cooperative regime
    parameters,
    initial,
    final,
    y_ptr,  # [T, B, D * HIDDEN], packed: [rows, D * HIDDEN]
    kept,
    saved_ptr,
    inner_ptr,  # as y: what the second product multiplies, for the backward pass; None: not kept
    lengths_ptr,
    starts_ptr,
    resets_ptr,
    reset_state,
    dropout_ptr,
    sent_ptr,  # as y: h times the factors, for the backward pass; None: not kept
    zones,
    stride_zone_row,
    stride_zone_unit,
    T,
    B,
    reverse_bits,
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
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    WIDTH: tl.constexpr = DIRECTIONS * HIDDEN
    tiles = (B + BLOCK_B - 1) // BLOCK_B
    direction = tl.program_id(0) // tiles
    batch0 = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_B
    reverse = ((reverse_bits >> direction) & 1) == 1

    unit = tl.arange(0, BLOCK_H)
    unit_ok = unit < HIDDEN
    w_ptr = of_direction(w_hh, direction, DIRECTIONS)
    weights = load_weights(w_ptr, 0, GATES, PADDED_GATES, HIDDEN, BLOCK_H, BLOCK_H, PRECISION)
    bias = load_bias(b_hh, direction, unit, unit_ok, GATES, HIDDEN, DIRECTIONS)
    p = load_parameters(parameters, direction, unit, unit_ok, PARAMETERS, HIDDEN, DIRECTIONS)

    row = tl.arange(0, BLOCK_B)
    row_ok = batch0 + row < B
    length, steps = lengths_of(lengths_ptr, batch0 + row, row_ok, T)
    mask = unit_ok[:, None] & row_ok[None, :]
    tile_start = batch0 * WIDTH + direction * HIDDEN
    tile_offsets = row[None, :] * WIDTH + unit[:, None]
    state = load_states(initial, tile_start + tile_offsets, mask, STATES)
    factors = None
    if dropout_ptr is not None:
        factors = load_factors(dropout_ptr, tile_start + tile_offsets, mask)
    if resets_ptr is not None:
        fresh = load_states(reset_state, tile_start + tile_offsets, mask, STATES)
    gx_tile = gx_ptr + direction.to(tl.int64) * stride_gxd + batch0 * stride_gxb
    gx_offsets = row.to(tl.int64)[None, :] * stride_gxb + unit[:, None]

    t = time_of(0, length, reverse, lengths_ptr)
    first = first_row(t, starts_ptr, B)
    here = active_rows(0, length, row_ok, lengths_ptr)
    gx_start = strided_start(t, first, stride_gxt, stride_gxb, starts_ptr)
    x = load_gates(at_tile(gx_tile + gx_start, gx_offsets), unit_ok[:, None] & here[None, :], GATES, HIDDEN)
    for step in tl.range(steps, disable_licm=True):
        # The next step's input travels while this step computes.
        ahead = tl.minimum(step + 1, steps - 1)
        t_ahead = time_of(ahead, length, reverse, lengths_ptr)
        first_ahead = first_row(t_ahead, starts_ptr, B)
        here_ahead = active_rows(ahead, length, row_ok, lengths_ptr)
        gx_start = strided_start(t_ahead, first_ahead, stride_gxt, stride_gxb, starts_ptr)
        mask_ahead = unit_ok[:, None] & here_ahead[None, :]
        x_ahead = load_gates(at_tile(gx_tile + gx_start, gx_offsets), mask_ahead, GATES, HIDDEN)
        mask_here = unit_ok[:, None] & here[None, :]
        start = tile_start + first * WIDTH
        if resets_ptr is not None:
            reset = reset_rows(resets_ptr, t, length, batch0 + row, here, B, reverse)
            state = choose(reset, fresh, state, STATES)
        # Padding units are zeroed: an infinite h (relu) times a zero weight would make them NaN.
        h = tl.where(unit_ok[:, None], state[0] if factors is None else state[0] * factors, 0.0)
        a = recurrent_gates(product(weights, h, BLOCK_B, PRECISION), bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B)
        if INNER is not None:
            q = inner_tile(x, a, state, p, INNER, ACTIVATION, RECURRENT)
            q = tl.where(unit_ok[:, None], q if factors is None else q * factors, 0.0)
            if inner_ptr is not None:
                tl.store(at_tile(inner_ptr + start, tile_offsets), q, mask=mask_here)
            inner = recurrent_gates(
                product(weights, q, BLOCK_B, PRECISION), bias, GATES, PADDED_GATES, BLOCK_H, BLOCK_B
            )
            a = outer_then_inner(a, inner, OUTER_GATES, GATES)
        v = gate_values(x, a, state, p, GATES_OF, ACTIVATION, RECURRENT)
        shares = None
        if zones is not None:
            zone_start = (first + batch0) * stride_zone_row + direction.to(tl.int64) * HIDDEN * stride_zone_unit
            zone_offsets = row[None, :] * stride_zone_row + unit[:, None] * stride_zone_unit
            shares = load_zones(zones, zone_start, zone_offsets, mask_here, STATES)
        state = next_state(v, state, p, shares, here, lengths_ptr, UPDATE, ACTIVATION, RECURRENT, STATES)
        tl.store(at_tile(y_ptr + start, tile_offsets), state[0], mask=mask_here)
        if sent_ptr is not None:
            tl.store(at_tile(sent_ptr + start, tile_offsets), state[0] * factors, mask=mask_here)
        if kept is not None:
            store_kept(kept, start, tile_offsets, state, mask_here, STATES)
        if saved_ptr is not None:
            saved_offsets = row[None, :] * (SAVED * WIDTH) + unit[:, None]
            store_gates(at_tile(saved_ptr + start * SAVED, saved_offsets), v, mask_here, SAVED, HIDDEN)
        x = x_ahead
        t = t_ahead
        first = first_ahead
        here = here_ahead
    final_offsets = (direction.to(tl.int64) * B + batch0) * HIDDEN + row[None, :] * HIDDEN + unit[:, None]
    store_states(final, final_offsets, state, mask, STATES)


@triton.jit(do_not_specialize=["T", "B", "reverse_bits"])
def backward(
    dy_ptr,  # as y, by strides, the last contiguous; None: no gradient of y
    stride_dyt,
    stride_dyb,
    d_final,  # this and what is not described here: as in the cooperative regime
    d_initial,
    d_reset,
    d_parameters_ptr,
    w_hh,
    parameters,
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
    da_ptr,  # as y, GATES * HIDDEN wide for each direction: written
    dx_ptr,  # as da_ptr, where the cell's gradients differ; else None
    lengths_ptr,
    starts_ptr,
    resets_ptr,
    reset_state,
    dropout_ptr,
    zones,
    stride_zone_row,
    stride_zone_unit,
    T,
    B,
    reverse_bits,  # bit d: direction d walked from its end to 0 going forward
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
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The loop backwards; W^T da is one dot per gate, each with that gate's own resident block of W_hh."""
    WIDTH: tl.constexpr = DIRECTIONS * HIDDEN
    tiles = (B + BLOCK_B - 1) // BLOCK_B
    direction = tl.program_id(0) // tiles
    tile = (tl.program_id(0) % tiles).to(tl.int64)
    batch0 = tile * BLOCK_B
    reverse = ((reverse_bits >> direction) & 1) == 1

    unit = tl.arange(0, BLOCK_H)
    unit_ok = unit < HIDDEN
    w_ptr = of_direction(w_hh, direction, DIRECTIONS)
    weights = load_gate_blocks(w_ptr, GATES, HIDDEN, BLOCK_H, PRECISION)
    p = load_parameters(parameters, direction, unit, unit_ok, PARAMETERS, HIDDEN, DIRECTIONS)

    row = tl.arange(0, BLOCK_B)
    row_ok = batch0 + row < B
    length, steps = lengths_of(lengths_ptr, batch0 + row, row_ok, T)
    mask = unit_ok[:, None] & row_ok[None, :]
    tile_offsets = row[None, :] * WIDTH + unit[:, None]
    gate_offsets = row[None, :] * (GATES * WIDTH) + unit[:, None]
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
        # What the next step backwards reads travels while this one computes.
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
        da_tile = at_tile(da_ptr + start * GATES, gate_offsets)
        if OUTER_GRADIENTS is None:
            dx, da, d, dp = gate_gradients(d, v, before, after, p, GRADIENTS, ACTIVATION, RECURRENT)
            acc = transposed_product(weights, da, mask_here, 0, GATES, GATES, BLOCK_B, PRECISION)
        else:
            inner = inner_gate_gradients(d, v, before, after, p, OUTER_GRADIENTS, ACTIVATION, RECURRENT)
            dq = transposed_product(weights, inner, mask_here, OUTER_GATES, GATES, GATES, BLOCK_B, PRECISION)
            dq = dq if factors is None else dq * factors
            dx, da, d, dp = gate_gradients_with_inner(d, dq, v, before, after, p, GRADIENTS, ACTIVATION, RECURRENT)
            acc = transposed_product(weights, da, mask_here, 0, OUTER_GATES, GATES, BLOCK_B, PRECISION)
        store_gates(da_tile, da, mask_here, GATES, HIDDEN)
        if dx_ptr is not None:
            store_gates(at_tile(dx_ptr + start * GATES, gate_offsets), dx, mask_here, GATES, HIDDEN)
        if PARAMETERS > 0:
            of_parameters = add_masked(of_parameters, dp, mask_here, PARAMETERS)
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
        sums = (tile * DIRECTIONS + direction) * (PARAMETERS * HIDDEN)
        store_row_sums(d_parameters_ptr + sums, of_parameters, unit, unit_ok, PARAMETERS, HIDDEN)
