"""A product whose sum is split over SPLIT_K programs: their partial sums go through global memory, and each program
takes its share of the total.

Backwards W_hh^T da runs over all gates of all units: one program with 16 units would gather G * H numbers a row and
its product would have 16 rows. Split, it gathers a part of them for SPLIT_K times as many units. LSTM H=768, batch
tile of 16: 24 KB a step and 64 rows (one warp group's wgmma), not 98 KB and four products of 16 rows; for a second,
small exchange.

Forwards float32 without TF32 keeps W_hh twice (see `weights.add_product`): 64 rows of more than 384 columns fit no SM.
LSTM H=512, sm_90: two programs that share 64 rows take 1,725 issue cycles a step, one with 32 rows, which are no wgmma,
4,654.

The scratch memory of a unit block holds two slots, used in turns: a program writes a slot again only after it has
read the other one in full, and what stands there was written by programs that had read this one. In "dataflow" the
lowest bit of every number says in which round it was written: no memory to clear, no flag, no fence. A product keeps
23 of float32's 24 bits. In "spin" every thread waits for its own numbers (see `spin`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..compiled_for import compiled_for
from .exchange import any_of, arrive, goes_on, load_from_l2, unless_stalled, wait_for
from .spin import parts_constraints, parts_poll, same_types, words_of_thread


@triton.jit
def columns_of_part(end, part, LOOP: tl.constexpr):
    """How many of the columns up to `end` lie before the end of a part, counted from its first; negative: none do."""
    if LOOP.HEAD % 16 == 0:
        # In sixteens the compiler knows the remainder, and loads whole vectors under the mask.
        return tl.minimum(end // 16 - part * (LOOP.PART // 16), LOOP.PART // 16) * 16
    else:
        return tl.minimum(end - part * LOOP.PART, LOOP.PART)


@triton.jit
def _publish_parts(where, words):
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
def scratch_of_block(partial, me, OWN_ROWS: tl.constexpr, LOOP: tl.constexpr):
    """Where in a launch's scratch memory that of the program's block begins, whose programs have OWN_ROWS rows each."""
    programs_before = me.team * LOOP.MEMBERS + me.number - me.number % LOOP.SPLIT_K
    return partial + programs_before * (2 * LOOP.BLOCK_B * LOOP.SPLIT_K * OWN_ROWS)


@triton.jit
def sum_of_parts(
    product,  # [SPLIT_K * rows, BLOCK_B]: this program's part, for all units of the block
    part,  # which of the block's programs this is, and which rows of the block's are its own
    turn,  # how many products were exchanged before
    expected,  # arrivals to wait for ("barrier")
    limit,
    step,  # for the report of a stall: see `Sent`
    team,  # its `partial` is the block's: [2, SPLIT_K, BLOCK_B, SPLIT_K * rows] int32, all ones at launch
    LOOP: tl.constexpr,
):
    """The whole product for this program's own units, [rows, BLOCK_B], and the limit of later waits."""
    SPLIT_K: tl.constexpr = LOOP.SPLIT_K
    ROWS: tl.constexpr = product.shape[0]
    OWN_ROWS: tl.constexpr = ROWS // SPLIT_K
    BLOCK_B: tl.constexpr = LOOP.BLOCK_B
    PART: tl.constexpr = BLOCK_B * ROWS  # numbers of one program's part
    row = tl.arange(0, BLOCK_B)[None, :]
    slot = team.partial + (turn % 2) * (SPLIT_K * PART)
    round_bit = (turn // 2) & 1
    words = (product.to(tl.int32, bitcast=True) & -2) | round_bit
    where = slot + part * PART + row * ROWS + tl.arange(0, ROWS)[:, None]
    own = slot + row * ROWS + (part * OWN_ROWS + tl.arange(0, OWN_ROWS))[:, None]
    tiles = ()
    if LOOP.EXCHANGE == "spin":
        OWN: tl.constexpr = words_of_thread(OWN_ROWS, BLOCK_B, LOOP.NUM_WARPS)
        _publish_parts(where, words)
        pointers = ()
        for other in tl.static_range(SPLIT_K):
            pointers = pointers + (own + other * PART,)
            tiles = tiles + (load_from_l2(own + other * PART, None, None),)
        zeros = tl.zeros((OWN_ROWS, BLOCK_B), dtype=tl.int32)
        tiles = tl.inline_asm_elementwise(
            parts_poll(SPLIT_K, OWN, LOOP.MEMBERS),
            parts_constraints(SPLIT_K, OWN),
            tiles + pointers + (zeros + round_bit, zeros + limit, team.status + zeros, zeros + step),
            dtype=same_types(tl.int32, SPLIT_K),
            is_pure=False,
            pack=OWN,
        )
        missing = False
    elif LOOP.EXCHANGE == "barrier":
        tl.store(where, words)
        arrive(team)
        missing = wait_for(team, expected, True, limit)
        for other in tl.static_range(SPLIT_K):
            tiles = tiles + (load_from_l2(own + other * PART, None, None),)
    else:
        _publish_parts(where, words)
        for _ in tl.static_range(SPLIT_K):
            tiles = tiles + (tl.zeros((OWN_ROWS, BLOCK_B), dtype=tl.int32),)
        missing = limit >= 0
        on = limit >= 0
        end = tl.cast(0, tl.int64)
        polls = 0
        while missing & on:
            stale = tl.zeros((OWN_ROWS, BLOCK_B), dtype=tl.int32)
            tiles = ()
            for other in tl.static_range(SPLIT_K):
                tiles = tiles + (load_from_l2(own + other * PART, None, None),)
                stale = stale | (tiles[other] ^ round_bit)
            missing = any_of((stale & 1) != 0) != 0
            polls += 1
            on, end = goes_on(polls, end, limit)
    sums = tl.zeros((OWN_ROWS, BLOCK_B), dtype=tl.float32)
    for other in tl.static_range(SPLIT_K):
        sums += tl.cast(tiles[other] & -2, tl.float32, bitcast=True)
    if LOOP.EXCHANGE == "spin":
        return _number_by_number(sums, LOOP), limit
    else:
        return unless_stalled(sums, missing, limit, step, team, LOOP)


@triton.jit
def _number_by_number(tile, LOOP: tl.constexpr):
    """The tile, of which LLVM makes no vectors.

    Its SLP vectorizer takes what a step adds to the gradients for a chain of pairs that begins in the step before, and
    to line the pairs up it moves whatever it may to the front of the step: the descriptors of all matrix instructions
    then live through the wait, in vector registers, and come back by R2UR. GRU "save" backwards bf16 H=768 B=16, sm_90:
    1,824 issue cycles, 242 registers and 124 R2UR with them, 1,165, 124 and none so.
    """
    if LOOP.PAIRS:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tile], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tile
