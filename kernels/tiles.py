"""Tiles of a time loop: which row of W_hh is which gate and unit, loads and stores.

Inside a program the hidden units run along rows and the batch along columns, so a small batch is
the small dimension of the dot and costs no padding to 64. The gates of a unit block are stacked in
M: row g * BLOCK_H + u of the weight tile is gate g of unit u. `load_weights` and `split_gates` are
the only two places that know this order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .walk import at_tile


@triton.jit
def of_direction(pointers, direction, DIRECTIONS: tl.constexpr):
    """The direction's own pointer: a select of two scalars, made once before the loop."""
    if DIRECTIONS == 1:
        return pointers[0]
    else:
        return tl.where(direction == 0, pointers[0], pointers[1])


@triton.jit
def high_part(tile):
    """A float32 tile rounded to the 11 bits of TF32. Cut off instead, what three products drop is 4 times as much."""
    rounded = ((tile.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return tl.where(tile == tile, rounded, tile)


@triton.jit
def add_chunk(chunks, rests, tile, PRECISION: tl.constexpr):
    """Both tuples with one more resident chunk of W_hh: its high part and, for "tf32x3", the rest."""
    if PRECISION == "tf32x3":
        high = high_part(tile)
        rests = rests + (tile - high,)
        chunks = chunks + (high,)
    else:
        chunks = chunks + (tile,)
    # One chunk on its way to shared memory at a time: all at once are 192 registers (LSTM, H=768).
    tl.debug_barrier()
    return chunks, rests


@triton.jit
def load_weights(
    w_ptr,  # [GATES * HIDDEN, HIDDEN], contiguous
    unit0,  # first hidden unit of this program
    GATES: tl.constexpr,
    PADDED_GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """This program's rows of W_hh as a tuple of tiles [PADDED_GATES * BLOCK_H, BLOCK_K], zero where masked.

    "tf32x3": the high part of every chunk, then the rest of every chunk.
    """
    m = tl.arange(0, PADDED_GATES * BLOCK_H)
    gate = m // BLOCK_H
    unit = unit0 + m % BLOCK_H
    row = gate * HIDDEN + unit
    row_ok = (gate < GATES) & (unit < HIDDEN)
    chunks = ()
    rests = ()
    for chunk in tl.static_range((HIDDEN + BLOCK_K - 1) // BLOCK_K):
        k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = row_ok[:, None] & (k < HIDDEN)[None, :]
        tile = tl.load(w_ptr + row[:, None] * HIDDEN + k[None, :], mask=mask, other=0.0)
        chunks, rests = add_chunk(chunks, rests, tile, PRECISION)
    return chunks + rests


@triton.jit
def load_weights_transposed(
    w_ptr,  # [GATES * HIDDEN, HIDDEN], contiguous
    unit0,  # first column of the tile
    part,  # which PART rows of W_hh
    ROWS: tl.constexpr,
    PART: tl.constexpr,
    GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ROWS columns of W_hh, their part of all gates' rows, transposed for W^T da: tiles [ROWS, BLOCK_K]."""
    unit = unit0 + tl.arange(0, ROWS)
    chunks = ()
    rests = ()
    for chunk in tl.static_range((PART + BLOCK_K - 1) // BLOCK_K):
        k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        row = part * PART + k
        mask = (unit < HIDDEN)[:, None] & ((k < PART) & (row < GATES * HIDDEN))[None, :]
        tile = tl.load(w_ptr + row[None, :] * HIDDEN + unit[:, None], mask=mask, other=0.0)
        chunks, rests = add_chunk(chunks, rests, tile, PRECISION)
    return chunks + rests


@triton.jit
def load_gate_blocks(w_ptr, GATES: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr):
    """All of W_hh transposed, for one program: a tile [BLOCK_H, BLOCK_H] per gate, unit of h by unit of the gate."""
    unit = tl.arange(0, BLOCK_H)
    mask = (unit < HIDDEN)[:, None] & (unit < HIDDEN)[None, :]
    blocks = ()
    rests = ()
    for gate in tl.static_range(GATES):
        offsets = (gate * HIDDEN + unit[None, :]) * HIDDEN + unit[:, None]
        tile = tl.load(w_ptr + offsets, mask=mask, other=0.0)
        blocks, rests = add_chunk(blocks, rests, tile, PRECISION)
    return blocks + rests


@triton.jit
def zero_sums(weights, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    """Accumulators for `add_product`: one, and for "tf32x3" one more for the small products."""
    zeros = tl.zeros((weights[0].shape[0], COLUMNS), dtype=tl.float32)
    if PRECISION == "tf32x3":
        return zeros, zeros
    else:
        return (zeros,)


@triton.jit
def add_product(sums, weights, index: tl.constexpr, h, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """sums + weights[index] @ h, in float32.

    "tf32x3" is float32 on the matrix unit: of both operands' high parts and rests, the three largest
    products. Done here because the compiler's own spills: LSTM float32 H=256, sm_100: 2,552 bytes.
    """
    if PRECISION == "tf32x3":
        high = high_part(h)
        low = tl.dot(weights[index], h - high, sums[1], input_precision="tf32")
        low = tl.dot(weights[CHUNKS + index], high, low, input_precision="tf32")
        return tl.dot(weights[index], high, sums[0], input_precision="tf32"), low
    else:
        return (tl.dot(weights[index], h, sums[0], input_precision=PRECISION),)


@triton.jit
def total(sums, PRECISION: tl.constexpr):
    """The product, once every chunk is added."""
    if PRECISION == "tf32x3":
        # An infinite operand has a rest of inf - inf: what it does to the product is the high parts' to say.
        return sums[0] + tl.where(sums[1] == sums[1], sums[1], 0.0)
    else:
        return sums[0]


@triton.jit
def split_gates(acc, PADDED_GATES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The accumulator [PADDED_GATES * BLOCK_H, BLOCK_B] as a tuple of gate tiles [BLOCK_H, BLOCK_B]."""
    if PADDED_GATES == 1:
        return (acc,)
    elif PADDED_GATES == 2:
        first, second = tl.split(tl.permute(tl.reshape(acc, (2, BLOCK_H, BLOCK_B)), (1, 2, 0)))
        return first, second
    else:
        tl.static_assert(PADDED_GATES == 4, "at most four gates")
        # [high, low, unit, batch] -> [unit, batch, high, low]; tl.split takes the last dimension apart.
        even, odd = tl.split(tl.permute(tl.reshape(acc, (2, 2, BLOCK_H, BLOCK_B)), (2, 3, 0, 1)))
        gate0, gate2 = tl.split(even)
        gate1, gate3 = tl.split(odd)
        return gate0, gate1, gate2, gate3


@triton.jit
def load_bias(b_hh, direction, unit, unit_ok, GATES: tl.constexpr, HIDDEN: tl.constexpr, DIRECTIONS: tl.constexpr):
    """b_hh as a tuple of float32 columns [BLOCK_H, 1], zeros where the layer has none."""
    tiles = ()
    for gate in tl.static_range(GATES):
        if b_hh is None:
            column = tl.zeros(unit.shape, dtype=tl.float32)
        else:
            pointer = of_direction(b_hh, direction, DIRECTIONS)
            column = tl.load(pointer + gate * HIDDEN + unit, mask=unit_ok, other=0.0).to(tl.float32)
        tiles = tiles + (column[:, None],)
    return tiles


@triton.jit
def load_gates(ptrs, mask, GATES: tl.constexpr, HIDDEN: tl.constexpr):
    """The input projection of one step as a tuple of float32 gate tiles; ptrs point at gate 0."""
    tiles = ()
    for gate in tl.static_range(GATES):
        tiles = tiles + (tl.load(ptrs + gate * HIDDEN, mask=mask, other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def store_gates(ptrs, tiles, mask, COUNT: tl.constexpr, HIDDEN: tl.constexpr):
    """Store a tuple of gate tiles, gate by gate HIDDEN elements apart, in the pointer's own dtype."""
    for gate in tl.static_range(COUNT):
        tl.store(ptrs + gate * HIDDEN, tiles[gate], mask=mask)


@triton.jit
def load_parameters(
    pointers, direction, unit, unit_ok, COUNT: tl.constexpr, HIDDEN: tl.constexpr, DIRECTIONS: tl.constexpr
):
    """The cell's own numbers per unit as a tuple of float32 columns [BLOCK_H, 1]; empty where it has none."""
    columns = ()
    for index in tl.static_range(COUNT):
        pointer = of_direction(pointers, direction, DIRECTIONS) + index * HIDDEN
        columns = columns + (tl.load(pointer + unit, mask=unit_ok, other=0.0).to(tl.float32)[:, None],)
    return columns


@triton.jit
def load_factors(pointer, offsets, mask):
    """A float32 tile of factors."""
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def zeros_like_all(tiles, COUNT: tl.constexpr):
    zeros = ()
    for index in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros_like(tiles[index]),)
    return zeros


@triton.jit
def add_all(tiles, others, COUNT: tl.constexpr):
    """Two tuples of tiles, added."""
    sums = ()
    for index in tl.static_range(COUNT):
        sums = sums + (tiles[index] + others[index],)
    return sums


@triton.jit
def add_masked(tiles, others, mask, COUNT: tl.constexpr):
    """`add_all`, leaving out what is not in the mask."""
    sums = ()
    for index in tl.static_range(COUNT):
        sums = sums + (tiles[index] + tl.where(mask, others[index], 0.0),)
    return sums


@triton.jit
def store_row_sums(pointer, tiles, unit, unit_ok, COUNT: tl.constexpr, HIDDEN: tl.constexpr):
    """The sum over the batch tile of each of COUNT tiles, HIDDEN elements apart."""
    for index in tl.static_range(COUNT):
        tl.store(pointer + index * HIDDEN + unit, tl.sum(tiles[index], axis=1), mask=unit_ok)


@triton.jit
def add_to_first(state, tile, STATES: tl.constexpr):
    """The tuple with `tile` added to its first element."""
    tiles = (state[0] + tile,)
    for index in tl.static_range(1, STATES):
        tiles = tiles + (state[index],)
    return tiles


@triton.jit
def store_kept(kept, base, offsets, state, mask, STATES: tl.constexpr):
    """The later states of one step, for the backward loop and for callers who ask for all c_t."""
    for index in tl.static_range(1, STATES):
        tl.store(at_tile(kept[index - 1] + base, offsets), state[index], mask=mask)


@triton.jit
def load_states(initial, offsets, mask, STATES: tl.constexpr):
    """Initial states, one pointer each, as a tuple of float32 tiles; zeros where none are given."""
    tiles = ()
    for state in tl.static_range(STATES):
        if initial is None:
            tile = tl.zeros(mask.shape, dtype=tl.float32)
        else:
            tile = tl.load(initial[state] + offsets, mask=mask, other=0.0).to(tl.float32)
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def store_states(pointers, offsets, state, mask, STATES: tl.constexpr):
    """Final states, one pointer each, in the pointer's own dtype."""
    for index in tl.static_range(STATES):
        tl.store(pointers[index] + offsets, state[index], mask=mask)


@triton.jit
def recurrent_gates(
    acc, bias, GATES: tl.constexpr, PADDED_GATES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr
):
    """W_hh h + b_hh as a tuple of gate tiles, from the accumulator of the dot."""
    split = split_gates(acc, PADDED_GATES, BLOCK_H, BLOCK_B)
    tiles = ()
    for gate in tl.static_range(GATES):
        tiles = tiles + (split[gate] + bias[gate],)
    return tiles
