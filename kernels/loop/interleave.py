"""Gates interleaved along the rows of the product, so that all gates of a unit are a single warp's (Loop.INTERLEAVED).

Stacked as usual, gate by gate, the four warps of a wgmma m64n16 hold a gate each, and every step changes the layout
through shared memory: two barriers. Interleaved, a warp's 16 rows are four gates of four units; eight shuffles give
each thread all gates of two neighbouring units of a row of the batch, which are one word of h. LSTM bf16 H=768 B=16,
sm_90: 2 barriers a step and not 4, 1,199 issue cycles and not 1,254.

Asked for in Triton's own words the same trade is refused by 3.7.1 and takes more barriers with 3.6.0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def units_of_tile(LOOP: tl.constexpr):
    """Which of the program's units each row of a gate's tile is. Interleaved, rows i and i + BLOCK_H // 2 are
    neighbours."""
    i = tl.arange(0, LOOP.BLOCK_H)
    if LOOP.INTERLEAVED:
        return i % (LOOP.BLOCK_H // 2) * 2 + i // (LOOP.BLOCK_H // 2)
    else:
        return i


@triton.jit
def gates_and_units(GATES: tl.constexpr, LOOP: tl.constexpr):
    """Which gate of which of the program's units each of the product's rows is; of a product that programs share the
    units of the first, then of the second, and so on."""
    m = tl.arange(0, LOOP.SPLIT_K * GATES * LOOP.BLOCK_H)
    if LOOP.INTERLEAVED:
        # A slab of 16 rows is one warp's: 4 gates of 4 units. Bits of a row from the lowest on: the gate's low bit,
        # the unit's low bit, its next one, the gate's high bit.
        return m % 2 + m // 8 % 2 * 2, m // 16 * 4 + m // 4 % 2 * 2 + m // 2 % 2
    else:
        return m // LOOP.BLOCK_H % GATES, m // (LOOP.BLOCK_H * GATES) * LOOP.BLOCK_H + m % LOOP.BLOCK_H


@triton.jit
def operand_rows(words, LOOP: tl.constexpr):
    """The operand's rows [BLOCK_B, ..] in the order in which the trade brings the product's columns out right: row j
    is column 2 j, from the middle on 2 j + 1 - BLOCK_B."""
    if LOOP.INTERLEAVED:
        halves = tl.reshape(words, (2, words.shape[0] // 2, words.shape[1]))
        return tl.reshape(tl.permute(halves, (1, 0, 2)), (words.shape[0], words.shape[1]))
    else:
        return words


@triton.jit
def neighbours(numbers, LOOP: tl.constexpr):
    """Numbers [units, rows] with neighbouring units side by side: [units / 2, rows, 2]."""
    UNITS: tl.constexpr = numbers.shape[0] // 2
    ROWS: tl.constexpr = numbers.shape[1]
    if LOOP.INTERLEAVED:
        return tl.permute(tl.reshape(numbers, (2, UNITS, ROWS)), (1, 2, 0))
    else:
        return tl.permute(tl.reshape(numbers, (UNITS, 2, ROWS)), (0, 2, 1))


@triton.jit
def from_neighbours(first, second, LOOP: tl.constexpr):
    """Two tiles [units / 2, rows] of neighbouring units as one [units, rows]."""
    UNITS: tl.constexpr = first.shape[0] * 2
    ROWS: tl.constexpr = first.shape[1]
    if LOOP.INTERLEAVED:
        return tl.reshape(tl.permute(tl.join(first, second), (2, 0, 1)), (UNITS, ROWS))
    else:
        return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (UNITS, ROWS))


@triton.constexpr_function
def trade():
    """PTX: a thread's eight numbers of an accumulator m64n16 (two columns, rows r and r + 8, columns c and c + 8): its
    two columns for two units, with the lane 8 apart, then its columns c and c + 8 for two gates, with that 4 apart."""
    lines = ["{", ".reg .pred p8, p4;", ".reg .b32 lane, t, give, got, " + ", ".join(f"v{i}" for i in range(8)) + ";"]
    lines += ["mov.u32 lane, %laneid;"]
    lines += ["and.b32 t, lane, 8;", "setp.ne.u32 p8, t, 0;", "and.b32 t, lane, 4;", "setp.ne.u32 p4, t, 0;"]
    lines += [f"mov.b32 v{i}, ${8 + i};" for i in range(8)]
    for bit, apart, pairs in (("p8", 8, ((0, 1), (2, 3), (4, 5), (6, 7))), ("p4", 4, ((0, 4), (1, 5), (2, 6), (3, 7)))):
        for a, b in pairs:
            lines += [
                f"selp.b32 give, v{a}, v{b}, {bit};",
                f"shfl.sync.bfly.b32 got, give, {apart}, 31, -1;",
                f"selp.b32 v{a}, got, v{a}, {bit};",
                f"selp.b32 v{b}, v{b}, got, {bit};",
            ]
    return "\n".join([*lines, *(f"mov.b32 ${i}, v{i};" for i in range(8)), "}"])


@triton.constexpr_function
def trade_constraints():
    return ",".join(["=&r"] * 8 + ["r"] * 8)


@triton.jit
def split_interleaved(acc, LOOP: tl.constexpr):
    """The accumulator [4 * BLOCK_H, BLOCK_B] of an m64n16 as four gate tiles [BLOCK_H, BLOCK_B]."""
    bits = acc.to(tl.int32, bitcast=True)
    bits = tl.inline_asm_elementwise(trade(), trade_constraints(), [bits], dtype=tl.int32, is_pure=False, pack=8)
    acc = bits.to(tl.float32, bitcast=True)
    # In place of rows and columns stand now [slab, gate's high bit, unit's bit 1, column's bit 0, its bit 3; gate's low
    # bit, column's bits 1 and 2, unit's bit 0].
    parts = tl.reshape(acc, (LOOP.BLOCK_H // 4, 2, 2, 2, 2, 2, LOOP.BLOCK_B // 4, 2))
    parts = tl.reshape(tl.permute(parts, (7, 0, 2, 3, 4, 6, 5, 1)), (LOOP.BLOCK_H, LOOP.BLOCK_B, 2, 2))
    low, high = tl.split(parts)
    gate0, gate1 = tl.split(low)
    gate2, gate3 = tl.split(high)
    return gate0, gate1, gate2, gate3
