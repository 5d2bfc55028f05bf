"""The products of a cell that has two in a step, each of its own gates alone: parts of its sum fill the other rows.

A matrix instruction of Hopper has 64 rows, all gates of 16 units: one product of the outer gates and one of the inner
ones would be as many instructions as two of all gates. So a row's sum is cut in PARTS, as many as there is room for:
part p of W_hh's columns stands in rows of its own, and part p of the operand in columns of its own. The blocks of the
result in which both are the same part are added up; the others are nobody's. GRU "reset_before" bf16 H=768 B=16, sm_90:
24 instructions m64n32 and 12 m64n64, not 96 m64n16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def loop_of_product(LOOP, COUNT):
    """The numbers of one product of COUNT gates, where LOOP.PARTS says how often a single gate has room."""
    parts = max(1, LOOP.PARTS // max(1, triton.next_power_of_2(COUNT)))  # COUNT is 0 where there is one product
    numbers = {"PARTS": parts}
    if parts > 1:
        part = triton.cdiv(LOOP.HEAD, 16 * parts) * 16
        chunks = triton.cdiv(part, LOOP.BLOCK_K)
        numbers |= {"BLOCK_B": LOOP.BLOCK_B * parts, "PART": part, "CHUNKS": chunks}
    return type(LOOP)(**vars(LOOP) | numbers)  # dataclasses.replace is no function that Triton lets it call


@triton.jit
def gates_units_and_parts(GATES: tl.constexpr, LOOP: tl.constexpr):
    """Which part of which gate of which of the program's units each of the product's rows is.

    A warp's 16 rows hold all of four units, and a thread, in rows r and r + 8, two gates of the same: sums and gates
    come together without shared memory. Stacked part by part it was 2,044 issue cycles a step and not 1,573.
    """
    m = tl.arange(0, GATES * LOOP.PARTS * LOOP.BLOCK_H)
    part = m // 4 % LOOP.PARTS
    gate = m // (4 * LOOP.PARTS) % GATES
    return gate, m // (4 * LOOP.PARTS * GATES) * 4 + m % 4, part


@triton.jit
def part_of_row(LOOP: tl.constexpr):
    """Which part of the sum each row of the gathered operand holds."""
    return tl.arange(0, LOOP.BLOCK_B) // (LOOP.BLOCK_B // LOOP.PARTS)


@triton.jit
def offsets_of_rows(WIDTH: tl.constexpr, LOOP: tl.constexpr):
    """Where each row of the gathered operand begins, WIDTH apart in memory."""
    row = tl.arange(0, LOOP.BLOCK_B)
    if LOOP.PARTS == 1:
        return row * WIDTH
    else:
        ROWS: tl.constexpr = LOOP.BLOCK_B // LOOP.PARTS
        return row % ROWS * WIDTH + part_of_row(LOOP) * LOOP.PART


@triton.jit
def for_each_part(of_row, LOOP: tl.constexpr):
    """What each row of the batch has, once for each part: [PARTS * rows]."""
    if LOOP.PARTS == 1:
        return of_row
    else:
        ROWS: tl.constexpr = of_row.shape[0]
        return tl.reshape(tl.broadcast_to(of_row[None, :], (LOOP.PARTS, ROWS)), (LOOP.PARTS * ROWS,))


@triton.jit
def split_parts(acc, LOOP: tl.constexpr):
    """The accumulator [gates * PARTS * BLOCK_H, PARTS * rows] as a tuple of gate tiles [BLOCK_H, rows]."""
    PARTS: tl.constexpr = LOOP.PARTS
    ROWS: tl.constexpr = LOOP.BLOCK_B // PARTS
    GATES: tl.constexpr = acc.shape[0] // (PARTS * LOOP.BLOCK_H)
    acc = tl.reshape(acc, (LOOP.BLOCK_H // 4, GATES, PARTS, 4, PARTS, ROWS))
    part = tl.arange(0, PARTS)
    same = part[None, None, :, None, None, None] == part[None, None, None, None, :, None]
    acc = tl.sum(tl.sum(tl.where(same, acc, 0.0), axis=4), axis=2)
    acc = tl.reshape(tl.permute(acc, (0, 2, 3, 1)), (LOOP.BLOCK_H, ROWS, GATES))
    if GATES == 1:
        return (tl.reshape(acc, (LOOP.BLOCK_H, ROWS)),)
    else:
        tl.static_assert(GATES == 2, "two gates beside two parts of each sum")
        first, second = tl.split(acc)
        return first, second
