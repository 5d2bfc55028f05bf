"""Tiles [units, rows] of a step: loads and stores in the layer's layouts, and arithmetic on tuples of them."""

from __future__ import annotations

import triton
import triton.language as tl

from .interleave import from_neighbours, neighbours
from .spin import read_once
from .walk import at_tile
from .weights import of_direction


@triton.jit
def load_bias(b_hh, me, CELL: tl.constexpr, LOOP: tl.constexpr):
    """b_hh as a tuple of float32 columns [BLOCK_H, 1], zeros where the layer has none."""
    GATES: tl.constexpr = CELL.gates
    tiles = ()
    for gate in tl.static_range(GATES):
        if b_hh is None:
            column = tl.zeros(me.unit.shape, dtype=tl.float32)
        else:
            pointer = of_direction(b_hh, me.direction, LOOP.DIRECTIONS)
            column = tl.load(pointer + gate * LOOP.HIDDEN + me.unit, mask=me.unit_ok, other=0.0).to(tl.float32)
        tiles = tiles + (column[:, None],)
    return tiles


@triton.jit
def load_parameters(parameters, me, CELL: tl.constexpr, LOOP: tl.constexpr):
    """The cell's own numbers per unit as a tuple of float32 columns [BLOCK_H, 1]; empty where it has none."""
    PARAMETERS: tl.constexpr = CELL.parameters
    columns = ()
    for index in tl.static_range(PARAMETERS):
        pointer = of_direction(parameters, me.direction, LOOP.DIRECTIONS) + index * LOOP.HIDDEN
        columns = columns + (tl.load(pointer + me.unit, mask=me.unit_ok, other=0.0).to(tl.float32)[:, None],)
    return columns


@triton.jit
def load_once(ptrs, mask, LOOP: tl.constexpr):
    """A tile of a sequence that the loop reads once: first out of L2, where the lines wait that a team polls. gx of
    LSTM bf16 H=768 B=16 alone is 98 KB a step: 500 steps of it are an H100's whole L2.

    Under "barrier" the compiler may move its own loads; with a block of PTX among them an RNN of 1024 in TF32 took 255
    registers and a spill, not 144.
    """
    if LOOP.EXCHANGE == "spin" and ptrs.dtype.element_ty.primitive_bitwidth == 32:
        mask = tl.broadcast_to(mask, ptrs.shape).to(tl.int32)
        words = tl.inline_asm_elementwise(read_once(), "=&r,l,r", [ptrs, mask], tl.int32, is_pure=False, pack=1)
        return words.to(ptrs.dtype.element_ty, bitcast=True)
    else:
        return tl.load(ptrs, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def load_gates(
    ptrs, mask, COUNT: tl.constexpr, APART: tl.constexpr, LOOP: tl.constexpr, DTYPE: tl.constexpr = tl.float32
):
    """COUNT tiles of a step, APART elements apart, read once; ptrs point at the first."""
    tiles = ()
    for gate in tl.static_range(COUNT):
        tiles = tiles + (load_once(ptrs + gate * APART, mask, LOOP).to(DTYPE),)
    return tiles


@triton.jit
def load_packed_gates(ptrs, mask, COUNT: tl.constexpr, LOOP: tl.constexpr):
    """`load_gates`, but as they lie in memory, for `unpacked`: they are carried through a step.

    Interleaved 16-bit numbers come as words of two units, half the loads. LSTM bf16 H=768 B=16, sm_90: 1,199 issue
    cycles a step and not 1,236.
    """
    if LOOP.INTERLEAVED and ptrs.dtype.element_ty.primitive_bitwidth == 16:
        ptrs, _ = tl.split(neighbours(ptrs.to(tl.int64), LOOP))
        mask, _ = tl.split(neighbours(mask.to(tl.int32), LOOP))
        return load_gates(ptrs.to(tl.pointer_type(tl.int32)), mask != 0, COUNT, LOOP.HIDDEN // 2, LOOP, tl.int32)
    else:
        return load_gates(ptrs, mask, COUNT, LOOP.HIDDEN, LOOP)


@triton.jit
def unpacked(tiles, DTYPE: tl.constexpr, COUNT: tl.constexpr, LOOP: tl.constexpr):
    """What `load_packed_gates` loaded from a tensor of this dtype, as float32 tiles."""
    if LOOP.INTERLEAVED and DTYPE.primitive_bitwidth == 16:
        gates = ()
        for gate in tl.static_range(COUNT):
            first = tiles[gate].to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
            second = (tiles[gate] >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
            gates = gates + (from_neighbours(first, second, LOOP),)
        return gates
    else:
        return tiles


@triton.jit
def store_gates(ptrs, tiles, mask, COUNT: tl.constexpr, APART: tl.constexpr):
    """Store COUNT tiles, APART elements apart, in the pointer's own dtype."""
    for gate in tl.static_range(COUNT):
        tl.store(ptrs + gate * APART, tiles[gate], mask=mask)


@triton.jit
def load_each(pointers, base, offsets, mask, COUNT: tl.constexpr):
    """The tile at the same place of each of COUNT tensors, float32."""
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + (tl.load(at_tile(pointers[index] + base, offsets), mask=mask, other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def load_states(pointers, offsets, mask, COUNT: tl.constexpr):
    """`load_each` of tensors without a time, or zeros where none are given."""
    if pointers is None:
        tiles = ()
        for _ in tl.static_range(COUNT):
            tiles = tiles + (tl.zeros(mask.shape, dtype=tl.float32),)
        return tiles
    else:
        return load_each(pointers, 0, offsets, mask, COUNT)


@triton.jit
def store_states(pointers, offsets, state, mask, COUNT: tl.constexpr):
    """One tile to each of COUNT tensors, in its own dtype."""
    for index in tl.static_range(COUNT):
        tl.store(pointers[index] + offsets, state[index], mask=mask)


@triton.jit
def store_later(later, base, offsets, state, mask, STATES: tl.constexpr):
    """The later states of one step, for the backward loop and for callers who ask for all c_t."""
    for index in tl.static_range(1, STATES):
        tl.store(at_tile(later[index - 1] + base, offsets), state[index], mask=mask)


@triton.jit
def load_zones(zones, now, tile, me, mask, CELL: tl.constexpr, LOOP: tl.constexpr):
    """How much of its old value each state keeps in this step, float32 tiles."""
    base = (now.first + tile.batch0) * zones.row + me.direction.to(tl.int64) * LOOP.HIDDEN * zones.unit
    offsets = tile.row[None, :] * zones.row + me.unit[:, None] * zones.unit
    return load_each(zones.shares, base, offsets, mask, CELL.states)


@triton.jit
def store_row_sums(pointer, tiles, me, COUNT: tl.constexpr, HIDDEN: tl.constexpr):
    """The sum over the batch tile of each of COUNT tiles, HIDDEN elements apart."""
    for index in tl.static_range(COUNT):
        tl.store(pointer + index * HIDDEN + me.unit, tl.sum(tiles[index], axis=1), mask=me.unit_ok)


@triton.jit
def masked(tiles, mask, COUNT: tl.constexpr):
    """Zeros outside the mask. An infinity there (relu's h, a gradient) times a zero weight would become NaN."""
    kept = ()
    for index in tl.static_range(COUNT):
        kept = kept + (tl.where(mask, tiles[index], 0.0),)
    return kept


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
def add_to_first(state, share, STATES: tl.constexpr):
    """The tuple with `share` added to its first element."""
    tiles = (state[0] + share,)
    for index in tl.static_range(1, STATES):
        tiles = tiles + (state[index],)
    return tiles
