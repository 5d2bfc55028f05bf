"""What the measurements say a training step should keep: gate values, or only what one GEMM cannot bring back."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ..kernels.layer import Keep
from ..kernels.problem import Phase, Problem
from ..kernels.resources import DeviceLimits
from . import store
from .key import Key, key_of
from .lookup import lookup
from .modes import current_mode
from .space import effective_keep

TRAINING: tuple[Keep, ...] = ("save", "recompute")
PHASES: tuple[Phase, ...] = ("forward", "backward")


def faster_keep(problem: Problem, limits: DeviceLimits, *, length: int | None = None) -> Keep | None:
    """The `keep` whose forward and backward pass together took less time where this problem was tuned.

    None where tuning results are off, or not both phases were timed with both. Memory is not asked about.
    """
    if current_mode() == "off":
        return None
    keys = tuple(key_of(replace(problem, phase=phase), length) for phase in PHASES)
    return _faster(problem, keys, limits, store.generation)


@lru_cache(maxsize=1024)
def _faster(problem: Problem, keys: tuple[Key, ...], limits: DeviceLimits, generation: int) -> Keep | None:
    times: dict[Keep, float] = {}
    for keep in TRAINING:
        total = 0.0
        for phase, key in zip(PHASES, keys, strict=True):
            effective = effective_keep(replace(problem, phase=phase), keep)
            entry = lookup(key, effective, limits, generation).entry
            best = entry.best(effective) if entry is not None else None
            if best is None:
                return None
            total += best.p50_us
        times[keep] = total
    return min(times, key=times.__getitem__)
