"""Two time loops with all but one part left out: the exchange, and the product with the resident weights."""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loop.exchange import Sent, await_sent, numbers_in_word, publish, read_chunks, unless_stalled
from ...kernels.loop.groups import Team
from ...kernels.loop.product import load_weights_backwards
from ...kernels.loop.split_k import columns_of_part, scratch_of_block, sum_of_parts
from ...kernels.loop.walk import by_heads, this_member
from ...kernels.loop.weights import add_product, load_weights, total, zero_sums


@triton.jit(do_not_specialize=["T", "B"])
def exchange_only(
    channel_ptr,  # [T, B, D * COUNT * HIDDEN], by heads (see `loop.groups`); for "dataflow" filled with the sentinel
    team,  # Team
    T,
    B,
    COUNT: tl.constexpr,  # tiles that a program publishes every step: 1 forwards, the gates backwards
    LOOP: tl.constexpr,  # Loop
):
    """Publish a tile, gather this program's part of everybody's, sum up with those who share the product; T times.

    What is published holds step % 16 + row % 4, from the second step on as the sum said.
    """
    HIDDEN: tl.constexpr = LOOP.HIDDEN
    SPLIT_K: tl.constexpr = LOOP.SPLIT_K
    BLOCK_B: tl.constexpr = LOOP.BLOCK_B
    BLOCK_H: tl.constexpr = LOOP.BLOCK_H
    ARRIVALS: tl.constexpr = LOOP.MEMBERS * (1 if SPLIT_K == 1 else 2)  # of one step
    WIDTH: tl.constexpr = LOOP.DIRECTIONS * COUNT * HIDDEN
    HEAD: tl.constexpr = LOOP.HEAD
    NUMBERS_IN_WORD: tl.constexpr = numbers_in_word(channel_ptr.dtype.element_ty, HEAD)
    me = this_member(0, LOOP)
    part = me.number % SPLIT_K
    arrivals = team.arrivals
    partial = team.partial
    if LOOP.EXCHANGE == "barrier":
        arrivals += me.team * 32
    if SPLIT_K > 1:
        partial = scratch_of_block(partial, me, BLOCK_H, LOOP)
    limit = team.spin_limit
    team = Team(arrivals=arrivals, status=team.status, spin_limit=limit, partial=partial)

    row = tl.arange(0, BLOCK_B)
    offsets = row[None, :] * WIDTH + by_heads(me, COUNT, LOOP)[:, None]
    rows = row * WIDTH + me.head * (COUNT * HEAD)
    columns = columns_of_part(COUNT * HEAD, part, LOOP)
    passed = 0
    for tile in range(me.group, tl.cdiv(B, BLOCK_B), me.groups):
        batch0 = tl.cast(tile, tl.int64) * BLOCK_B
        row_ok = batch0 + row < B
        mask = me.unit_ok[:, None] & row_ok[None, :]
        value = tl.zeros((BLOCK_H, BLOCK_B), dtype=tl.float32) + (row % 4)[None, :]
        for step in tl.range(T, disable_licm=True):
            base = channel_ptr + (tl.cast(step, tl.int64) * B + batch0) * WIDTH + me.direction * (COUNT * HIDDEN)
            tiles = ()
            for _ in tl.static_range(COUNT):
                tiles = tiles + (value,)
            publish(base + offsets, tiles, mask, team, COUNT, LOOP)
            turn = passed + step
            start = base + part * LOOP.PART
            sent = Sent(base=start, row_offsets=rows, row_ok=row_ok, low=None, high=columns, kept=(), step=step)
            _, missing = await_sent(sent, True, turn * ARRIVALS + LOOP.MEMBERS, limit, team, LOOP)
            if LOOP.EXCHANGE == "barrier":
                read_chunks(sent, NUMBERS_IN_WORD, LOOP)
            # In place of the product: an equal share of what the next step publishes.
            following = (row % 4 + (step + 1) % 16).to(tl.float32) / SPLIT_K
            product = tl.zeros((SPLIT_K * BLOCK_H, BLOCK_B), dtype=tl.float32) + following[None, :]
            value, limit = unless_stalled(product, missing, limit, step, team, LOOP)
            if SPLIT_K > 1:
                value, limit = sum_of_parts(value, part, turn, (turn + 1) * ARRIVALS, limit, step, team, LOOP)
        passed += T


@triton.jit(do_not_specialize=["T"])
def weights_only(
    w_ptr,  # [GATES * HIDDEN, HEAD], contiguous
    h_ptr,  # [2, BLOCK_B, HEAD], backwards GATES * HEAD: the operands of even and of odd steps
    out_ptr,  # [programs, ROWS, BLOCK_B] float32: the sum of all products
    T,
    BACKWARD: tl.constexpr,
    CELL: tl.constexpr,  # CellSpec
    LOOP: tl.constexpr,  # Loop
):
    """The sum over T steps of W h (backwards W^T da), the weights as each regime keeps them.

    The operand comes from memory in turns, so that no product is a constant of the loop; it stays in the L1.
    """
    HEAD: tl.constexpr = LOOP.HEAD
    BLOCK_B: tl.constexpr = LOOP.BLOCK_B
    BLOCK_K: tl.constexpr = LOOP.BLOCK_K
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    GATE_BLOCKS: tl.constexpr = LOOP.EXCHANGE == "registers" and BACKWARD
    WIDTH: tl.constexpr = CELL.gates * HEAD if BACKWARD else HEAD
    ROWS: tl.constexpr = LOOP.BLOCK_H * (LOOP.SPLIT_K if BACKWARD else CELL.padded_gates)
    me = this_member(0, LOOP)
    part = me.number % LOOP.SPLIT_K
    if BACKWARD:
        weights = load_weights_backwards(w_ptr, me, CELL, LOOP)
    else:
        weights = load_weights(w_ptr, me, 0, CELL.gates, LOOP)

    row = tl.arange(0, BLOCK_B)
    k = tl.arange(0, BLOCK_K)
    columns = columns_of_part(WIDTH, part, LOOP)
    sums = zero_sums(weights, LOOP)
    for step in tl.range(T, disable_licm=True):
        base = h_ptr + (step % 2) * (BLOCK_B * WIDTH) + part * LOOP.PART + row[:, None] * WIDTH
        operands = ()
        for chunk in tl.static_range(CHUNKS):
            first = chunk * (HEAD if GATE_BLOCKS else BLOCK_K)
            left = HEAD if GATE_BLOCKS else columns - first
            tile = tl.load(base + first + k[None, :], mask=(k < left)[None, :], other=0.0)
            operands = operands + (tl.trans(tile),)
        for chunk in tl.static_range(CHUNKS):
            sums = add_product(sums, weights, chunk, operands[chunk], LOOP)
    where = tl.arange(0, ROWS)[:, None] * BLOCK_B + row[None, :]
    tl.store(out_ptr + tl.program_id(0) * (ROWS * BLOCK_B) + where, total(sums, LOOP))
