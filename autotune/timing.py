"""Time a call on a GPU with CUDA events, the L2 cache warm or cleared; give up on what cannot win."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .entry import L2

FEWEST, MOST = 5, 100
"""Calls that are timed, and at most how many."""

SPEND_US = 50_000.0
"""About what all calls of one timing take together."""

LOSES_BY = 1.3
"""A call is given up when its first few runs all take this much longer than the best call known."""

_TRIES = 3
_HEAD_START_CLOCKS = 1_000_000
"""The GPU sleeps this long, about half a millisecond, while the host queues a call: gaps of the host are not timed."""


class Quantiles(NamedTuple):
    """Microseconds of one call over `repeats` calls. stopped: given up after a few."""

    p20: float
    p50: float
    p80: float
    repeats: int
    stopped: bool = False


def time_call(call: Callable[[], object], device: torch.device, l2: L2, best_us: float | None = None) -> Quantiles:
    """Time a call that has run before, so that it is compiled.

    best_us:  the median to beat; None: every call is timed to its end.

    Raises what the call raises.
    """
    with torch.cuda.device(device):
        # Twice the cache: one write of it leaves nothing of what was there.
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        flush = torch.empty(2 * cache_bytes, dtype=torch.int8, device=device) if l2 == "cold" else None
        first = _time(call, flush, _TRIES)
        if best_us is not None and min(first) > LOSES_BY * best_us:
            return quantiles(first, stopped=True)
        repeats = round(SPEND_US / max(min(first), 1.0))
        return quantiles(_time(call, flush, min(MOST, max(FEWEST, repeats))))


def _time(call: Callable[[], object], flush: torch.Tensor | None, repeats: int) -> list[float]:
    pairs = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if flush is not None:
            flush.zero_()
        torch.cuda._sleep(_HEAD_START_CLOCKS)
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in pairs]


def quantiles(times: list[float], stopped: bool = False) -> Quantiles:
    """The 20th, 50th and 80th percentile of times, by the nearest of them."""
    ordered = sorted(times)
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return Quantiles(p20, p50, p80, len(times), stopped)
