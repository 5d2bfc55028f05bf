"""The time loop backwards: it carries the gradients of the states from the last step to the first.

A program owns BLOCK_H hidden units as in `forward` and publishes the da of their gates every step; W_hh^T da then runs
over all gates of all units of its head. SPLIT_K programs share the columns of W_hh of all their units: each keeps PART
of those columns' rows, multiplies them with the same part of the team's da, and they sum up (see `split_k`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_step import (
    begin_step,
    gate_gradients,
    gate_gradients_with_inner,
    inner_gate_gradients,
    load_reads,
    load_states_after,
    split_by_zones,
    through_state,
)
from .exchange import Sent, publish
from .forward_step import updated
from .groups import Team
from .means import Place, Units, memory_of_means
from .product import await_operand, expected_backwards, load_weights_backwards, product_backwards
from .split_k import columns_of_part, scratch_of_block
from .tiles import (
    add_all,
    load_parameters,
    load_states,
    load_zones,
    masked,
    store_gates,
    store_row_sums,
    store_states,
    zeros_like_all,
)
from .walk import at_tile, by_heads, choose, moment, this_member, tile_at
from .weights import of_direction


@triton.jit(do_not_specialize=["T", "B", "walk_bits"])
def backward(
    dy,  # Strided [T, B, D * HIDDEN], packed [rows, D * HIDDEN]: gradient of y; of Nones where there is none
    gradients,  # LayerGradients
    layer,  # Layer
    past,  # Past
    gx,  # Strided as for `forward`, and ga likewise, by heads: W_hh h + b_hh, contiguous; of Nones where v is saved
    ga,
    out,  # StepGradients; for "dataflow" da is filled with the sentinel
    rows,  # Rows
    resets,  # Resets
    dropout,  # Dropout
    zones,  # Zones
    team,  # Team
    T,
    B,
    walk_bits,  # those of `forward`: see `walk.this_member`
    CELL: tl.constexpr,  # CellSpec
    LOOP: tl.constexpr,  # Loop
):
    HIDDEN: tl.constexpr = LOOP.HIDDEN
    HEAD: tl.constexpr = LOOP.HEAD
    WIDTH: tl.constexpr = LOOP.DIRECTIONS * HIDDEN
    GATES: tl.constexpr = CELL.gates
    STATES: tl.constexpr = CELL.states
    PARAMETERS: tl.constexpr = CELL.parameters
    TWO_PRODUCTS: tl.constexpr = CELL.inner is not None
    OUTER: tl.constexpr = CELL.outer_gates if CELL.inner is not None else CELL.gates
    PRODUCTS: tl.constexpr = 1 if CELL.inner is None else 2
    ALONE: tl.constexpr = LOOP.EXCHANGE == "registers"
    me = this_member(walk_bits, LOOP)
    part = me.number % LOOP.SPLIT_K
    limit = 0  # of later waits: none once one has run out
    memory = memory_of_means(team, me, LOOP.BLOCK_H, CELL, LOOP)
    if not ALONE:
        limit = team.spin_limit
        arrivals = team.arrivals
        partial = team.partial
        if LOOP.EXCHANGE == "barrier":
            arrivals += me.team * 32
        if LOOP.SPLIT_K > 1:
            partial = scratch_of_block(partial, me, LOOP.BLOCK_H, LOOP)
        team = Team(arrivals=arrivals, status=team.status, spin_limit=limit, partial=partial)

    weights = load_weights_backwards(of_direction(layer.w_hh, me.direction, LOOP.DIRECTIONS), me, CELL, LOOP)
    p = load_parameters(layer.parameters, me, CELL, LOOP)
    there = me.unit_ok.to(tl.float32)[:, None]
    row = tl.arange(0, LOOP.BLOCK_B)
    offsets = row[None, :] * WIDTH + me.unit[:, None]
    gate_offsets = row[None, :] * (GATES * WIDTH) + by_heads(me, GATES, LOOP)[:, None]
    columns = columns_of_part(GATES * HEAD, part, LOOP)
    passed = 0

    first = me.group * LOOP.BLOCK_B
    for batch0 in range(0 if ALONE else first, 1 if ALONE else B, 1 if ALONE else me.groups * LOOP.BLOCK_B):
        tile = tile_at(first if ALONE else batch0, me, rows, T, B, LOOP)
        tile_start = tile.batch0 * WIDTH + me.direction * HIDDEN
        mask = me.unit_ok[:, None] & tile.row_ok[None, :]
        state_start = (me.direction.to(tl.int64) * B + tile.batch0) * HIDDEN
        state_offsets = state_start + row[None, :] * HIDDEN + me.unit[:, None]
        factors = None
        if dropout.factors is not None:
            factors = tl.load(dropout.factors + (tile_start + offsets), mask=mask, other=0.0).to(tl.float32)
        d = load_states(gradients.final, state_offsets, mask, STATES)
        fresh = None
        if resets.marks is not None:
            fresh = load_states(resets.state, tile_start + offsets, mask, STATES)
            if gradients.reset is not None:
                of_reset = zeros_like_all(d, STATES)
        if gradients.parameters is not None:
            of_parameters = load_states(None, 0, mask, PARAMETERS)
        now = moment(tl.maximum(tile.steps - 1, 0), tile, me, rows, B)
        earlier = moment(tl.maximum(tile.steps - 2, 0), tile, me, rows, B)
        mask_here = me.unit_ok[:, None] & now.here[None, :]
        after = load_states_after(past, tile_start + now.first * WIDTH, offsets, mask_here, STATES)
        reads = load_reads(tile.steps - 1, now, earlier, tile, me, past, gx, ga, dy, rows, resets, B, CELL, LOOP)
        for step in tl.range(tile.steps, disable_licm=True):
            at = tile.steps - 1 - step
            place = Place(there=there, number=me.number, turn=passed + step, step=step, limit=limit, memory=memory)
            mask_here = me.unit_ok[:, None] & now.here[None, :]
            start = tile_start + now.first * WIDTH
            d_after = d
            d, v, before = begin_step(
                reads, d, fresh, (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p, past, CELL, LOOP
            )
            d_past = None
            if zones.shares is not None:
                shares = load_zones(zones, now, tile, me, mask_here, CELL, LOOP)
                d, d_past = split_by_zones(shares, d, STATES)
                after = updated(v, before, (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p, CELL)
            da_base = out.da + start * GATES
            da_tile = at_tile(da_base, gate_offsets)
            turn = (passed + step) * PRODUCTS
            outer_columns = columns
            if TWO_PRODUCTS:
                INNER: tl.constexpr = GATES - OUTER
                inner = inner_gate_gradients(
                    d, v, before, after, (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p, CELL
                )
                if ALONE:
                    inner = masked(inner, mask_here, INNER)
                publish(da_tile + OUTER * HEAD, inner, mask_here, team, INNER, LOOP)
                outer_columns = columns_of_part(OUTER * HEAD, part, LOOP)
                sent = Sent(
                    base=da_base + part * LOOP.PART,
                    row_offsets=row * (GATES * WIDTH) + me.head * (GATES * HEAD),
                    row_ok=now.here,
                    low=outer_columns,
                    high=columns,
                    step=step,
                    kept=(),
                )
                expected = expected_backwards(turn, LOOP)
                operand, missing = await_operand(inner, sent, True, expected, limit, team, LOOP)
                dq, limit = product_backwards(
                    weights, operand, missing, sent, turn, limit, me, team, OUTER, INNER, LOOP
                )
                dq = dq if factors is None else dq * factors
                dx, da, d, dp = gate_gradients_with_inner(
                    d, dq, v, before, after, (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p, CELL
                )
                turn += 1
            else:
                dx, da, d, dp = gate_gradients(
                    d, v, before, after, (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p, CELL
                )
            if ALONE:
                da = masked(da, mask_here, OUTER)
            publish(da_tile, da, mask_here, team, OUTER, LOOP)
            if out.dx is not None:
                store_gates(at_tile(out.dx + start * GATES, gate_offsets), dx, mask_here, GATES, HEAD)
            if gradients.parameters is not None:
                of_parameters = add_all(of_parameters, masked(dp, mask_here, PARAMETERS), PARAMETERS)
            sent = Sent(
                base=da_base + part * LOOP.PART,
                row_offsets=row * (GATES * WIDTH) + me.head * (GATES * HEAD),
                row_ok=now.here,
                low=None,
                high=outer_columns,
                step=step,
                kept=(),
            )
            operand, missing = await_operand(da, sent, True, expected_backwards(turn, LOOP), limit, team, LOOP)
            # What the next step backwards reads travels while this one computes: device memory is a step away.
            beyond = moment(tl.maximum(at - 2, 0), tile, me, rows, B)
            reads_ahead = load_reads(
                tl.maximum(at - 1, 0), earlier, beyond, tile, me, past, gx, ga, dy, rows, resets, B, CELL, LOOP
            )
            acc, limit = product_backwards(weights, operand, missing, sent, turn, limit, me, team, 0, OUTER, LOOP)
            acc = acc if factors is None else acc * factors
            d = through_state(d, acc, d_past, d_after, now, rows, STATES)
            if resets.marks is not None:
                if gradients.reset is not None:
                    of_those = choose(reads.reset, d, zeros_like_all(d, STATES), STATES)
                    of_reset = add_all(of_reset, of_those, STATES)
                d = choose(reads.reset, zeros_like_all(d, STATES), d, STATES)
            after = reads.left
            reads = reads_ahead
            now = earlier
            earlier = beyond
        if gradients.initial is not None:
            store_states(gradients.initial, state_offsets, d, mask, STATES)
        if gradients.reset is not None:
            store_states(gradients.reset, state_offsets, of_reset, mask, STATES)
        if gradients.parameters is not None:
            sums = (tile.batch0 // LOOP.BLOCK_B * LOOP.DIRECTIONS + me.direction) * (PARAMETERS * HIDDEN)
            store_row_sums(gradients.parameters + sums, of_parameters, me, PARAMETERS, HIDDEN)
        passed += tile.steps
