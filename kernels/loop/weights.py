"""The resident weights: which rows of W_hh a program keeps on chip, and products with them.

Inside a program the hidden units run along rows and the batch along columns, so a small batch is
the small dimension of the dot and costs no padding to 64. The gates of a unit block are stacked in
M: row g * BLOCK_H + u of the weight tile is gate g of unit u, unless the gates are interleaved (see `interleave`).
`load_weights` and `split_gates` are the only two places that know this order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .interleave import gates_and_units, split_interleaved
from .parts import gates_units_and_parts, split_parts


@triton.jit
def of_direction(pointers, direction, DIRECTIONS: tl.constexpr):
    """The direction's own pointer: a select of two scalars, made once before the loop."""
    if DIRECTIONS == 1:
        return pointers[0]
    else:
        return tl.where(direction == 0, pointers[0], pointers[1])


@triton.jit
def _high_part(numbers):
    """float32 numbers rounded to the 11 bits of TF32. Cut off instead, what three products drop is 4 times as much."""
    rounded = ((numbers.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return tl.where(numbers == numbers, rounded, numbers)


@triton.jit
def _add_chunk(chunks, rests, chunk, PRECISION: tl.constexpr):
    """Both tuples with one more resident chunk of W_hh: its high part and, for "tf32x3", the rest."""
    if PRECISION == "tf32x3":
        high = _high_part(chunk)
        rests = rests + (chunk - high,)
        chunks = chunks + (high,)
    else:
        chunks = chunks + (chunk,)
    # One chunk on its way to shared memory at a time: all at once are 192 registers (LSTM, H=768).
    tl.debug_barrier()
    return chunks, rests


@triton.jit
def load_weights(
    w_ptr,  # [GATES * HIDDEN, HEAD], contiguous
    me,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    LOOP: tl.constexpr,  # of this product (see `parts.loop_of_product`)
):
    """The rows of W_hh of this program's units, of COUNT gates from FIRST on, as a tuple of tiles [PARTS * padded
    gates * BLOCK_H, BLOCK_K], zero where masked; where SPLIT_K programs share a product its part of the columns of all
    their rows, SPLIT_K times as many.

    "tf32x3": the high part of every chunk, then the rest of every chunk.
    """
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    HEAD: tl.constexpr = LOOP.HEAD
    PRECISION: tl.constexpr = LOOP.PRECISION
    GATES: tl.constexpr = triton.next_power_of_2(COUNT)
    columns = HEAD
    if LOOP.PARTS > 1:
        gate, unit, part = gates_units_and_parts(GATES, LOOP)
        w_ptr += part[:, None] * LOOP.PART
        columns = tl.minimum(HEAD - part * LOOP.PART, LOOP.PART)[:, None]
    else:
        gate, unit = gates_and_units(GATES, LOOP)
    split = me.number % LOOP.SPLIT_K
    if LOOP.SPLIT_K > 1:
        w_ptr += split * LOOP.PART
        columns = tl.minimum(HEAD - split * LOOP.PART, LOOP.PART)
    unit = (me.number - split) * LOOP.BLOCK_H + unit
    row = (FIRST + gate) * LOOP.HIDDEN + me.head * HEAD + unit
    row_ok = (gate < COUNT) & (unit < HEAD)
    chunks = ()
    rests = ()
    for chunk in tl.static_range(CHUNKS):
        k = chunk * LOOP.BLOCK_K + tl.arange(0, LOOP.BLOCK_K)
        mask = row_ok[:, None] & (k[None, :] < columns)
        tile = tl.load(w_ptr + row[:, None] * HEAD + k[None, :], mask=mask, other=0.0)
        chunks, rests = _add_chunk(chunks, rests, tile, PRECISION)
    return chunks + rests


@triton.jit
def load_weights_transposed(
    w_ptr,  # [GATES * HIDDEN, HEAD], contiguous
    me,
    part,  # which PART rows of the head's W_hh
    CELL: tl.constexpr,
    LOOP: tl.constexpr,
):
    """SPLIT_K * BLOCK_H columns of W_hh, their part of all gates' rows, transposed for W^T da: tiles [.., BLOCK_K]."""
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    HEAD: tl.constexpr = LOOP.HEAD
    PRECISION: tl.constexpr = LOOP.PRECISION
    unit = (me.number - part) * LOOP.BLOCK_H + tl.arange(0, LOOP.SPLIT_K * LOOP.BLOCK_H)
    chunks = ()
    rests = ()
    for chunk in tl.static_range(CHUNKS):
        k = chunk * LOOP.BLOCK_K + tl.arange(0, LOOP.BLOCK_K)
        row = part * LOOP.PART + k
        mask = (unit < HEAD)[:, None] & ((k < LOOP.PART) & (row < CELL.gates * HEAD))[None, :]
        if LOOP.HEADS > 1:
            row = row // HEAD * LOOP.HIDDEN + me.head * HEAD + row % HEAD
        tile = tl.load(w_ptr + row[None, :] * HEAD + unit[:, None], mask=mask, other=0.0)
        chunks, rests = _add_chunk(chunks, rests, tile, PRECISION)
    return chunks + rests


@triton.jit
def load_gate_blocks(w_ptr, me, CELL: tl.constexpr, LOOP: tl.constexpr):
    """All of a head's W_hh transposed, for one program: a tile [BLOCK_H, BLOCK_H] per gate, unit of h by unit of the
    gate."""
    GATES: tl.constexpr = CELL.gates
    HEAD: tl.constexpr = LOOP.HEAD
    PRECISION: tl.constexpr = LOOP.PRECISION
    unit = tl.arange(0, LOOP.BLOCK_H)
    mask = (unit < HEAD)[:, None] & (unit < HEAD)[None, :]
    blocks = ()
    rests = ()
    for gate in tl.static_range(GATES):
        offsets = (gate * LOOP.HIDDEN + me.head * HEAD + unit[None, :]) * HEAD + unit[:, None]
        tile = tl.load(w_ptr + offsets, mask=mask, other=0.0)
        blocks, rests = _add_chunk(blocks, rests, tile, PRECISION)
    return blocks + rests


@triton.jit
def zero_sums(weights, LOOP: tl.constexpr):
    """Accumulators for `add_product`: one, and for "tf32x3" one more for the small products."""
    COLUMNS: tl.constexpr = LOOP.BLOCK_B
    zeros = tl.zeros((weights[0].shape[0], COLUMNS), dtype=tl.float32)
    if LOOP.PRECISION == "tf32x3":
        return zeros, zeros
    else:
        return (zeros,)


@triton.jit
def add_product(sums, weights, index: tl.constexpr, operand, LOOP: tl.constexpr):
    """sums + weights[index] @ operand, in float32.

    "tf32x3" is float32 on the matrix unit: of both operands' high parts and rests, the three largest
    products. Done here because the compiler's own spills: LSTM float32 H=256, sm_100: 2,552 bytes.
    """
    PRECISION: tl.constexpr = LOOP.PRECISION
    if PRECISION == "tf32x3":
        high = _high_part(operand)
        low = tl.dot(weights[index], operand - high, sums[1], input_precision="tf32")
        low = tl.dot(weights[LOOP.CHUNKS + index], high, low, input_precision="tf32")
        return tl.dot(weights[index], high, sums[0], input_precision="tf32"), low
    else:
        return (tl.dot(weights[index], operand, sums[0], input_precision=PRECISION),)


@triton.jit
def total(sums, LOOP: tl.constexpr):
    """The product, once every chunk is added."""
    if LOOP.PRECISION == "tf32x3":
        # An infinite operand has a rest of inf - inf: what it does to the product is the high parts' to say.
        return sums[0] + tl.where(sums[1] == sums[1], sums[1], 0.0)
    else:
        return sums[0]


@triton.jit
def split_gates(acc, LOOP: tl.constexpr):
    """The accumulator [padded gates * BLOCK_H, BLOCK_B] as a tuple of gate tiles [BLOCK_H, BLOCK_B]."""
    BLOCK_H: tl.constexpr = LOOP.BLOCK_H
    BLOCK_B: tl.constexpr = LOOP.BLOCK_B
    PADDED_GATES: tl.constexpr = acc.shape[0] // BLOCK_H
    if LOOP.PARTS > 1:
        return split_parts(acc, LOOP)
    elif PADDED_GATES == 1:
        return (acc,)
    elif PADDED_GATES == 2:
        first, second = tl.split(tl.permute(tl.reshape(acc, (2, BLOCK_H, BLOCK_B)), (1, 2, 0)))
        return first, second
    elif LOOP.INTERLEAVED:
        return split_interleaved(acc, LOOP)
    else:
        tl.static_assert(PADDED_GATES == 4, "at most four gates")
        # [high, low, unit, batch] -> [unit, batch, high, low]; tl.split takes the last dimension apart.
        even, odd = tl.split(tl.permute(tl.reshape(acc, (2, 2, BLOCK_H, BLOCK_B)), (2, 3, 0, 1)))
        gate0, gate2 = tl.split(even)
        gate1, gate3 = tl.split(odd)
        return gate0, gate1, gate2, gate3


@triton.jit
def recurrent_gates(acc, bias, FIRST: tl.constexpr, COUNT: tl.constexpr, LOOP: tl.constexpr):
    """W_hh h + b_hh as a tuple of gate tiles, COUNT from FIRST on, from the accumulator of their product, or of all
    gates'."""
    BEFORE: tl.constexpr = 0 if LOOP.PARTS > 1 else FIRST
    split = split_gates(acc, LOOP)
    tiles = ()
    for gate in tl.static_range(COUNT):
        tiles = tiles + (split[BEFORE + gate] + bias[FIRST + gate],)
    return tiles
