"""Timing: calls take turns, slow ones take fewer, and quantiles are of what was timed."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from holdfast.bench.method.measure import FEWEST, MOST, Method, measure

CPU = torch.device("cpu")


class Clock:
    """In place of `time`: it passes only where a call sleeps, whatever else the machine does."""

    def __init__(self) -> None:
        self.now_ns = 0

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9


CLOCK = Clock()


def recorder(log: list[tuple[str, int]], name: str, seconds: float = 0.0, sleep=CLOCK.sleep):
    def call(number: int) -> None:
        log.append((name, number))
        sleep(seconds)

    return call


def run(calls, **options):
    method = Method("wall", options.pop("l2", "rotating"), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure.__globals__, "time", CLOCK)
        return measure(calls, method, copies=3, device=CPU)


def test_every_repeat_of_every_call_is_there():
    log: list[tuple[str, int]] = []
    found = run([recorder(log, "a"), recorder(log, "b")], seconds=0.02, repeats=4)
    assert [len(of_call) for of_call in found] == [4, 4]
    assert all(q.p20 <= q.p50 <= q.p80 and FEWEST <= q.samples <= MOST for of_call in found for q in of_call)


def test_quantiles_are_microseconds_of_the_call():
    ((fast,), (slow,)) = run([recorder([], "a", 0.001), recorder([], "b", 0.004)], seconds=0.02, repeats=1)
    assert 1000 <= fast.p20 <= fast.p80 < 4000 <= slow.p20


def test_processor_time_leaves_out_waiting():
    def busy(number: int) -> None:
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass

    calls = [recorder([], "asleep", 0.01, time.sleep), busy]
    (asleep,), (working,) = measure(calls, Method("cpu", "rotating", 0.05, repeats=1), copies=1, device=CPU)
    assert asleep.p50 < 1000
    assert 2000 <= working.p20 < 10_000


def test_calls_take_turns_in_changing_order():
    """Between two calls of one provider there is one of the other, and not always in the same order."""
    log: list[tuple[str, int]] = []
    run([recorder(log, "a"), recorder(log, "b")], seconds=60, repeats=1)  # both as often as a call may be timed
    timed = [name for name, _ in log[6:]]  # three warm-up calls each
    pairs = list(zip(timed[::2], timed[1::2], strict=True))
    assert {frozenset(pair) for pair in pairs} == {frozenset("ab")}
    assert len(set(pairs)) == 2


def test_a_slow_call_takes_fewer_turns():
    log: list[tuple[str, int]] = []
    ((fast,), (slow,)) = run([recorder(log, "fast", 0.0001), recorder(log, "slow", 0.01)], seconds=0.05, repeats=1)
    assert slow.samples == FEWEST
    assert fast.samples > 5 * slow.samples


@pytest.mark.parametrize("l2", ["rotating", "warm"])
def test_inputs_rotate_unless_the_cache_is_warm(l2):
    log: list[tuple[str, int]] = []
    run([recorder(log, "a", 0.001)], seconds=0.02, repeats=1, l2=l2)
    numbers = [number for _, number in log[3:]]
    assert set(numbers) == ({0, 1, 2} if l2 == "rotating" else {0})
    assert all(a != b for a, b in itertools.pairwise(numbers)) == (l2 == "rotating")


def test_on_a_gpu_events_stand_around_each_call_and_the_cache_is_cleared_before(monkeypatch):
    """With CUDA's part replaced by a recorder: clear, event, call, event; nothing else in between."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 0.25  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr("holdfast.bench.method.measure._flush", lambda device: lambda: log.append("clear"))
    method = Method("events", "cold", seconds=0.01, repeats=2)
    (found,) = measure([lambda number: log.append("call")], method, copies=2, device=CPU)
    timed = log[3:]  # after the warm-up
    assert timed == ["clear", "event", "call", "event"] * (len(timed) // 4)
    assert [q.p50 for q in found] == [250.0, 250.0]
    assert sum(q.samples for q in found) == len(timed) // 4
