"""How the programs of a team hand h_t to each other through global memory.

y is the channel in both protocols: h_t is written once, to the place where the caller wants it,
and every step has memory of its own, so there is no reuse hazard.

"dataflow"  y is filled with SENTINEL words before the launch. A reader re-reads its tile, past the
            L1, until no element is the sentinel. Every element is its own flag: no barrier, no
            fence, one L2 round trip a step.
"barrier"   a counter per team, zero at launch and only ever increased. A writer adds one, with
            release, after its stores; a reader waits, with acquire, for all members of the step.

The sentinel is all ones, a NaN that no arithmetic produces; `publish` rewrites it should a user's
own NaN payload survive to that point, so a NaN in h never looks like "not yet written".

Every wait is bounded by a budget of polls. A program whose wait runs out writes to the status word
and goes on with a budget of zero: it waits no more, its results are NaN, and it ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import add_product, total, transposed_by_gate, zero_sums

SENTINEL = -1  # every bit set, in any integer width; the kernels write it as a literal


@triton.jit
def _bits(tile):
    """A float tile as signed integers of the same width."""
    if tile.dtype.primitive_bitwidth == 16:
        return tile.to(tl.int16, bitcast=True)
    else:
        return tile.to(tl.int32, bitcast=True)


@triton.jit
def _without_sentinel(tile):
    """The tile with another NaN where it holds the sentinel; on integers, so that no NaN rule applies."""
    bits = _bits(tile)
    if tile.dtype.primitive_bitwidth == 16:
        other_nan = 0x7FFF
    else:
        other_nan = 0x7FFFFFFF
    return tl.where(bits == -1, tl.full(bits.shape, other_nan, bits.dtype), bits).to(tile.dtype, bitcast=True)


@triton.jit
def _read_chunk(base, row_offsets, row_ok, chunk: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr):
    """One chunk of all rows, [ROWS, BLOCK_K], straight from L2."""
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = row_ok[:, None] & (k < HIDDEN)[None, :]
    if len(base.shape) == 0:
        pointers = base + row_offsets[:, None] + k[None, :]
    else:
        pointers = (base + row_offsets)[:, None] + k[None, :]
    return tl.load(pointers, mask=mask, other=0.0, volatile=True)


@triton.jit
def _read(base, row_offsets, row_ok, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr):
    """All chunks as a tuple; all loads are issued before any is used."""
    tiles = ()
    for chunk in tl.static_range((HIDDEN + BLOCK_K - 1) // BLOCK_K):
        tiles = tiles + (_read_chunk(base, row_offsets, row_ok, chunk, HIDDEN, BLOCK_K),)
    return tiles


@triton.jit
def _unwritten(tiles, CHUNKS: tl.constexpr):
    """1 if any element is still the sentinel: one reduction over all chunks."""
    found = _bits(tiles[0]) == -1
    for chunk in tl.static_range(1, CHUNKS):
        found = found | (_bits(tiles[chunk]) == -1)
    # Flat, not axis by axis: 18 registers less for an RNN of 1000, which spills 24 bytes on Triton 3.6 otherwise.
    flat = tl.reshape(found.to(tl.int32), (found.shape[0] * found.shape[1],), can_reorder=True)
    return tl.max(flat, axis=0)


@triton.jit
def gather_product(
    weights,  # resident chunks of W_hh: [.., BLOCK_H, BLOCK_K] each
    base,  # what the team has published of one step for this batch tile: a pointer, or one for each row
    row_offsets,  # [GATES_IN_BATCH * BLOCK_B], each row HIDDEN elements wide
    row_ok,  # [GATES_IN_BATCH * BLOCK_B]
    must_wait,  # False at the first step: h_0 is the caller's and may hold any bit pattern
    arrivals_ptr,  # this team's counter ("barrier")
    expected,  # arrivals to wait for ("barrier")
    budget,  # polls left
    status_ptr,
    EXCHANGE: tl.constexpr,
    PRECISION: tl.constexpr,
    GATES_IN_BATCH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """W times the rows, [.., BLOCK_H, BLOCK_B], once the team has published them; and the budget that is left.

    NaN, and a budget of 0, if the wait ran out.
    """
    CHUNKS: tl.constexpr = (HIDDEN + BLOCK_K - 1) // BLOCK_K
    polls = 0
    sums = zero_sums(weights, BLOCK_B, PRECISION)
    if EXCHANGE == "barrier":
        missing = must_wait & (tl.atomic_add(arrivals_ptr, 0, sem="acquire") < expected)
        while missing & (polls < budget):
            missing = tl.atomic_add(arrivals_ptr, 0, sem="acquire") < expected
            polls += 1
        for chunk in tl.static_range(CHUNKS):
            # One chunk after the other: all of an LSTM's da at H=1024 would be 256 registers.
            tile = _read_chunk(base, row_offsets, row_ok, chunk, HIDDEN, BLOCK_K)
            operand = transposed_by_gate(tile, GATES_IN_BATCH, BLOCK_B, BLOCK_K)
            sums = add_product(sums, weights, chunk, operand, CHUNKS, PRECISION)
    else:
        # One read in the code, not one before the loop and one in it: LSTM bf16 H=1024 takes 126 registers, not 230.
        tiles = ()
        for _ in tl.static_range(CHUNKS):
            tiles = tiles + (tl.zeros((row_ok.shape[0], BLOCK_K), dtype=base.dtype.element_ty),)
        missing = budget >= 0
        while missing & (polls <= budget):
            tiles = _read(base, row_offsets, row_ok, HIDDEN, BLOCK_K)
            missing = must_wait & (_unwritten(tiles, CHUNKS) != 0)
            polls += 1
        for chunk in tl.static_range(CHUNKS):
            operand = transposed_by_gate(tiles[chunk], GATES_IN_BATCH, BLOCK_B, BLOCK_K)
            sums = add_product(sums, weights, chunk, operand, CHUNKS, PRECISION)
    if missing:
        budget = 0
        tl.store(status_ptr, 1)
    product = total(sums, PRECISION)
    return tl.where(budget > 0, product, float("nan")), budget


@triton.jit
def publish(ptrs, tiles, mask, arrivals_ptr, EXCHANGE: tl.constexpr, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """Store COUNT float32 tiles, STRIDE elements apart, in the pointer's dtype, for the team to read."""
    for index in tl.static_range(COUNT):
        value = tiles[index].to(ptrs.dtype.element_ty)
        if EXCHANGE == "dataflow":
            value = _without_sentinel(value)
        tl.store(ptrs + index * STRIDE, value, mask=mask)
    if EXCHANGE == "barrier":
        # Every thread's stores before the one thread's release.
        tl.debug_barrier()
        tl.atomic_add(arrivals_ptr, 1, sem="release")
