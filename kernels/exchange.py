"""How the programs of a team hand h_t to each other through global memory.

y is the channel in both protocols: h_t is written once, to the place where the caller wants it,
and every step has memory of its own, so there is no reuse hazard.

"dataflow"  y is filled with the SENTINEL before the launch. A reader re-reads its tile, past the
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

from .tiles import add_product, total, zero_sums

SENTINEL = -1  # every bit set, in any integer width; the kernels write it as a literal


@triton.constexpr_function
def numbers_in_word(dtype, hidden_size):
    """How many numbers a team reads and tests at once: two of 16 bits where every row begins at a whole word."""
    return 2 if dtype.primitive_bitwidth == 16 and hidden_size % 2 == 0 else 1


@triton.constexpr_function
def word_type(dtype, numbers):
    """The integer that holds so many numbers."""
    return tl.int32 if dtype.primitive_bitwidth * numbers == 32 else tl.int16


@triton.jit
def _without_sentinel(tile):
    """The tile with another NaN where it holds the sentinel; on integers, so that no NaN rule applies."""
    if tile.dtype.primitive_bitwidth == 16:
        bits = tile.to(tl.int16, bitcast=True)
        other_nan = 0x7FFF
    else:
        bits = tile.to(tl.int32, bitcast=True)
        other_nan = 0x7FFFFFFF
    return tl.where(bits == -1, tl.full(bits.shape, other_nan, bits.dtype), bits).to(tile.dtype, bitcast=True)


@triton.jit
def _read_chunk(
    base, row_offsets, row_ok, low, high, chunk: tl.constexpr, BLOCK_K: tl.constexpr, NUMBERS_IN_WORD: tl.constexpr
):
    """Columns low to high of a chunk of all rows, straight from L2, as words [ROWS, BLOCK_K // NUMBERS_IN_WORD]."""
    WORDS: tl.constexpr = BLOCK_K // NUMBERS_IN_WORD
    k = chunk * WORDS + tl.arange(0, WORDS)
    mask = row_ok[:, None] & (k < high // NUMBERS_IN_WORD)[None, :]
    if low is not None:
        mask = mask & (k >= low // NUMBERS_IN_WORD)[None, :]
    word: tl.constexpr = word_type(base.dtype.element_ty, NUMBERS_IN_WORD)
    rows = base + row_offsets[:, None] if len(base.shape) == 0 else (base + row_offsets)[:, None]
    return tl.load(rows.to(tl.pointer_type(word)) + k[None, :], mask=mask, other=0, volatile=True)


@triton.jit
def read_chunks(
    base, row_offsets, row_ok, low, high, CHUNKS: tl.constexpr, BLOCK_K: tl.constexpr, NUMBERS_IN_WORD: tl.constexpr
):
    """All chunks as a tuple; all loads are issued before any is used."""
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        tiles = tiles + (_read_chunk(base, row_offsets, row_ok, low, high, chunk, BLOCK_K, NUMBERS_IN_WORD),)
    return tiles


@triton.jit
def _numbers(words, dtype: tl.constexpr, NUMBERS_IN_WORD: tl.constexpr):
    """The words as what they hold; two in a word cost no instruction, the compiler sees through it."""
    if NUMBERS_IN_WORD == 1:
        return words.to(dtype, bitcast=True)
    else:
        first = words.to(tl.int16).to(dtype, bitcast=True)
        second = (words >> 16).to(tl.int16).to(dtype, bitcast=True)
        return tl.reshape(tl.join(first, second), (words.shape[0], words.shape[1] * 2))


@triton.jit
def _sentinels(words, NUMBERS_IN_WORD: tl.constexpr):
    """Words whose numbers' top bits are zero but where a number is the sentinel; a borrow may set one above it too."""
    # The top bit of a number is set where it is zero in ~words (Mycroft's test): two instructions a word.
    ones: tl.constexpr = 1 if NUMBERS_IN_WORD == 1 else 0x10001
    return (~words - ones) & words


@triton.jit
def _unwritten(tiles, CHUNKS: tl.constexpr, NUMBERS_IN_WORD: tl.constexpr):
    """1 if any number is still the sentinel: one reduction over all chunks.

    Tested number by number, 16-bit ones took 441 instructions a poll for LSTM H=768 on sm_90, word by word 165; and
    ptxas put the tests between the loads, so that a poll was nine round trips to L2 and not one.
    """
    found = _sentinels(tiles[0], NUMBERS_IN_WORD)
    for chunk in tl.static_range(1, CHUNKS):
        found = found | _sentinels(tiles[chunk], NUMBERS_IN_WORD)
    return any_of(found < 0 if NUMBERS_IN_WORD == 1 else (found & -0x7FFF8000) != 0)


@triton.jit
def any_of(found):
    """1 if any element of a boolean tile is true."""
    # Flat, not axis by axis: 18 registers less for an RNN of 1000, which spills 24 bytes on Triton 3.6 otherwise.
    flat = tl.reshape(found.to(tl.int32), (found.shape[0] * found.shape[1],), can_reorder=True)
    return tl.max(flat, axis=0)


@triton.jit
def wait_for(arrivals_ptr, expected, must_wait, budget):
    """Polls the team's counter until `expected` have arrived; whether the budget ran out before."""
    polls = 0
    missing = must_wait & (tl.atomic_add(arrivals_ptr, 0, sem="acquire") < expected)
    while missing & (polls < budget):
        missing = tl.atomic_add(arrivals_ptr, 0, sem="acquire") < expected
        polls += 1
    return missing


@triton.jit
def arrive(arrivals_ptr):
    # Every thread's stores before the one thread's release.
    tl.debug_barrier()
    tl.atomic_add(arrivals_ptr, 1, sem="release")


@triton.jit
def unless_stalled(product, missing, budget, status_ptr):
    """The product and the budget that is left: NaN and 0 from the wait on that ran out."""
    if missing:
        budget = 0
        tl.store(status_ptr, 1)
    return tl.where(budget > 0, product, float("nan")), budget


@triton.jit
def read_when_written(
    base,
    row_offsets,
    row_ok,
    low,
    high,
    must_wait,
    budget,
    CHUNKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUMBERS_IN_WORD: tl.constexpr,
):
    """All chunks of a "dataflow" channel as words, read until none holds the sentinel; whether the budget ran out."""
    # One read in the code, not one before the loop and one in it: LSTM bf16 H=1024 takes 126 registers, not 230.
    word: tl.constexpr = word_type(base.dtype.element_ty, NUMBERS_IN_WORD)
    tiles = ()
    for _ in tl.static_range(CHUNKS):
        tiles = tiles + (tl.zeros((row_ok.shape[0], BLOCK_K // NUMBERS_IN_WORD), dtype=word),)
    missing = budget >= 0
    polls = 0
    while missing & (polls <= budget):
        tiles = read_chunks(base, row_offsets, row_ok, low, high, CHUNKS, BLOCK_K, NUMBERS_IN_WORD)
        missing = must_wait & (_unwritten(tiles, CHUNKS, NUMBERS_IN_WORD) != 0)
        polls += 1
    return tiles, missing


@triton.jit
def gather_product(
    weights,  # resident chunks of W_hh: [ROWS_OF_W, BLOCK_K] each
    base,  # what the team has published of one step for this batch tile: a pointer, or one for each row
    row_offsets,  # [BLOCK_B]
    row_ok,  # [BLOCK_B]
    low,  # the columns that are multiplied: from low (None: 0)
    high,  # to high
    must_wait,  # False at the first step: h_0 is the caller's and may hold any bit pattern
    arrivals_ptr,  # this team's counter ("barrier")
    expected,  # arrivals to wait for ("barrier")
    budget,  # polls left
    status_ptr,
    EXCHANGE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIDDEN: tl.constexpr,  # low, high and all offsets are multiples of it, or of 16
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """W times the rows, [ROWS_OF_W, BLOCK_B], once the team has published them; and the budget that is left.

    NaN, and a budget of 0, if the wait ran out.
    """
    DTYPE: tl.constexpr = base.dtype.element_ty
    NUMBERS_IN_WORD: tl.constexpr = numbers_in_word(DTYPE, HIDDEN)
    sums = zero_sums(weights, BLOCK_B, PRECISION)
    if EXCHANGE == "barrier":
        missing = wait_for(arrivals_ptr, expected, must_wait, budget)
        for chunk in tl.static_range(CHUNKS):
            # One chunk after the other: the team's h waits for nobody any more, and takes fewer registers.
            words = _read_chunk(base, row_offsets, row_ok, low, high, chunk, BLOCK_K, NUMBERS_IN_WORD)
            sums = add_product(
                sums, weights, chunk, tl.trans(_numbers(words, DTYPE, NUMBERS_IN_WORD)), CHUNKS, PRECISION
            )
    else:
        tiles, missing = read_when_written(
            base, row_offsets, row_ok, low, high, must_wait, budget, CHUNKS, BLOCK_K, NUMBERS_IN_WORD
        )
        # All operands before the first product: each has its own buffer then, and no product waits for a store.
        operands = ()
        for chunk in tl.static_range(CHUNKS):
            operands = operands + (tl.trans(_numbers(tiles[chunk], DTYPE, NUMBERS_IN_WORD)),)
        for chunk in tl.static_range(CHUNKS):
            sums = add_product(sums, weights, chunk, operands[chunk], CHUNKS, PRECISION)
    return unless_stalled(total(sums, PRECISION), missing, budget, status_ptr)


@triton.jit
def publish(ptrs, tiles, mask, arrivals_ptr, EXCHANGE: tl.constexpr, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """Store COUNT float32 tiles, STRIDE elements apart, in the pointer's dtype, for the team to read."""
    for index in tl.static_range(COUNT):
        value = tiles[index].to(ptrs.dtype.element_ty)
        if EXCHANGE == "dataflow":
            value = _without_sentinel(value)
        tl.store(ptrs + index * STRIDE, value, mask=mask)
    if EXCHANGE == "barrier":
        arrive(arrivals_ptr)
