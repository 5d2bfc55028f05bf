"""No wait of a team waits for ever, in whatever order its programs run, as long as all of them run."""

from __future__ import annotations

import pytest
from memory_model.liveness import Walk, barrier, dataflow, split_k


@pytest.mark.parametrize(("members", "steps", "products"), [(2, 4, 1), (3, 3, 1), (4, 2, 1), (3, 2, 2)])
def test_dataflow_always_ends(members, steps, products):
    walk = Walk(dataflow(members, steps, products))
    assert walk.states > members
    assert not walk.stuck


@pytest.mark.parametrize(("members", "steps", "tiles"), [(2, 4, 1), (3, 3, 1), (3, 2, 2), (2, 3, 2), (4, 2, 1)])
def test_the_barrier_always_ends_and_never_too_early(members, steps, tiles):
    walk = Walk(barrier(members, steps, tiles))
    assert not walk.stuck
    assert not walk.wrong


def test_the_barrier_counts_all_members():
    """One arrival too few, and a member goes on without another's h."""
    assert Walk(barrier(3, 3, expected=lambda turn: 3 * turn - 1)).wrong


@pytest.mark.parametrize(("parts", "rounds"), [(2, 6), (3, 4), (4, 3)])
def test_parts_always_come_and_are_of_their_round(parts, rounds):
    walk = Walk(split_k(parts, rounds))
    assert not walk.stuck
    assert not walk.wrong


def test_parts_in_one_slot_are_lost():
    """The next part overwrites one that somebody still waits for."""
    assert Walk(split_k(2, 4, slots=1)).stuck


@pytest.mark.parametrize("resident", [3, 2, 1])
def test_a_team_that_is_not_resident_as_a_whole_never_ends(resident):
    """Why a launch asks first how many programs fit."""
    assert Walk(dataflow(4, 2), resident).stuck


def test_teams_wait_for_their_own_members_alone():
    """Two teams of which one fits: it ends, and the other after it."""
    teams = [*dataflow(2, 3, team="a"), *dataflow(2, 3, team="b")]
    assert not Walk(teams).stuck
    assert not Walk(teams, resident=2).stuck
    assert Walk([teams[0], teams[2], teams[1], teams[3]], resident=2).stuck
