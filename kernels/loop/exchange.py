"""How the programs of a team hand h_t to each other through global memory.

A team of one keeps it in registers (EXCHANGE "registers"): it publishes for its caller alone, and never waits.

y is the channel in every protocol: h_t is written once, to the place where the caller wants it,
and every step has memory of its own, so there is no reuse hazard.

"dataflow"  y is filled with the SENTINEL before the launch. A reader re-reads its tile, past the
            L1, until no element is the sentinel. Every element is its own flag: no barrier, no
            fence, one L2 round trip a step.
"spin"      the same in PTX, where `describe` finds it usable: every thread waits for itself (see `spin`).
"barrier"   a counter per team, zero at launch and only ever increased. A writer adds one, with
            release, after its stores; a reader waits, with acquire, for all members of the step.

The sentinel is all ones, a NaN that no arithmetic produces; `publish` rewrites it should a user's
own NaN payload survive to that point, so a NaN in h never looks like "not yet written".

Every wait is bounded by a limit in units of 1,024 ns (the interpreter counts polls). A program whose wait runs out
writes its team and step to the status word (`stall.describe_stall`) and waits no more: its results are NaN, and it
ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

from ..compiled_for import compiled_for, lanes_of_warp
from ..stall import LAST_TEAM, STEP_BITS
from .interleave import neighbours, operand_rows
from .parts import part_of_row
from .spin import (
    CLOCK_POLLS,
    name_of,
    poll,
    poll_constraints,
    publish_number,
    publish_word,
    same_types,
    vector_words,
    words_of_thread,
)
from .weights import add_product, total, zero_sums

SENTINEL = -1  # every bit set, in any integer width; the kernels write it as a literal
_CLOCK_POLLS = tl.constexpr(CLOCK_POLLS)
_STEP_BITS = tl.constexpr(STEP_BITS)
_LAST_TEAM = tl.constexpr(LAST_TEAM)
_LAST_STEP = tl.constexpr((1 << STEP_BITS) - 1)


class Sent(NamedTuple):
    """What a team publishes of one step for a batch tile, and the part of it that a program reads. Made by keyword."""

    base: Any  # a pointer, or one for each row
    row_offsets: Any  # [BLOCK_B], from there
    row_ok: Any  # [BLOCK_B]: rows that are there; the others count as zeros
    low: Any  # the columns that are read: from low (None: 0) to high. They and all offsets are multiples of HEAD
    high: Any  # or of 16
    step: Any  # of the batch tile: how many everybody has handed something on in, which the report of a stall names
    kept: Any  # what rows that are not there count as: words of an earlier read (see `no_words`); (): zeros


@triton.constexpr_function
def numbers_in_word(dtype, head_size):
    """How many numbers a team reads and tests at once: two of 16 bits where every row begins at a whole word."""
    return 2 if dtype.primitive_bitwidth == 16 and head_size % 2 == 0 else 1


@triton.constexpr_function
def word_type(dtype, numbers):
    """The integer that holds so many numbers."""
    return tl.int32 if dtype.primitive_bitwidth * numbers == 32 else tl.int16


@triton.jit
def _without_sentinel(numbers):
    """The numbers with another NaN in place of the sentinel; on integers, so that no NaN rule applies."""
    if numbers.dtype.primitive_bitwidth == 16:
        bits = numbers.to(tl.int16, bitcast=True)
        other_nan = 0x7FFF
    else:
        bits = numbers.to(tl.int32, bitcast=True)
        other_nan = 0x7FFFFFFF
    return tl.where(bits == -1, tl.full(bits.shape, other_nan, bits.dtype), bits).to(numbers.dtype, bitcast=True)


@triton.jit
def _row_pointers(sent, HEAD: tl.constexpr, NUMBERS_IN_WORD: tl.constexpr):
    """To the first word of every row, [ROWS, 1]."""
    word: tl.constexpr = word_type(sent.base.dtype.element_ty, NUMBERS_IN_WORD)
    if len(sent.base.shape) == 0:
        first = sent.base + sent.row_offsets[:, None]
    else:
        first = (sent.base + sent.row_offsets)[:, None]
    # Of pointers that are chosen row by row (resets) Triton 3.9 works out no alignment, and would read word by word.
    BYTES: tl.constexpr = word.primitive_bitwidth // 8 * vector_words(HEAD, NUMBERS_IN_WORD, 4)
    return tl.multiple_of(first.to(tl.pointer_type(word)), (BYTES, BYTES))


@triton.jit
def _chunk_mask(sent, chunk: tl.constexpr, NUMBERS_IN_WORD: tl.constexpr, LOOP: tl.constexpr):
    """The words of a chunk that are there, [ROWS, BLOCK_K // NUMBERS_IN_WORD]."""
    WORDS: tl.constexpr = LOOP.BLOCK_K // NUMBERS_IN_WORD
    k = chunk * WORDS + tl.arange(0, WORDS)
    if LOOP.PARTS > 1:
        last = tl.minimum(sent.high - part_of_row(LOOP) * LOOP.PART, LOOP.PART)
        mask = sent.row_ok[:, None] & (k[None, :] < last[:, None] // NUMBERS_IN_WORD)
    else:
        mask = sent.row_ok[:, None] & (k < sent.high // NUMBERS_IN_WORD)[None, :]
    if sent.low is not None:
        mask = mask & (k >= sent.low // NUMBERS_IN_WORD)[None, :]
    return mask


@triton.jit
def load_from_l2(ptrs, mask, other):
    """What other programs store while this one runs: past the L1, `other` where masked (both may be None)."""
    if compiled_for() == "hip":
        # A volatile load is no coherent one on gfx942: without sc0 and sc1 a stale line is read for ever
        # (triton#11223). ptxas refuses .cv together with volatile.
        return tl.load(ptrs, mask=mask, other=other, cache_modifier=".cv")
    else:
        return tl.load(ptrs, mask=mask, other=other, volatile=True)


@triton.jit
def _read_chunk(sent, chunk: tl.constexpr, other, NUMBERS_IN_WORD: tl.constexpr, LOOP: tl.constexpr):
    """One chunk of all rows, straight from L2, as words [ROWS, BLOCK_K // NUMBERS_IN_WORD]."""
    WORDS: tl.constexpr = LOOP.BLOCK_K // NUMBERS_IN_WORD
    k = chunk * WORDS + tl.arange(0, WORDS)
    mask = _chunk_mask(sent, chunk, NUMBERS_IN_WORD, LOOP)
    return load_from_l2(_row_pointers(sent, LOOP.HEAD, NUMBERS_IN_WORD) + k[None, :], mask, other)


@triton.jit
def no_words(dtype: tl.constexpr, LOOP: tl.constexpr):
    """The words that a step before the first would have read: zeros. () where LOOP does not keep them.

    Kept from step to step, the words of a row that is not there are those it had: zeros, or those of its last step,
    which are nobody's any more. Set to zero at every step, they are two instructions for every vector that a thread
    reads, before its load: LSTM bf16 768 B=16 on sm_90 1,180 issue cycles a step and not 1,148, H=256 678 and not 654.
    """
    tiles = ()
    if LOOP.KEPT:
        NUMBERS_IN_WORD: tl.constexpr = numbers_in_word(dtype, LOOP.HEAD)
        CHUNKS: tl.constexpr = LOOP.CHUNKS
        ROWS: tl.constexpr = LOOP.BLOCK_B
        WORDS: tl.constexpr = LOOP.BLOCK_K // NUMBERS_IN_WORD
        word: tl.constexpr = word_type(dtype, NUMBERS_IN_WORD)
        for _ in tl.static_range(CHUNKS):
            tiles = tiles + (tl.zeros((ROWS, WORDS), dtype=word),)
    return tiles


@triton.jit
def read_chunks(sent, NUMBERS_IN_WORD: tl.constexpr, LOOP: tl.constexpr):
    """All chunks as a tuple; all loads are issued before any is used."""
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        if len(sent.kept) == 0:
            words = _read_chunk(sent, chunk, 0, NUMBERS_IN_WORD, LOOP)
        else:
            words = _read_chunk(sent, chunk, sent.kept[chunk], NUMBERS_IN_WORD, LOOP)
        tiles = tiles + (words,)
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
def unwritten(tiles, NUMBERS_IN_WORD: tl.constexpr, LOOP: tl.constexpr):
    """1 if any number is still the sentinel: one reduction over all chunks.

    Tested number by number, 16-bit ones took 441 instructions a poll for LSTM H=768 on sm_90, word by word 165; and
    ptxas put the tests between the loads, so that a poll was nine round trips to L2 and not one.
    """
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    found = _sentinels(tiles[0], NUMBERS_IN_WORD)
    for chunk in tl.static_range(1, CHUNKS):
        found = found | _sentinels(tiles[chunk], NUMBERS_IN_WORD)
    return any_of(found < 0 if NUMBERS_IN_WORD == 1 else (found & -0x7FFF8000) != 0)


@triton.jit
def any_of(found):
    """1 if any element of a boolean tile is true; where threads share an element, one of them is asked."""
    # Flat, not axis by axis: 18 registers less for an RNN of 1000, which spills 24 bytes on Triton 3.6 otherwise.
    flat = tl.reshape(found.to(tl.int32), (found.shape[0] * found.shape[1],), can_reorder=True)
    return tl.max(flat, axis=0)


@triton.jit
def _clock(polls):
    """The time in units of 1,024 ns; in the interpreter, which has none, the polls so far."""
    if compiled_for() == "cuda":
        return globaltimer() >> 10
    elif compiled_for() == "hip":
        # A counter of 100 MHz. Triton's own `memrealtime` waits for vector loads, not for the scalar unit's answer.
        ticks = tl.inline_asm_elementwise(
            "s_memrealtime $0\ns_waitcnt lgkmcnt(0)", "=s", [], dtype=tl.int64, is_pure=False, pack=1
        )
        return ticks * 10 >> 10
    else:
        return tl.cast(polls, tl.int64)


@triton.jit
def goes_on(polls, end, limit):
    """Whether a wait goes on after so many polls, and when it is over, which its first look at the clock decides."""
    EVERY: tl.constexpr = 1 if compiled_for() == "interpreter" else _CLOCK_POLLS
    on = limit > 0
    if polls % EVERY == 0:
        now = _clock(polls)
        end = tl.where(polls == EVERY, now + limit, end)
        on = on & (now < end)
    return on, end


@triton.jit
def wait_for(team, expected, must_wait, limit):
    """Polls the team's counter until `expected` have arrived; whether the limit was over before."""
    polls = 0
    on = limit >= 0
    end = tl.cast(0, tl.int64)
    missing = must_wait & (tl.atomic_add(team.arrivals, 0, sem="acquire") < expected)
    while missing & on:
        missing = tl.atomic_add(team.arrivals, 0, sem="acquire") < expected
        polls += 1
        on, end = goes_on(polls, end, limit)
    return missing


@triton.jit
def arrive(team):
    # Every thread's stores before the one thread's release.
    tl.debug_barrier()
    tl.atomic_add(team.arrivals, 1, sem="release")


@triton.jit
def unless_stalled(product, missing, limit, step, team, LOOP: tl.constexpr):
    """The product and the limit of later waits: NaN and 0 from the wait on that ran out."""
    if missing:
        if limit > 0:  # the first wait that ran out: the program waits no more
            number = tl.minimum(tl.program_id(0) // LOOP.MEMBERS, _LAST_TEAM)
            tl.store(team.status, ((number + 1) << _STEP_BITS) | tl.minimum(step, _LAST_STEP))
        limit = 0
    return tl.where(limit > 0, product, float("nan")), limit


@triton.jit
def read_when_written(sent, must_wait, limit, NUMBERS_IN_WORD: tl.constexpr, LOOP: tl.constexpr):
    """All chunks of a "dataflow" channel as words, read until none holds the sentinel; whether the limit was over."""
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    WORDS: tl.constexpr = LOOP.BLOCK_K // NUMBERS_IN_WORD
    THREADS: tl.constexpr = LOOP.NUM_WARPS * lanes_of_warp()
    tl.static_assert(sent.row_ok.shape[0] * WORDS >= THREADS, "threads that share a word do not all wait for it")
    # One read in the code, not one before the loop and one in it: LSTM bf16 H=1024 takes 126 registers, not 230.
    word: tl.constexpr = word_type(sent.base.dtype.element_ty, NUMBERS_IN_WORD)
    tiles = ()
    for _ in tl.static_range(CHUNKS):
        tiles = tiles + (tl.zeros((sent.row_ok.shape[0], WORDS), dtype=word),)
    missing = limit >= 0
    on = limit >= 0
    end = tl.cast(0, tl.int64)
    polls = 0
    while missing & on:
        tiles = read_chunks(sent, NUMBERS_IN_WORD, LOOP)
        missing = must_wait & (unwritten(tiles, NUMBERS_IN_WORD, LOOP) != 0)
        polls += 1
        on, end = goes_on(polls, end, limit)
    return tiles, missing


@triton.jit
def spin_until_written(sent, must_wait, limit, team, NUMBERS_IN_WORD: tl.constexpr, LOOP: tl.constexpr):
    """All chunks of a "dataflow" channel as words; every thread waits for its own (see `spin.poll`)."""
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    WORDS: tl.constexpr = LOOP.BLOCK_K // NUMBERS_IN_WORD
    ROWS: tl.constexpr = sent.row_ok.shape[0]
    OWN: tl.constexpr = words_of_thread(ROWS, WORDS, LOOP.NUM_WARPS)
    VECTOR: tl.constexpr = vector_words(LOOP.HEAD, NUMBERS_IN_WORD, OWN)
    # The first poll is Triton's own load: the block takes over the layout of its words.
    words = read_chunks(sent, NUMBERS_IN_WORD, LOOP)
    masks = ()
    for chunk in tl.static_range(CHUNKS):
        masks = masks + (_chunk_mask(sent, chunk, NUMBERS_IN_WORD, LOOP).to(tl.int32),)
    pointers = _row_pointers(sent, LOOP.HEAD, NUMBERS_IN_WORD) + tl.arange(0, WORDS)[None, :]
    zeros = tl.zeros((ROWS, WORDS), tl.int32)
    return tl.inline_asm_elementwise(
        poll(CHUNKS, OWN, VECTOR, WORDS * 4, NUMBERS_IN_WORD, LOOP.PAIRS, LOOP.MEMBERS),
        poll_constraints(CHUNKS, OWN),
        words + masks + (pointers, zeros + tl.where(must_wait, limit, 0), team.status + zeros, zeros + sent.step),
        dtype=same_types(tl.int32, CHUNKS),
        is_pure=False,
        pack=OWN,
    )


@triton.jit
def await_sent(
    sent,  # Sent: what the team has published
    must_wait,  # False at the first step: h_0 is the caller's and may hold any bit pattern
    expected,  # arrivals to wait for ("barrier")
    limit,  # of the wait
    team,
    LOOP: tl.constexpr,
):
    """Waits until what was sent is there. Its chunks as words, or () where `gathered_product` reads them; whether the
    limit was over before."""
    NUMBERS_IN_WORD: tl.constexpr = numbers_in_word(sent.base.dtype.element_ty, LOOP.HEAD)
    if LOOP.EXCHANGE == "barrier":
        return (), wait_for(team, expected, must_wait, limit)
    elif LOOP.EXCHANGE == "spin":
        # What is missing after a stall is a NaN, and the product carries it.
        return spin_until_written(sent, must_wait, limit, team, NUMBERS_IN_WORD, LOOP), False
    else:
        return read_when_written(sent, must_wait, limit, NUMBERS_IN_WORD, LOOP)


@triton.jit
def gathered_product(
    weights,  # resident chunks of W_hh: [rows of the product, BLOCK_K] each
    tiles,  # as `await_sent` returns them
    missing,
    sent,
    limit,
    team,
    LOOP: tl.constexpr,
):
    """The weights times what was sent, [rows of the product, BLOCK_B]; and the limit of later waits.

    NaN, and a limit of 0, if the wait ran out.
    """
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    DTYPE: tl.constexpr = sent.base.dtype.element_ty
    NUMBERS_IN_WORD: tl.constexpr = numbers_in_word(DTYPE, LOOP.HEAD)
    sums = zero_sums(weights, LOOP)
    if LOOP.EXCHANGE == "barrier":
        for chunk in tl.static_range(CHUNKS):
            # One chunk after the other: the team's h waits for nobody any more, and takes fewer registers.
            words = _read_chunk(sent, chunk, 0, NUMBERS_IN_WORD, LOOP)
            sums = add_product(sums, weights, chunk, tl.trans(_numbers(words, DTYPE, NUMBERS_IN_WORD)), LOOP)
    else:
        # All operands before the first product: each has its own buffer then, and no product waits for a store.
        operands = ()
        for chunk in tl.static_range(CHUNKS):
            words = operand_rows(tiles[chunk], LOOP)
            operands = operands + (tl.trans(_numbers(words, DTYPE, NUMBERS_IN_WORD)),)
        for chunk in tl.static_range(CHUNKS):
            sums = add_product(sums, weights, chunk, operands[chunk], LOOP)
    if LOOP.EXCHANGE == "spin":
        return total(sums, LOOP), limit
    else:
        return unless_stalled(total(sums, LOOP), missing, limit, sent.step, team, LOOP)


@triton.jit
def _publish_words(ptrs, value, mask, LOOP: tl.constexpr):
    """Store a float32 tile [units, rows] in whole words, each by one strong store (see `spin.publish_word`)."""
    DTYPE: tl.constexpr = ptrs.dtype.element_ty
    mask = tl.broadcast_to(mask, ptrs.shape).to(tl.int32)
    block: tl.constexpr = publish_word(name_of(DTYPE), LOOP.PAIRS)
    if DTYPE.primitive_bitwidth == 32:
        bits = value.to(tl.int32, bitcast=True)
        tl.inline_asm_elementwise(block, "=r,r,l,r", [bits, ptrs, mask], dtype=tl.int32, is_pure=False, pack=1)
    else:
        # Two units of a row, which are one thread's in the layout in which Triton stores a tile, or are made so where a
        # tile has fewer words than there are threads. Polls read words, and of accesses of two sizes PTX's memory model
        # says nothing at all.
        first, second = tl.split(neighbours(value, LOOP))
        ptrs, _ = tl.split(neighbours(ptrs.to(tl.int64), LOOP))
        mask, _ = tl.split(neighbours(mask, LOOP))
        tl.inline_asm_elementwise(
            block, "=r,f,f,l,r", [first, second, ptrs, mask], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _publish_numbers(ptrs, numbers, mask):
    """Store a tile number by number, on NVIDIA by strong stores (see `spin.publish_word`)."""
    if compiled_for() == "cuda" and numbers.dtype.primitive_bitwidth == 16:
        bits = numbers.to(tl.int16, bitcast=True).to(tl.int32)
        mask = tl.broadcast_to(mask, ptrs.shape).to(tl.int32)
        tl.inline_asm_elementwise(
            publish_number(), "=r,r,l,r", [bits, ptrs, mask], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        tl.store(ptrs, numbers, mask=mask)


@triton.jit
def publish(ptrs, tiles, mask, team, COUNT: tl.constexpr, LOOP: tl.constexpr):
    """Store COUNT float32 tiles, HEAD elements apart, in the pointer's dtype, for the team to read.

    In "dataflow" and "spin" by strong stores wherever there is PTX. A weak one meets the polls' strong loads in a race,
    of which PTX's memory model says (proved in tests/test_memory_model.py): what a poll finds is the sentinel or h and
    never anything else, but nobody has to find h ever, and who has found it may find the sentinel again. With strong
    stores h stays. In "barrier" the counter's release orders them, weak or not.
    """
    for index in tl.static_range(COUNT):
        if LOOP.EXCHANGE == "spin":
            _publish_words(ptrs + index * LOOP.HEAD, tiles[index], mask, LOOP)
        else:
            value = tiles[index].to(ptrs.dtype.element_ty)
            if LOOP.EXCHANGE == "dataflow":
                _publish_numbers(ptrs + index * LOOP.HEAD, _without_sentinel(value), mask)
            else:
                tl.store(ptrs + index * LOOP.HEAD, value, mask=mask)
    if LOOP.EXCHANGE == "barrier":
        arrive(team)
