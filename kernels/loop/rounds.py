"""Small exchanges of a team's numbers in rounds, beside the one of h: parts of a product (`split_k`), parts of a mean
(`means`).

The scratch memory of an exchange holds two slots, used in turns: a program writes a slot again only after it has read
the other one in full, and what stands there was written by programs that had read this one. In "dataflow" the lowest
bit of every number says in which round it was written: no memory to clear, no flag, no fence. A number keeps 23 of
float32's 24 bits. In "spin" every thread waits for its own numbers (see `spin`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..compiled_for import compiled_for, lanes_of_warp
from .exchange import any_of, arrive, goes_on, load_from_l2, wait_for
from .spin import parts_constraints, parts_poll, same_types, words_of_thread


@triton.jit
def round_of(turn):
    """What the lowest bit of a number says of the round it was written in; a slot at launch is all ones."""
    return (turn // 2) & 1


@triton.jit
def in_round(numbers, turn):
    """float32 numbers as the words that a round publishes."""
    round_bit = round_of(turn)
    return (numbers.to(tl.int32, bitcast=True) & -2) | round_bit


@triton.jit
def numbers_of(words):
    """The words of a round as float32 numbers."""
    return tl.cast(words & -2, tl.float32, bitcast=True)


@triton.jit
def _publish_words(where, words):
    """Store a tile of words, on NVIDIA by strong stores: after weak ones a poll may fall back to what its slot held two
    rounds before or at launch, which has the round's bit again (proved in tests/test_memory_model.py)."""
    if compiled_for() == "cuda":
        # From the accumulator's own layout, whose eight neighbouring lanes fill a sector: no change of layout.
        tl.inline_asm_elementwise(
            "st.relaxed.gpu.global.b32 [$2], $1; mov.b32 $0, 0;", "=r,r,l", [words, where], tl.int32, False, 1
        )
    else:
        tl.store(where, words)


@triton.jit
def exchange_round(
    where,  # where this program's words go
    words,  # as `in_round` has them
    first,  # the first of COUNT tiles that are read, which lie APART words apart
    turn,  # how many rounds there were before
    expected,  # arrivals to wait for ("barrier")
    limit,
    step,  # for the report of a stall: see `exchange.Sent`
    team,
    COUNT: tl.constexpr,
    APART: tl.constexpr,
    LOOP: tl.constexpr,
):
    """Publishes the words and waits for everybody's: COUNT tiles of words, for `numbers_of`; whether the limit was over
    before. In "spin" the words are NaN then."""
    ROWS: tl.constexpr = first.shape[0]
    COLUMNS: tl.constexpr = first.shape[1]
    round_bit = round_of(turn)
    tiles = ()
    if LOOP.EXCHANGE == "spin":
        OWN: tl.constexpr = words_of_thread(ROWS, COLUMNS, LOOP.NUM_WARPS)
        _publish_words(where, words)
        pointers = ()
        for other in tl.static_range(COUNT):
            pointers = pointers + (first + other * APART,)
            tiles = tiles + (load_from_l2(first + other * APART, None, None),)
        zeros = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
        tiles = tl.inline_asm_elementwise(
            parts_poll(COUNT, OWN, LOOP.MEMBERS),
            parts_constraints(COUNT, OWN),
            tiles + pointers + (zeros + round_bit, zeros + limit, team.status + zeros, zeros + step),
            dtype=same_types(tl.int32, COUNT),
            is_pure=False,
            pack=OWN,
        )
        missing = False
    elif LOOP.EXCHANGE == "barrier":
        tl.store(where, words)
        arrive(team)
        missing = wait_for(team, expected, True, limit)
        for other in tl.static_range(COUNT):
            tiles = tiles + (load_from_l2(first + other * APART, None, None),)
    else:
        _publish_words(where, words)
        COPIES: tl.constexpr = copies_for_all_threads(ROWS * COLUMNS, LOOP.NUM_WARPS * lanes_of_warp())
        there = _repeated(first, COPIES)
        for _ in tl.static_range(COUNT):
            tiles = tiles + (tl.zeros((COPIES * ROWS, COLUMNS), dtype=tl.int32),)
        missing = limit >= 0
        on = limit >= 0
        end = tl.cast(0, tl.int64)
        polls = 0
        while missing & on:
            stale = tl.zeros((COPIES * ROWS, COLUMNS), dtype=tl.int32)
            tiles = ()
            for other in tl.static_range(COUNT):
                tiles = tiles + (load_from_l2(there + other * APART, None, None),)
                stale = stale | (tiles[other] ^ round_bit)
            missing = any_of((stale & 1) != 0) != 0
            polls += 1
            on, end = goes_on(polls, end, limit)
        tiles = _once(tiles, COPIES)
    return tiles, missing


@triton.constexpr_function
def copies_for_all_threads(words, threads):
    """How often a tile is read so that no two threads share an element of it.

    Where they do, each reads it for itself, and `any_of` asks one of them: a thread that reads a moment earlier goes on
    with the round before.
    """
    return max(1, threads // words)


@triton.jit
def _repeated(pointers, COPIES: tl.constexpr):
    if COPIES == 1:
        return pointers
    else:
        shape: tl.constexpr = (COPIES, pointers.shape[0], pointers.shape[1])
        return tl.reshape(tl.broadcast_to(pointers[None, :, :], shape), (COPIES * shape[1], shape[2]))


@triton.jit
def _once(tiles, COPIES: tl.constexpr):
    """Of tiles of equal copies one each."""
    if COPIES == 1:
        return tiles
    else:
        COUNT: tl.constexpr = len(tiles)
        shape: tl.constexpr = (COPIES, tiles[0].shape[0] // COPIES, tiles[0].shape[1])
        found = ()
        for index in tl.static_range(COUNT):
            found = found + (tl.max(tl.reshape(tiles[index], shape), axis=0),)
        return found
