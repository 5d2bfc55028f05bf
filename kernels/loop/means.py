"""Means over all units of a head inside a step (see `normalise`): each program's own part of one, and everybody's.

A program has the numbers of its own units. Where a team shares a head, its programs hand each other a few numbers a row
in rounds (see `rounds`); every program reads all of them, its own too, and sums them up in the same order, so that all
have the same mean. A cell that takes several means one after the other gives each a number, its SITE, and each site has
scratch memory, and behind a barrier a counter, of its own: its rounds are the steps.

A wait that runs out makes NaNs. In "dataflow" and "barrier" the program's next wait for the team's h may run out too,
before it waits no more: a cell's functions hand no limit on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .exchange import unless_stalled
from .groups import Team
from .rounds import exchange_round, in_round, numbers_of

MOST_NUMBERS = 8
"""That a program hands on of a row in one exchange."""
_MOST_NUMBERS = tl.constexpr(MOST_NUMBERS)


class Place(NamedTuple):
    """A program's units among all of its head's, at a step. Made by keyword."""

    there: Any  # [BLOCK_H, 1] float32: 1 for a unit, 0 where padded
    number: Any  # of the program in its team
    turn: Any  # how many steps the team has had before
    step: Any  # for the report of a stall: see `exchange.Sent`
    limit: Any  # of a wait
    memory: Any  # Memory; () where nothing crosses a team


class Memory(NamedTuple):
    """What the means of a team cross by. Made by keyword."""

    arrivals: Any  # a counter for each site ("barrier"; else ())
    status: Any
    partial: Any  # [sites, 2, MOST_NUMBERS, BLOCK_B, padded members] int32, all ones at launch


class Units(NamedTuple):
    """The second of a normalising cell's p. Made where it is handed over, by keyword: an assignment would make tensors
    of what is known when compiling."""

    place: Any
    LOOP: Any


@triton.constexpr_function
def spread(LOOP):
    """Whether a head's units lie in several programs: a team may also be one program's units and others that share its
    product. What crosses loses a bit, and the mean of a single unit is that unit to the last one."""
    return LOOP.HEAD > LOOP.BLOCK_H


@triton.constexpr_function
def words_of_means(sites, BLOCK_B, members):
    """Of a team's scratch memory."""
    return sites * 2 * MOST_NUMBERS * BLOCK_B * triton.next_power_of_2(members) if members > 1 else 0


@triton.jit
def memory_of_means(team, me, OWN_ROWS: tl.constexpr, CELL: tl.constexpr, LOOP: tl.constexpr):
    """`Place.memory`. A launch's scratch memory has the means of all teams behind all parts of products, of OWN_ROWS
    rows a program."""
    if CELL.normalised == 0 or LOOP.MEMBERS == 1:
        return ()
    else:
        PARTS: tl.constexpr = 2 * LOOP.BLOCK_B * LOOP.SPLIT_K * OWN_ROWS if LOOP.SPLIT_K > 1 else 0
        MEANS: tl.constexpr = words_of_means(CELL.normalised, LOOP.BLOCK_B, LOOP.MEMBERS)
        partial = team.partial + tl.num_programs(0) * PARTS + me.team * MEANS
        if LOOP.EXCHANGE == "barrier":
            behind = team.arrivals + me.team * 32 + 1  # the counter of h
            return Memory(arrivals=behind, status=team.status, partial=partial)
        else:
            return Memory(arrivals=(), status=team.status, partial=partial)


@triton.jit
def units_of(number, LOOP: tl.constexpr):
    """How many units of the head a program of the team has, float32; none where it only shares others' products."""
    return tl.maximum(tl.minimum(LOOP.HEAD - number * LOOP.BLOCK_H, LOOP.BLOCK_H), 0).to(tl.float32)


@triton.jit
def own_sum(tiles, units):
    """Over the program's units of all tiles [units, batch] together: [batch].

    What is summed across threads is no product but with 0 or 1: a compiler makes one instruction of a product and the
    sum with another thread's, which each of two threads then rounds its own way.
    """
    COUNT: tl.constexpr = len(tiles)
    total = tiles[0]
    for index in tl.static_range(1, COUNT):
        total += tiles[index]
    return tl.sum(total * units.place.there, axis=0)


@triton.jit
def _rounded(numbers):
    """To the 23 bits that a round keeps, which would cut them off: what a mean is off by, a small variance makes a
    hundred times as much of."""
    rounded = ((numbers.to(tl.int32, bitcast=True) + 1) & -2).to(tl.float32, bitcast=True)
    return tl.where(numbers == numbers, rounded, numbers)


@triton.jit
def everybodys(numbers, units, SITE: tl.constexpr):
    """Numbers [batch] of each program, as tiles [batch, programs] of the whole team, zero behind the last program."""
    LOOP: tl.constexpr = units.LOOP
    place = units.place
    COUNT: tl.constexpr = len(numbers)
    WORDS: tl.constexpr = triton.next_power_of_2(COUNT)
    MEMBERS: tl.constexpr = LOOP.MEMBERS
    PADDED: tl.constexpr = triton.next_power_of_2(MEMBERS)
    BLOCK_B: tl.constexpr = LOOP.BLOCK_B
    APART: tl.constexpr = BLOCK_B * PADDED
    tl.static_assert(WORDS <= _MOST_NUMBERS, "more numbers in an exchange than its memory holds")
    row = tl.arange(0, BLOCK_B)
    program = tl.arange(0, PADDED)[None, :]
    slot = place.memory.partial + (SITE * 2 + place.turn % 2) * (_MOST_NUMBERS * APART)
    # Each program's numbers, and once more where nobody's would be: a poll has no mask.
    line = tl.arange(0, 2 * WORDS)[:, None]
    record = tl.zeros((2 * WORDS, BLOCK_B), dtype=tl.float32)
    for index in tl.static_range(COUNT):
        record = tl.where(line % WORDS == index, numbers[index][None, :], record)
    again = place.number + line // WORDS * MEMBERS
    column = tl.where(again < PADDED, again, place.number)
    where = slot + (line % WORDS) * APART + row[None, :] * PADDED + column
    first = slot + row[:, None] * PADDED + program
    arrivals = None
    if LOOP.EXCHANGE == "barrier":
        arrivals = place.memory.arrivals + SITE
    team = Team(arrivals=arrivals, status=place.memory.status, spin_limit=place.limit, partial=None)
    expected = (place.turn + 1) * MEMBERS
    limit = place.limit
    words, missing = exchange_round(
        where,
        in_round(_rounded(record), place.turn),
        first,
        place.turn,
        expected,
        limit,
        place.step,
        team,
        COUNT,
        APART,
        LOOP,
    )
    tiles = ()
    for index in tl.static_range(COUNT):
        tile = numbers_of(words[index])
        if LOOP.EXCHANGE != "spin":
            tile, limit = unless_stalled(tile, missing, limit, place.step, team, LOOP)
        tiles = tiles + (tl.where(program < MEMBERS, tile, 0.0),)
    return tiles
