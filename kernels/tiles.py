"""Tiles of a time loop: which row of W_hh is which gate and unit, loads and stores.

Inside a program the hidden units run along rows and the batch along columns, so a small batch is
the small dimension of the dot and costs no padding to 64. The gates of a unit block are stacked in
M: row g * BLOCK_H + u of the weight tile is gate g of unit u. `load_weights` and `split_gates` are
the only two places that know this order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def of_direction(pointers, direction, DIRECTIONS: tl.constexpr):
    """The direction's own pointer: a select of two scalars, made once before the loop."""
    if DIRECTIONS == 1:
        return pointers[0]
    else:
        return tl.where(direction == 0, pointers[0], pointers[1])


@triton.jit
def high_part(tile):
    """A float32 tile with the 13 bits cut off that TF32 does not hold."""
    return (tile.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


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
        if PRECISION == "tf32x3":
            high = high_part(tile)
            rests = rests + (tile - high,)
            tile = high
        chunks = chunks + (tile,)
        # One chunk on its way to shared memory at a time: all at once are 192 registers (LSTM, H=768).
        tl.debug_barrier()
    return chunks + rests


@triton.jit
def multiply(weights, h, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """W_hh h from resident chunks and the tuple of h's chunks [BLOCK_K, BLOCK_B], accumulated in float32.

    "tf32x3" is float32 on the matrix unit: of both operands' high parts and rests, the three largest
    products. Done here because the compiler's own spills: LSTM float32 H=256, sm_100: 2,552 bytes.
    """
    acc = tl.zeros((weights[0].shape[0], h[0].shape[1]), dtype=tl.float32)
    if PRECISION == "tf32x3":
        for chunk in tl.static_range(CHUNKS):
            high = high_part(h[chunk])
            acc = tl.dot(weights[chunk], h[chunk] - high, acc, input_precision="tf32")
            acc = tl.dot(weights[CHUNKS + chunk], high, acc, input_precision="tf32")
        # An infinite operand has a rest of inf - inf: what it does to the product is the high parts' to say.
        acc = tl.where(acc == acc, acc, 0.0)
        for chunk in tl.static_range(CHUNKS):
            acc = tl.dot(weights[chunk], high_part(h[chunk]), acc, input_precision="tf32")
    else:
        for chunk in tl.static_range(CHUNKS):
            acc = tl.dot(weights[chunk], h[chunk], acc, input_precision=PRECISION)
    return acc


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
def time_of(step, T, reverse):
    """The time index that a direction visits at a step, 64-bit: offsets t * stride may pass 2^31."""
    return tl.where(reverse, T - 1 - step, step).to(tl.int64)


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
