"""Timing: several calls in turns, quantiles of each.

The calls of all providers run in one process and take turns, so that a clock that changes or a neighbour that wakes up
meets them all. What is measured in one repeat is measured again in the next: the spread of the repeats' medians is the
noise of a run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Clock = Literal["events", "wall", "cpu"]
L2 = Literal["cold", "warm", "rotating"]
Call = Callable[[int], object]
"""Runs once on the input of this number."""

FEWEST, MOST = 5, 200


@dataclass(frozen=True)
class Method:
    """How calls are timed.

    clock:    "events": CUDA events around the call; "wall": perf_counter, on a GPU with a synchronisation before both
              readings; "cpu": processor time of this process, which a neighbour on the core does not lengthen.
    l2:       "cold": a write of more than the L2 before every timed call, inputs in rotation; "warm": the call before
              it was the same, on the same input; "rotating" (CPU): inputs in rotation, caches as they are.
    seconds:  of timed calls that each provider may take, all repeats together.
    repeats:  how often all is measured again.
    """

    clock: Clock
    l2: L2
    seconds: float = 0.5
    repeats: int = 3


@dataclass(frozen=True)
class Quantiles:
    """Microseconds."""

    p20: float
    p50: float
    p80: float
    samples: int


def measure(calls: Sequence[Call], method: Method, *, copies: int, device: torch.device) -> list[list[Quantiles]]:
    """Quantiles of every call in every repeat: [call][repeat].

    copies:  inputs that a call may be asked for, numbered from 0.
    """
    seconds = [_warm_up(call, copies, device) for call in calls]
    counts = [_count(once, method.seconds / method.repeats) for once in seconds]
    stopwatch = Events(device) if method.clock == "events" else HostClock(device, method.clock)
    flush = _flush(device) if method.l2 == "cold" else None
    found: list[list[Quantiles]] = [[] for _ in calls]
    order = random.Random(0)
    for _ in range(method.repeats):
        stopwatch.start(len(calls))
        rounds = max(counts)
        for turn in range(rounds):
            # In another order each time: what ran before leaves its traces in the caches.
            for index in order.sample(range(len(calls)), len(calls)):
                if (turn * counts[index]) // rounds == ((turn + 1) * counts[index]) // rounds:
                    continue  # a slow call takes part in some rounds only
                number = 0 if method.l2 == "warm" else turn % copies
                if method.l2 == "warm":
                    calls[index](number)
                if flush is not None:
                    flush()
                stopwatch.time(index, calls[index], number)
        for of_call, samples in zip(found, stopwatch.samples(), strict=True):
            of_call.append(_quantiles(samples))
    return found


class HostClock:
    """perf_counter or the process's processor time around each call."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device = device
        self.now_ns = host_clock_ns(clock)

    def start(self, calls: int) -> None:
        self._samples: list[list[float]] = [[] for _ in range(calls)]

    def time(self, index: int, call: Call, number: int) -> None:
        synchronize(self.device)
        start = self.now_ns()
        call(number)
        synchronize(self.device)
        self._samples[index].append((self.now_ns() - start) / 1e3)

    def samples(self) -> list[list[float]]:
        return self._samples


class Events:
    """CUDA events around each call, read once all calls of a repeat have run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self, calls: int) -> None:
        self._pairs: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in range(calls)]

    def time(self, index: int, call: Call, number: int) -> None:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        call(number)
        after.record()
        self._pairs[index].append((before, after))

    def samples(self) -> list[list[float]]:
        synchronize(self.device)
        return [[before.elapsed_time(after) * 1e3 for before, after in pairs] for pairs in self._pairs]


def host_clock_ns(clock: Clock) -> Callable[[], int]:
    return time.process_time_ns if clock == "cpu" else time.perf_counter_ns


def cpu_clock() -> Clock:
    """Processor time where torch has one thread; with more it would count them all."""
    return "cpu" if torch.get_num_threads() == 1 else "wall"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _warm_up(call: Call, copies: int, device: torch.device) -> float:
    """Run a call until compilation and caches are behind it; seconds of one run."""
    for number in range(2):
        call(number % copies)
    synchronize(device)
    start = time.perf_counter()
    call(0)
    synchronize(device)
    return time.perf_counter() - start


def _count(once: float, seconds: float) -> int:
    return int(np.clip(seconds / max(once, 1e-7), FEWEST, MOST))


def _flush(device: torch.device) -> Callable[[], object]:
    """A write of four times the L2, 256 MiB at least."""
    size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    buffer = torch.empty(max(4 * size, 256 * 2**20), dtype=torch.int8, device=device)
    return buffer.zero_


def _quantiles(samples: Sequence[float]) -> Quantiles:
    p20, p50, p80 = np.percentile(samples, [20, 50, 80])
    return Quantiles(float(p20), float(p50), float(p80), len(samples))
