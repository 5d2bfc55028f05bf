"""A product whose sum is split over SPLIT_K programs: their partial sums go through global memory, and each program
takes its share of the total.

Backwards W_hh^T da runs over all gates of all units: one program with 16 units would gather G * H numbers a row and
its product would have 16 rows. Split, it gathers a part of them for SPLIT_K times as many units. LSTM H=768, batch
tile of 16: 24 KB a step and 64 rows (one warp group's wgmma), not 98 KB and four products of 16 rows; for a second,
small exchange.

Forwards float32 without TF32 keeps W_hh twice (see `weights.add_product`): 64 rows of more than 384 columns fit no SM.
LSTM H=512, sm_90: two programs that share 64 rows take 1,725 issue cycles a step, one with 32 rows, which are no wgmma,
4,654.

The parts pass through the scratch memory of a unit block in rounds (see `rounds`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .exchange import unless_stalled
from .rounds import exchange_round, in_round, numbers_of


@triton.jit
def columns_of_part(end, part, LOOP: tl.constexpr):
    """How many of the columns up to `end` lie before the end of a part, counted from its first; negative: none do."""
    if LOOP.HEAD % 16 == 0:
        # In sixteens the compiler knows the remainder, and loads whole vectors under the mask.
        return tl.minimum(end // 16 - part * (LOOP.PART // 16), LOOP.PART // 16) * 16
    else:
        return tl.minimum(end - part * LOOP.PART, LOOP.PART)


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
    words = in_round(product, turn)
    where = slot + part * PART + row * ROWS + tl.arange(0, ROWS)[:, None]
    own = slot + row * ROWS + (part * OWN_ROWS + tl.arange(0, OWN_ROWS))[:, None]
    tiles, missing = exchange_round(where, words, own, turn, expected, limit, step, team, SPLIT_K, PART, LOOP)
    sums = tl.zeros((OWN_ROWS, BLOCK_B), dtype=tl.float32)
    for other in tl.static_range(SPLIT_K):
        sums += numbers_of(tiles[other])
    if LOOP.EXCHANGE == "spin":
        return _number_by_number(sums, LOOP), limit
    else:
        return unless_stalled(sums, missing, limit, step, team, LOOP)


@triton.jit
def _number_by_number(numbers, LOOP: tl.constexpr):
    """The numbers, of which LLVM makes no vectors.

    Its SLP vectorizer takes what a step adds to the gradients for a chain of pairs that begins in the step before, and
    to line the pairs up it moves whatever it may to the front of the step: the descriptors of all matrix instructions
    then live through the wait, in vector registers, and come back by R2UR. GRU "save" backwards bf16 H=768 B=16, sm_90:
    1,824 issue cycles, 242 registers and 124 R2UR with them, 1,165, 124 and none so. Of a cell with two states the
    chain begins elsewhere: an LSTM gains nothing, and with lengths or resets loses 400 to 700 (768, 1,024 units).
    """
    if LOOP.NO_VECTORS:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [numbers], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return numbers
