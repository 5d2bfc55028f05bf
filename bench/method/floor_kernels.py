"""Two time loops with all but one part left out: the exchange, and the product with the resident weights."""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.exchange import numbers_in_word, publish, read_chunks, read_when_written, unless_stalled, wait_for
from ...kernels.split_k import columns_of_part, sum_of_parts
from ...kernels.tiles import add_product, load_gate_blocks, load_weights, load_weights_transposed, total, zero_sums


@triton.jit(do_not_specialize=["T", "B", "num_groups", "spin_limit"])
def exchange_only(
    channel_ptr,  # [T, B, D * COUNT * HIDDEN]; for "dataflow" filled with the sentinel
    partial_ptr,  # [D * num_groups, unit blocks, 2, SPLIT_K, BLOCK_B, SPLIT_K * BLOCK_H] int32, -1; None: SPLIT_K 1
    arrivals_ptr,  # [D * num_groups, 32] int32, zero ("barrier"; else None)
    status_ptr,  # [1] int32: 1 if a wait ran out
    T,
    B,
    num_groups,
    spin_limit,
    COUNT: tl.constexpr,  # tiles that a program publishes every step: 1 forwards, the gates backwards
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    EXCHANGE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PART: tl.constexpr,  # columns that a program gathers
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Publish a tile, gather this program's part of everybody's, sum up with those who share the product; T times.

    What is published holds step % 16 + row % 4, from the second step on as the sum said.
    """
    MEMBERS: tl.constexpr = (HIDDEN + SPLIT_K * BLOCK_H - 1) // (SPLIT_K * BLOCK_H) * SPLIT_K
    CHUNKS: tl.constexpr = (PART + BLOCK_K - 1) // BLOCK_K
    ARRIVALS: tl.constexpr = MEMBERS * (1 if SPLIT_K == 1 else 2)  # of one step
    WIDTH: tl.constexpr = DIRECTIONS * COUNT * HIDDEN
    NUMBERS_IN_WORD: tl.constexpr = numbers_in_word(channel_ptr.dtype.element_ty, HIDDEN)
    pid = tl.program_id(0)
    member = pid % MEMBERS
    team = pid // MEMBERS
    direction = team // num_groups
    group = team % num_groups
    part = member % SPLIT_K
    if EXCHANGE == "barrier":
        arrivals_ptr += team * 32
    if partial_ptr is not None:
        partial_ptr += (team * MEMBERS + member - part) * (2 * BLOCK_B * SPLIT_K * BLOCK_H)

    unit = member * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.arange(0, BLOCK_B)
    offsets = row[None, :] * WIDTH + unit[:, None]
    columns = columns_of_part(COUNT * HIDDEN, part, PART, HIDDEN)
    budget = spin_limit
    passed = 0
    for tile in range(group, (B + BLOCK_B - 1) // BLOCK_B, num_groups):
        batch0 = tl.cast(tile, tl.int64) * BLOCK_B
        row_ok = batch0 + row < B
        mask = (unit < HIDDEN)[:, None] & row_ok[None, :]
        sent = tl.zeros((BLOCK_H, BLOCK_B), dtype=tl.float32) + (row % 4)[None, :]
        for step in tl.range(T, disable_licm=True):
            base = channel_ptr + (tl.cast(step, tl.int64) * B + batch0) * WIDTH + direction * (COUNT * HIDDEN)
            tiles = ()
            for _ in tl.static_range(COUNT):
                tiles = tiles + (sent,)
            publish(base + offsets, tiles, mask, arrivals_ptr, EXCHANGE, COUNT, HIDDEN)
            base += part * PART
            turn = passed + step
            if EXCHANGE == "barrier":
                missing = wait_for(arrivals_ptr, turn * ARRIVALS + MEMBERS, True, budget)
                read_chunks(base, row * WIDTH, row_ok, None, columns, CHUNKS, BLOCK_K, NUMBERS_IN_WORD)
            else:
                _, missing = read_when_written(
                    base, row * WIDTH, row_ok, None, columns, True, budget, CHUNKS, BLOCK_K, NUMBERS_IN_WORD
                )
            # In place of the product: an equal share of what the next step publishes.
            following = (row % 4 + (step + 1) % 16).to(tl.float32) / SPLIT_K
            product = tl.zeros((SPLIT_K * BLOCK_H, BLOCK_B), dtype=tl.float32) + following[None, :]
            sent, budget = unless_stalled(product, missing, budget, status_ptr)
            if SPLIT_K > 1:
                sent, budget = sum_of_parts(
                    sent,
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
        passed += T


@triton.jit(do_not_specialize=["T"])
def weights_only(
    w_ptr,  # [GATES * HIDDEN, HIDDEN], contiguous
    h_ptr,  # [2, BLOCK_B, HIDDEN], backwards GATES * HIDDEN: the operands of even and of odd steps
    out_ptr,  # [programs, ROWS, BLOCK_B] float32: the sum of all products
    T,
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BACKWARD: tl.constexpr,
    SINGLE_CTA: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PART: tl.constexpr,  # rows of the operand that a program multiplies
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sum over T steps of W h (backwards W^T da), the weights as each regime keeps them.

    The operand comes from memory in turns, so that no product is a constant of the loop; it stays in the L1.
    """
    MEMBERS: tl.constexpr = (HIDDEN + SPLIT_K * BLOCK_H - 1) // (SPLIT_K * BLOCK_H) * SPLIT_K
    GATE_BLOCKS: tl.constexpr = SINGLE_CTA and BACKWARD
    CHUNKS: tl.constexpr = GATES if GATE_BLOCKS else (PART + BLOCK_K - 1) // BLOCK_K
    WIDTH: tl.constexpr = GATES * HIDDEN if BACKWARD else HIDDEN
    ROWS: tl.constexpr = SPLIT_K * BLOCK_H if BACKWARD else PADDED_GATES * BLOCK_H
    pid = tl.program_id(0)
    member = pid % MEMBERS
    part = member % SPLIT_K
    if GATE_BLOCKS:
        weights = load_gate_blocks(w_ptr, GATES, HIDDEN, BLOCK_H, PRECISION)
    elif BACKWARD:
        weights = load_weights_transposed(
            w_ptr, (member - part) * BLOCK_H, part, ROWS, PART, GATES, HIDDEN, BLOCK_K, PRECISION
        )
    else:
        weights = load_weights(w_ptr, member * BLOCK_H, GATES, PADDED_GATES, HIDDEN, BLOCK_H, BLOCK_K, PRECISION)

    row = tl.arange(0, BLOCK_B)
    k = tl.arange(0, BLOCK_K)
    columns = columns_of_part(WIDTH, part, PART, HIDDEN)
    sums = zero_sums(weights, BLOCK_B, PRECISION)
    for step in tl.range(T, disable_licm=True):
        base = h_ptr + (step % 2) * (BLOCK_B * WIDTH) + part * PART + row[:, None] * WIDTH
        operands = ()
        for chunk in tl.static_range(CHUNKS):
            first = chunk * (HIDDEN if GATE_BLOCKS else BLOCK_K)
            left = HIDDEN if GATE_BLOCKS else columns - first
            tile = tl.load(base + first + k[None, :], mask=(k < left)[None, :], other=0.0)
            operands = operands + (tl.trans(tile),)
        for chunk in tl.static_range(CHUNKS):
            sums = add_product(sums, weights, chunk, operands[chunk], CHUNKS, PRECISION)
    where = tl.arange(0, ROWS)[:, None] * BLOCK_B + row[None, :]
    tl.store(out_ptr + pid * (ROWS * BLOCK_B) + where, total(sums, PRECISION))
