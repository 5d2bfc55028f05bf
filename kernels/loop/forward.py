"""The time loop: one walk over all steps for a team of any size.

A team shares one batch tile of one head; each of its programs owns BLOCK_H hidden units and keeps their rows of W_hh on
chip. Every step its members need all of the head's h: a team of one has it in its registers, the members of a larger
one exchange it (see `product`). Teams (one per direction, head and group of batch tiles) run side by side and never
wait for each other; a group's batch tiles run one after the other. All programs of teams of several must be resident at
once: `launch` checks that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .exchange import Sent, no_words, publish
from .forward_step import gate_values, inner_tile, next_state
from .groups import Team
from .means import Place, Units, memory_of_means
from .parts import for_each_part, loop_of_product, offsets_of_rows
from .product import arrivals_of_product, await_operand, product
from .split_k import columns_of_part, scratch_of_block
from .tiles import (
    load_bias,
    load_packed_gates,
    load_parameters,
    load_states,
    store_gates,
    store_later,
    store_states,
    unpacked,
)
from .walk import at_tile, choose, moment, reset_rows, strided_tile, this_member, tile_at
from .weights import load_weights, of_direction, recurrent_gates


class Inputs(NamedTuple):
    """What a step reads and no step writes. Made by keyword."""

    x: Any  # gates of W_ih x + b_ih, as `load_packed_gates` loads them
    reset: Any  # [BLOCK_B]: rows whose state is the reset state before the step; () where nothing resets


@triton.jit
def load_inputs(now, tile, me, gx, rows, resets, B, CELL: tl.constexpr, LOOP: tl.constexpr):
    ptr = gx.ptr + me.direction.to(tl.int64) * gx.direction
    mask = me.unit_ok[:, None] & now.here[None, :]
    at = strided_tile(ptr, gx, now, tile, me, rows, AT_ONCE=LOOP.EXCHANGE == "spin")
    x = load_packed_gates(at, mask, CELL.gates, LOOP)
    reset = ()  # Triton 3.6.0 returns no None from a function
    if resets.marks is not None:
        reset = reset_rows(resets.marks, now, tile, me, B)
    return Inputs(x=x, reset=reset)


@triton.jit(do_not_specialize=["T", "B", "walk_bits"])
def forward(
    gx,  # Strided [D, T, B, GATES * HIDDEN], packed [D, rows, GATES * HIDDEN]: W_ih x + b_ih
    layer,  # Layer
    states,  # States
    out,  # Outputs
    rows,  # Rows
    resets,  # Resets
    dropout,  # Dropout
    zones,  # Zones
    team,  # Team
    T,
    B,
    walk_bits,  # see `walk.this_member`
    CELL: tl.constexpr,  # CellSpec
    LOOP: tl.constexpr,  # Loop
):
    HIDDEN: tl.constexpr = LOOP.HIDDEN
    HEAD: tl.constexpr = LOOP.HEAD
    WIDTH: tl.constexpr = LOOP.DIRECTIONS * HIDDEN
    STATES: tl.constexpr = CELL.states
    SAVED: tl.constexpr = LOOP.SAVED
    OUTER: tl.constexpr = CELL.gates if CELL.inner is None else CELL.outer_gates
    INNER: tl.constexpr = CELL.gates - OUTER
    APART: tl.constexpr = LOOP.PARTS > 1  # else both products are of all gates' rows
    PRODUCT: tl.constexpr = loop_of_product(LOOP, OUTER)
    INNER_PRODUCT: tl.constexpr = loop_of_product(LOOP, INNER)
    ALONE: tl.constexpr = LOOP.EXCHANGE == "registers"
    PRODUCTS: tl.constexpr = 1 if CELL.inner is None else 2
    me = this_member(walk_bits, LOOP)
    part = me.number % LOOP.SPLIT_K  # which of the programs that share a product
    limit = 0  # of later waits: none once one has run out
    OWN_ROWS: tl.constexpr = triton.next_power_of_2(CELL.gates) * LOOP.BLOCK_H
    memory = memory_of_means(team, me, OWN_ROWS, CELL, LOOP)
    if not ALONE:
        limit = team.spin_limit
        arrivals = team.arrivals
        partial = team.partial
        if LOOP.EXCHANGE == "barrier":
            arrivals += me.team * 32
        if LOOP.SPLIT_K > 1:
            partial = scratch_of_block(partial, me, OWN_ROWS, LOOP)
        team = Team(arrivals=arrivals, status=team.status, spin_limit=limit, partial=partial)

    w_hh = of_direction(layer.w_hh, me.direction, LOOP.DIRECTIONS)
    weights = load_weights(w_hh, me, 0, OUTER if APART else CELL.gates, PRODUCT)
    inner_weights = weights
    if APART:
        inner_weights = load_weights(w_hh, me, OUTER, INNER, INNER_PRODUCT)
    bias = load_bias(layer.b_hh, me, CELL, LOOP)
    p = load_parameters(layer.parameters, me, CELL, LOOP)
    there = me.unit_ok.to(tl.float32)[:, None]
    row = tl.arange(0, LOOP.BLOCK_B)
    offsets = row[None, :] * WIDTH + me.unit[:, None]
    saved_offsets = row[None, :] * (WIDTH * SAVED) + me.unit[:, None]
    columns = HEAD if LOOP.SPLIT_K == 1 else columns_of_part(HEAD, part, LOOP)
    channel = out.y if out.sent is None else out.sent
    passed = 0  # steps of earlier batch tiles: the arrivals counter is never reset

    # A team of one has one tile. In constants this loop is none: 12 registers less for LSTM bf16 H=64, sm_90.
    first = me.group * LOOP.BLOCK_B
    for batch0 in range(0 if ALONE else first, 1 if ALONE else B, 1 if ALONE else me.groups * LOOP.BLOCK_B):
        tile = tile_at(first if ALONE else batch0, me, rows, T, B, LOOP)
        tile_start = tile.batch0 * WIDTH + me.direction * HIDDEN
        mask = me.unit_ok[:, None] & tile.row_ok[None, :]
        state = load_states(states.initial, tile_start + offsets, mask, STATES)
        factors = None
        if dropout.factors is not None:
            factors = tl.load(dropout.factors + (tile_start + offsets), mask=mask, other=0.0).to(tl.float32)
        if resets.marks is not None:
            fresh = load_states(resets.state, tile_start + offsets, mask, STATES)
        now = moment(0, tile, me, rows, B)
        inputs = load_inputs(now, tile, me, gx, rows, resets, B, CELL, LOOP)
        # `first * 0` makes this one pointer for each row where the steps' are.
        source = channel + tile_start + now.first * 0
        if states.initial is not None:
            h_0 = states.initial[0] if states.sent is None else states.sent
            source = h_0 + tile_start + now.first * 0

        kept = no_words(channel.dtype.element_ty, PRODUCT)
        # Without disable_licm LLVM hoists the descriptors of every matrix instruction out of the loop, two
        # 64-bit registers each. LSTM bf16 H=768, "barrier", sm_90: 255 registers and a spill with it, 74 without.
        for step in tl.range(tile.steps, disable_licm=True):
            follows = step > 0
            readable = now.here & ((states.initial is not None) | follows)
            if resets.marks is not None:
                state = choose(inputs.reset, fresh, state, STATES)
                if resets.state is None:
                    readable = readable & (inputs.reset == 0)
                else:
                    readable = readable | inputs.reset
                    source = tl.where(inputs.reset, resets.sent + tile_start, source)
            start = tile_start + now.first * WIDTH
            mask_here = me.unit_ok[:, None] & now.here[None, :]
            # Padding units are zeroed: an infinite h (relu) times a zero weight would make them NaN.
            h = tl.where(me.unit_ok[:, None], state[0] if factors is None else state[0] * factors, 0.0)
            starts = offsets_of_rows(WIDTH, PRODUCT) + me.head * HEAD
            readable = for_each_part(readable, PRODUCT)
            # How many steps everybody has handed on; the first product of two has the second's of the step before.
            handed_on = step - 1 if CELL.inner is None else step
            base = source if LOOP.SPLIT_K == 1 else source + part * LOOP.PART
            sent = Sent(
                base=base, row_offsets=starts, row_ok=readable, low=None, high=columns, kept=kept, step=handed_on
            )
            turn = (passed + step) * PRODUCTS
            expected = turn * arrivals_of_product(LOOP)
            operand, missing = await_operand((h,), sent, follows, expected, limit, team, PRODUCT)
            if LOOP.KEPT:
                kept = operand
            # The next step's inputs travel while this step computes and the next one waits for its team.
            ahead = moment(tl.minimum(step + 1, tile.steps - 1), tile, me, rows, B)
            inputs_ahead = load_inputs(ahead, tile, me, gx, rows, resets, B, CELL, LOOP)
            acc, limit = product(
                weights, operand, missing, sent, step, turn, expected + LOOP.MEMBERS, limit, me, team, PRODUCT
            )
            place = Place(there=there, number=me.number, turn=passed + step, step=step, limit=limit, memory=memory)
            a = recurrent_gates(acc, bias, 0, OUTER, PRODUCT)
            x = unpacked(inputs.x, gx.ptr.dtype.element_ty, CELL.gates, LOOP)
            if CELL.inner is not None:
                q = inner_tile(x, a, state, (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p, CELL)
                q = tl.where(me.unit_ok[:, None], q if factors is None else q * factors, 0.0)
                inner = source
                if out.inner is not None:
                    inner = out.inner + start
                    publish(at_tile(inner, offsets), (q,), mask_here, team, 1, LOOP)
                starts = offsets_of_rows(WIDTH, INNER_PRODUCT) + me.head * HEAD
                here = for_each_part(now.here, INNER_PRODUCT)
                base = inner if LOOP.SPLIT_K == 1 else inner + part * LOOP.PART
                sent = Sent(base=base, row_offsets=starts, row_ok=here, low=None, high=columns, kept=(), step=step)
                expected += arrivals_of_product(LOOP)
                operand, missing = await_operand((q,), sent, True, expected, limit, team, INNER_PRODUCT)
                acc, limit = product(
                    inner_weights,
                    operand,
                    missing,
                    sent,
                    step + 1,
                    turn + 1,
                    expected + LOOP.MEMBERS,
                    limit,
                    me,
                    team,
                    INNER_PRODUCT,
                )
                a = a + recurrent_gates(acc, bias, OUTER, INNER, INNER_PRODUCT)
            v = gate_values(x, a, state, (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p, CELL)
            state = next_state(
                v,
                state,
                (p, Units(place=place, LOOP=LOOP)) if CELL.normalised else p,
                zones,
                rows,
                now,
                tile,
                me,
                CELL,
                LOOP,
            )
            source = channel + start
            h = state[0] if out.sent is None else state[0] * factors
            publish(at_tile(source, offsets), (h,), mask_here, team, 1, LOOP)
            if out.sent is not None:
                tl.store(at_tile(out.y + start, offsets), state[0], mask=mask_here)
            if out.later is not None:
                store_later(out.later, start, offsets, state, mask_here, STATES)
            if out.saved is not None:
                store_gates(at_tile(out.saved + start * SAVED, saved_offsets), v, mask_here, SAVED, HIDDEN)
            now = ahead
            inputs = inputs_ahead
        final_start = (me.direction.to(tl.int64) * B + tile.batch0) * HIDDEN
        store_states(states.final, final_start + row[None, :] * HIDDEN + me.unit[:, None], state, mask, STATES)
        passed += tile.steps
