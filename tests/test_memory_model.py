"""What PTX's memory model says of the ways in which the programs of a team hand on h_t.

`memory_model/axioms.py` holds the model in z3; the first test holds it to published verdicts. A property is proved by
there being no execution without it, and every proof has a twin in which one thing that the property hangs on is gone
and such an execution exists.
"""

from __future__ import annotations

import pytest
import z3
from memory_model.axioms import Executions
from memory_model.litmus import LITMUS
from memory_model.protocols import (
    SENTINEL,
    barrier_exchange,
    bit_of,
    cached,
    part_of,
    publish_and_poll,
    three_rounds,
    two_steps,
    weak,
)


@pytest.mark.parametrize("name", LITMUS)
def test_published_verdicts(name):
    litmus = LITMUS[name]
    found = Executions(litmus.program)
    assert found.allow(), "no execution at all"
    assert found.allow(*litmus.outcome(found)) == litmus.allowed


def test_a_word_is_its_own_flag():
    """A poll returns the sentinel or h, and after h never the sentinel again."""
    found = Executions(publish_and_poll())
    value = found.values
    assert found.allow(value["first"] == SENTINEL, value["second"] == 5)
    assert not found.allow(value["second"] != SENTINEL, value["second"] != 5)
    assert not found.allow(value["first"] == 5, value["second"] != 5)


def test_a_word_is_no_flag_of_its_neighbour():
    """Why every word is tested: h is there, and what was published before it is not."""
    found = Executions(publish_and_poll())
    assert found.allow(found.values["second"] == 5, found.values["neighbour"] == SENTINEL)


@pytest.mark.parametrize("broken", [{"publish": weak}, {"first_poll": cached}], ids=["weak publish", "cached load"])
def test_without_strong_accesses_a_word_may_vanish_again(broken):
    """Never another number than h: but a poll after the one that found h may not find it."""
    found = Executions(publish_and_poll(**broken))
    value = found.values
    assert not found.allow(value["second"] != SENTINEL, value["second"] != 5)
    assert found.allow(value["first"] == 5, value["second"] == SENTINEL)


@pytest.mark.parametrize("options", [{}, {"publish": weak}], ids=["strong", "weak"])
def test_two_steps_are_made_of_the_steps_before(options):
    """Also published weakly: every step has memory of its own, and one number is ever written there."""
    found = Executions(two_steps(**options))
    value = found.values
    in_time = [value[name] != SENTINEL for name in ("A reads b1", "B reads a1", "A reads b2", "B reads a2")]
    assert found.allow(*in_time)
    assert not found.allow(*in_time, z3.Or(value["A reads b2"] != 21, value["B reads a2"] != 12))


def _rounds_in_time(found, slots=2):
    """That every wait has ended: what was read has the round's bit."""
    return [found.values[f"{who} reads {turn}"] % 2 == bit_of(turn, slots) for who in "AB" for turn in range(3)]


def _not_of_the_round(found, slots=2):
    wrong = [found.values[f"{who} reads {turn}"] != part_of(turn, slots) for who in "AB" for turn in range(3)]
    return z3.Or(*wrong)


def test_a_part_is_of_its_round():
    found = Executions(three_rounds())
    assert found.allow(*_rounds_in_time(found))
    assert not found.allow(*_rounds_in_time(found), _not_of_the_round(found))


def test_weak_parts_may_be_of_another_round():
    """The third round's bit is the sentinel's: a weak store lets its poll fall back behind the first round."""
    found = Executions(three_rounds(weak))
    assert found.allow(*_rounds_in_time(found), _not_of_the_round(found))


def test_a_slot_is_not_written_again_before_it_was_read():
    """Else its reader would wait for a bit that is gone."""
    found = Executions(three_rounds())
    assert not found.allow(*_rounds_in_time(found), found.values["B early"] == part_of(2))


@pytest.mark.parametrize("broken", [{"slots": 1}, {"waits": False}], ids=["one slot", "no wait between"])
def test_two_slots_and_a_wait_keep_a_part_until_it_was_read(broken):
    slots = broken.get("slots", 2)
    found = Executions(three_rounds(**broken))
    later = z3.Or(*(found.values["B early"] == part_of(turn, slots) for turn in (1, 2)))
    assert found.allow(found.values["A reads 0"] % 2 == bit_of(0, slots), later)


def _counted(found):
    """Program 1 has seen program 0's arrival, and program 0 then both."""
    return [found.values["wait 1"] >= 1, found.values["wait 0"] >= 2]


def test_after_the_barrier_h_is_there():
    found = Executions(barrier_exchange())
    assert found.allow(*_counted(found))
    assert not found.allow(*_counted(found), z3.Or(found.values["1 reads h"] != 5, found.values["0 reads h2"] != 12))


@pytest.mark.parametrize(
    "broken",
    [{"release": "relaxed"}, {"acquire": "relaxed"}, {"bar_before": False}, {"bar_after": False}],
    ids=lambda broken: next(iter(broken)),
)
def test_every_part_of_the_barrier_is_needed(broken):
    found = Executions(barrier_exchange(**broken))
    assert found.allow(*_counted(found), found.values["1 reads h"] == 0)
