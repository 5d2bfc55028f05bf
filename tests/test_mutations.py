"""Whatever synchronises the kernels is missed by a test when it is taken away: see `mutations`.

The committed table is what `python tests/mutations.py --out bench/results/offline/mutations.md` found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("greenlet")  # a lent machine lacks it

from mutations import CASES, MUTATIONS, Mutation, applied, noticed

from holdfast.kernels.loop import exchange, rounds

QUICK = 54
BY_SCHEDULES = [mutation for mutation in MUTATIONS if mutation.notices in CASES]
COMMITTED = Path(__file__).parent.parent / "bench/results/offline/mutations.md"


@pytest.mark.parametrize("mutation", BY_SCHEDULES, ids=lambda m: m.name)
def test_a_schedule_notices(mutation):
    how = noticed(mutation, 6 if mutation.survives else QUICK)
    assert bool(how) != bool(mutation.survives), how


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m not in BY_SCHEDULES], ids=lambda m: m.name)
def test_a_test_notices(mutation):
    how = noticed(mutation, QUICK)
    assert bool(how) != bool(mutation.survives), how


def test_a_mutation_reaches_everybody_and_is_taken_back():
    before = exchange.arrive
    assert rounds.arrive is before
    with applied(Mutation("", "loop.exchange:arrive", "tl.debug_barrier()", "pass", "")):
        assert rounds.arrive is exchange.arrive is not before
    assert rounds.arrive is exchange.arrive is before


def test_a_mutation_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="is not in"), applied(Mutation("", "loop.exchange:arrive", "nothing", "", "")):
        pass


def test_the_committed_table_has_every_mutation():
    rows = COMMITTED.read_text().splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [mutation.name for mutation in MUTATIONS]
    survivors = [row.split(" | ")[0].strip("| ") for row in rows if "| nobody |" in row]
    assert survivors == [mutation.name for mutation in MUTATIONS if mutation.survives]
