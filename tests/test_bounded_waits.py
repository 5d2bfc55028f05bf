"""A program that never comes, comes late or is killed: the others end within their limit, no number is wrong, and the
host is told which team it was and how far it had got."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import holdfast
from holdfast.kernels import launch
from holdfast.kernels.stall import describe_stall, raise_if_stalled, status_word

pytest.importorskip("greenlet")  # a lent machine lacks it

from guards import guarded
from schedules import EXCHANGES, LONGER, expected, poisoned, runner

from holdfast.kernels.executor import executing_on
from holdfast.kernels.interpreter import Interpreter

CPU = torch.device("cpu")
TEAMS = {
    name: replace(exchange, poison=False)
    for name, exchange in (EXCHANGES | LONGER).items()
    if exchange.config.regime == "cooperative"
}
QUICK = [name for name in TEAMS if name in EXCHANGES]
FIRST_STEP = "Team 0 gave up in a first step: one of its programs had not begun"


def run(exchange, monkeypatch, **options):
    """Results that a launch on a GPU leaves behind, and what the host says."""
    right = expected(exchange)
    interpreter = Interpreter(
        3, raise_on_deadlock=False, most_turns=5000, resident_programs=exchange.resident, **options
    )
    interpreter.spin_limit = 60  # weak memory takes a few polls where nothing is wrong
    status_word(CPU).zero_()
    with monkeypatch.context() as patch, poisoned(), executing_on(interpreter):
        patch.setattr(launch, "raise_if_stalled", lambda device: None)
        patch.setattr("holdfast.kernels.layer.raise_if_stalled", lambda device: None)
        found = runner(exchange)()
    for a, b in zip(found, right, strict=True):
        wrong = (a != b) & ~a.isnan()
        assert not wrong.any(), f"{int(wrong.sum())} wrong numbers; {interpreter.replay}"
    try:
        raise_if_stalled(CPU)
    except holdfast.StalledError as error:
        return found, str(error), interpreter
    return found, "", interpreter


@pytest.mark.parametrize("name", QUICK)
def test_a_program_that_never_starts(name, monkeypatch):
    found, message, _ = run(TEAMS[name], monkeypatch, stalled={1})
    assert found[0].isnan().any()
    assert FIRST_STEP in message
    assert "holdfast.backend('eager')" in message
    assert "HOLDFAST_STALL_SECONDS" in message


@pytest.mark.parametrize("name", QUICK)
def test_a_program_that_starts_too_late(name, monkeypatch):
    """A sibling stream held the GPU for longer than the limit: told by the step. The late one ends as well."""
    found, message, interpreter = run(TEAMS[name], monkeypatch, late={0})
    assert found[0].isnan().any()
    assert "Team 0 gave up in a first step" in message
    assert interpreter.trace[-1] == 0


@pytest.mark.parametrize("name", QUICK)
def test_a_program_that_is_killed_halfway(name, monkeypatch):
    """Turns of the whole run are counted first; at its end nobody waits for it any more."""
    _, nothing, interpreter = run(TEAMS[name], monkeypatch)
    assert nothing == ""
    turns = interpreter.trace.count(1)
    messages = [run(TEAMS[name], monkeypatch, stalled={1: turns * k // 6})[1] for k in range(1, 6)]
    assert "in a first step" in messages[0]
    assert any("all its programs had begun" in message for message in messages), messages


@pytest.mark.slow
@pytest.mark.parametrize("name", TEAMS)
def test_a_program_that_is_killed_at_any_time(name, monkeypatch):
    exchange = TEAMS[name]
    _, _, interpreter = run(exchange, monkeypatch)
    programs = sorted(set(interpreter.trace))
    for program in programs:
        steps = []
        for turn in range(interpreter.trace.count(program)):
            _, message, _ = run(exchange, monkeypatch, stalled={program: turn})
            if "first step" in message:
                steps.append(0)
            elif message:
                steps.append(int(message.split("gave up after ")[1].split()[0]))
        assert steps, "somebody waits for every program"
        assert max(steps) < 2 * exchange.length
        assert steps[0] == 0


@pytest.mark.parametrize("name", ["dataflow forward", "barrier forward", "dataflow two products"])
def test_what_a_wait_in_vain_leaves_is_nan(name, monkeypatch):
    """Where fresh memory is zero: what the others computed without the missing units, of the first step alone right."""
    exchange = TEAMS[name]
    right, interpreter = expected(exchange), Interpreter(3, stalled={1}, raise_on_deadlock=False, most_turns=5000)
    interpreter.spin_limit = 60
    with monkeypatch.context() as patch, guarded(fresh=0), executing_on(interpreter):
        patch.setattr(launch, "raise_if_stalled", lambda device: None)
        y, *final = runner(exchange)()
    own = slice(0, exchange.config.BLOCK_H)
    rows = slice(0, exchange.config.BLOCK_B)
    if "products" not in name:  # else the first step has waited already
        assert torch.equal(y[0, rows, own], right[0][0, rows, own])
    assert y[1:, rows, own].isnan().all()
    assert all(state[:, rows, own].isnan().all() for state in final)
    with pytest.raises(holdfast.StalledError):
        raise_if_stalled(CPU)


def test_what_the_status_word_says():
    assert describe_stall(1 << 20).startswith("Team 0 gave up in a first step: one of its programs had not begun")
    assert describe_stall(8 << 20 | 17).startswith("Team 7 gave up after 17 steps: all its programs had begun")


def test_a_team_names_itself(monkeypatch):
    """The second of two teams, and only that."""
    exchange = replace(TEAMS["barrier forward"], resident=4)
    assert "Team 1 gave up in a first step" in run(exchange, monkeypatch, stalled={3})[1]
    assert "Team 0 gave up in a first step" in run(exchange, monkeypatch, stalled={0})[1]
