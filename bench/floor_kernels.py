"""Two time loops with all but one part left out: the exchange, and the product with the resident weights."""

from __future__ import annotations

import triton
import triton.language as tl

from ..kernels.exchange import _read, _read_chunk, _unwritten, publish
from ..kernels.tiles import (
    add_product,
    load_gate_blocks,
    load_weights,
    load_weights_transposed,
    total,
    transposed_by_gate,
    zero_sums,
)


@triton.jit(do_not_specialize=["T", "B", "num_groups", "spin_limit"])
def exchange_only(
    channel_ptr,  # [T, B, D * COUNT * HIDDEN]; for "dataflow" filled with the sentinel
    arrivals_ptr,  # [D * num_groups, 32] int32, zero ("barrier"; else None)
    status_ptr,  # [1] int32: 1 if a wait ran out
    T,
    B,
    num_groups,
    spin_limit,
    COUNT: tl.constexpr,  # tiles that a program publishes every step: 1 forwards, the gates backwards
    PADDED_COUNT: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    EXCHANGE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Publish a tile, gather everybody's, T times. The tile of a step holds step % 16 + row % 4."""
    MEMBERS: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    CHUNKS: tl.constexpr = (HIDDEN + BLOCK_K - 1) // BLOCK_K
    WIDTH: tl.constexpr = DIRECTIONS * COUNT * HIDDEN
    pid = tl.program_id(0)
    member = pid % MEMBERS
    team = pid // MEMBERS
    direction = team // num_groups
    group = team % num_groups
    if EXCHANGE == "barrier":
        arrivals_ptr += team * 32

    unit = member * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.arange(0, BLOCK_B)
    offsets = row[None, :] * WIDTH + unit[:, None]
    gate_of = tl.arange(0, PADDED_COUNT * BLOCK_B) // BLOCK_B
    row_of = tl.arange(0, PADDED_COUNT * BLOCK_B) % BLOCK_B
    gather_offsets = row_of * WIDTH + gate_of * HIDDEN
    budget = spin_limit
    passed = 0
    for tile in range(group, (B + BLOCK_B - 1) // BLOCK_B, num_groups):
        batch0 = tl.cast(tile, tl.int64) * BLOCK_B
        mask = (unit < HIDDEN)[:, None] & (batch0 + row < B)[None, :]
        gather_ok = (batch0 + row_of < B) & (gate_of < COUNT)
        pattern = (row % 4)[None, :] + tl.zeros((BLOCK_H, BLOCK_B), dtype=tl.float32)
        for step in tl.range(T, disable_licm=True):
            at = tl.cast(step, tl.int64)
            base = channel_ptr + (at * B + batch0) * WIDTH + direction * (COUNT * HIDDEN)
            value = pattern + (at % 16).to(tl.float32)
            tiles = ()
            for _ in tl.static_range(COUNT):
                tiles = tiles + (value,)
            publish(base + offsets, tiles, mask, arrivals_ptr, EXCHANGE, COUNT, HIDDEN)
            polls = 0
            missing = budget >= 0
            if EXCHANGE == "barrier":
                expected = (passed + step + 1) * MEMBERS
                while missing & (polls <= budget):
                    missing = tl.atomic_add(arrivals_ptr, 0, sem="acquire") < expected
                    polls += 1
                for chunk in tl.static_range(CHUNKS):
                    _read_chunk(base, gather_offsets, gather_ok, chunk, HIDDEN, BLOCK_K)
            else:
                while missing & (polls <= budget):
                    gathered = _read(base, gather_offsets, gather_ok, HIDDEN, BLOCK_K)
                    missing = _unwritten(gathered, CHUNKS) != 0
                    polls += 1
            if missing:
                budget = 0
                tl.store(status_ptr, 1)
        passed += T


@triton.jit(do_not_specialize=["T"])
def weights_only(
    w_ptr,  # [GATES * HIDDEN, HIDDEN], contiguous
    h_ptr,  # [2, BLOCK_B, ROWS_OF_H * HIDDEN]: the operands of even and of odd steps
    out_ptr,  # [programs, ROWS * BLOCK_B] float32: the sum of all products
    T,
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BACKWARD: tl.constexpr,
    SINGLE_CTA: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sum over T steps of W h (backwards W^T da), the weights as each regime keeps them.

    The operand comes from memory in turns, so that no product is a constant of the loop; it stays in the L1.
    """
    MEMBERS: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    GATE_BLOCKS: tl.constexpr = SINGLE_CTA and BACKWARD
    OF_H: tl.constexpr = GATES if BACKWARD else 1  # tiles of the operand side by side
    IN_BATCH: tl.constexpr = PADDED_GATES if BACKWARD and not GATE_BLOCKS else 1
    CHUNKS: tl.constexpr = GATES if GATE_BLOCKS else (HIDDEN + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    unit0 = (pid % MEMBERS) * BLOCK_H
    if GATE_BLOCKS:
        weights = load_gate_blocks(w_ptr, GATES, HIDDEN, BLOCK_H, PRECISION)
    elif BACKWARD:
        weights = load_weights_transposed(w_ptr, unit0, GATES, PADDED_GATES, HIDDEN, BLOCK_H, BLOCK_K, PRECISION)
    else:
        weights = load_weights(w_ptr, unit0, GATES, PADDED_GATES, HIDDEN, BLOCK_H, BLOCK_K, PRECISION)

    gate_of = tl.arange(0, IN_BATCH * BLOCK_B) // BLOCK_B
    row_of = tl.arange(0, IN_BATCH * BLOCK_B) % BLOCK_B
    sums = zero_sums(weights, BLOCK_B, PRECISION)
    for step in tl.range(T, disable_licm=True):
        base = h_ptr + (step % 2) * (BLOCK_B * OF_H * HIDDEN) + row_of[:, None] * (OF_H * HIDDEN)
        for chunk in tl.static_range(CHUNKS):
            if GATE_BLOCKS:
                k = tl.arange(0, BLOCK_K)
                first = chunk * HIDDEN
            else:
                k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
                first = 0
            ok = (gate_of < OF_H)[:, None] & (k < HIDDEN)[None, :]
            tile = tl.load(base + gate_of[:, None] * HIDDEN + first + k[None, :], mask=ok, other=0.0)
            operand = transposed_by_gate(tile, IN_BATCH, BLOCK_B, BLOCK_K)
            sums = add_product(sums, weights, chunk, operand, CHUNKS, PRECISION)
    product = total(sums, PRECISION)
    if len(product.shape) == 3:
        product = tl.sum(product, axis=0)
    ROWS: tl.constexpr = product.shape[0]
    where = tl.arange(0, ROWS)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    tl.store(out_ptr + pid * (ROWS * BLOCK_B) + where, product)
