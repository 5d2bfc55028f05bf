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


class Units(NamedTuple):
    """A program's units among all of its head's; the last of a normalising cell's p. Made by keyword."""

    there: Any  # [BLOCK_H, 1] float32: 1 for a unit, 0 where padded
    number: Any  # of the program in its team
    turn: Any  # how many steps the team has had before
    step: Any  # for the report of a stall: see `exchange.Sent`
    limit: Any  # of a wait
    team: Any  # Team, whose `partial` is its means': [sites, 2, MOST_NUMBERS, BLOCK_B, padded members]; alone, of Nones
    LOOP: Any


@triton.constexpr_function
def words_of_means(sites, BLOCK_B, members):
    """Of a team's scratch memory."""
    return sites * 2 * MOST_NUMBERS * BLOCK_B * triton.next_power_of_2(members) if members > 1 else 0


@triton.jit
def team_of_means(team, me, OWN_ROWS: tl.constexpr, CELL: tl.constexpr, LOOP: tl.constexpr):
    """`Units.team`. A launch's scratch memory has the means of all teams behind all parts of products, of OWN_ROWS rows
    a program."""
    PARTS: tl.constexpr = 2 * LOOP.BLOCK_B * LOOP.SPLIT_K * OWN_ROWS if LOOP.SPLIT_K > 1 else 0
    MEANS: tl.constexpr = words_of_means(CELL.normalised, LOOP.BLOCK_B, LOOP.MEMBERS)
    partial = team.partial + tl.num_programs(0) * PARTS + me.team * MEANS
    arrivals = team.arrivals
    if LOOP.EXCHANGE == "barrier":
        arrivals += me.team * 32 + 1  # behind the counter of h
    return Team(arrivals=arrivals, status=team.status, spin_limit=team.spin_limit, partial=partial)


@triton.jit
def _units_of(number, LOOP: tl.constexpr):
    """How many units of the head a program of the team has, float32; none where it only shares others' products."""
    return tl.maximum(tl.minimum(LOOP.HEAD - number * LOOP.BLOCK_H, LOOP.BLOCK_H), 0).to(tl.float32)


@triton.jit
def own_mean(tiles, units):
    """Over the program's units of all tiles [units, batch] together: [batch]."""
    LOOP: tl.constexpr = units.LOOP
    COUNT: tl.constexpr = len(tiles)
    total = tiles[0]
    for index in tl.static_range(1, COUNT):
        total += tiles[index]
    return tl.sum(total * units.there, axis=0) / (tl.maximum(_units_of(units.number, LOOP), 1.0) * COUNT)


@triton.jit
def everybodys(numbers, units, SITE: tl.constexpr):
    """Numbers [batch] of each program, as tiles [batch, programs] of the whole team; and the share of each program's
    units in the head, [1, programs], zero behind the last."""
    LOOP: tl.constexpr = units.LOOP
    COUNT: tl.constexpr = len(numbers)
    WORDS: tl.constexpr = triton.next_power_of_2(COUNT)
    MEMBERS: tl.constexpr = LOOP.MEMBERS
    PADDED: tl.constexpr = triton.next_power_of_2(MEMBERS)
    BLOCK_B: tl.constexpr = LOOP.BLOCK_B
    APART: tl.constexpr = BLOCK_B * PADDED
    tl.static_assert(WORDS <= _MOST_NUMBERS, "more numbers in an exchange than its memory holds")
    row = tl.arange(0, BLOCK_B)
    program = tl.arange(0, PADDED)[None, :]
    slot = units.team.partial + (SITE * 2 + units.turn % 2) * (_MOST_NUMBERS * APART)
    # Each program's numbers, and once more where nobody's would be: a poll has no mask.
    place = tl.arange(0, 2 * WORDS)[:, None]
    record = tl.zeros((2 * WORDS, BLOCK_B), dtype=tl.float32)
    for index in tl.static_range(COUNT):
        record = tl.where(place % WORDS == index, numbers[index][None, :], record)
    again = units.number + place // WORDS * MEMBERS
    column = tl.where(again < PADDED, again, units.number)
    where = slot + (place % WORDS) * APART + row[None, :] * PADDED + column
    first = slot + row[:, None] * PADDED + program
    arrivals = units.team.arrivals
    if LOOP.EXCHANGE == "barrier":
        arrivals += SITE
    team = Team(arrivals=arrivals, status=units.team.status, spin_limit=units.limit, partial=units.team.partial)
    expected = (units.turn + 1) * MEMBERS
    limit = units.limit
    words, missing = exchange_round(
        where, in_round(record, units.turn), first, units.turn, expected, limit, units.step, team, COUNT, APART, LOOP
    )
    tiles = ()
    for index in tl.static_range(COUNT):
        tile = numbers_of(words[index])
        if LOOP.EXCHANGE != "spin":
            tile, limit = unless_stalled(tile, missing, limit, units.step, team, LOOP)
        tiles = tiles + (tile,)
    return tiles, tl.where(program < MEMBERS, _units_of(program, LOOP) * (1.0 / LOOP.HEAD), 0.0)
