"""How good the heuristic is where somebody has measured: its choice's time over the tuned best."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .entry import Entry
from .key import problem_of
from .space import keeps

GOAL_MEAN, GOAL_WORST = 1.15, 1.5


@dataclass(frozen=True)
class Quality:
    """problems:        results with a time of the heuristic's choice and of the best.
    geometric_mean:  of the heuristic's time over the best; 1 is perfect.
    worst:           the largest of these ratios, and `where`: the name of its key.
    """

    problems: int
    geometric_mean: float
    worst: float
    where: str

    def __str__(self) -> str:
        return (
            f"heuristic over tuned best, {self.problems} problem(s): geometric mean {self.geometric_mean:.3f} "
            f"(goal {GOAL_MEAN}), worst {self.worst:.3f} (goal {GOAL_WORST}) at {self.where}"
        )


NO_MEASUREMENTS = "heuristic over tuned best: no measurements"


def heuristic_quality(entries: Iterable[Entry]) -> Quality | None:
    """The figure over all tuned problems; None where no problem has both times."""
    ratios: dict[str, float] = {}
    for entry in entries:
        timed = entry.latest(keeps(problem_of(entry.key))[0])
        if entry.heuristic in timed:
            best = min(t.p50_us for t in timed.values())
            ratios[entry.key.name] = timed[entry.heuristic].p50_us / best
    if not ratios:
        return None
    where = max(ratios, key=lambda name: ratios[name])
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    return Quality(len(ratios), mean, ratios[where], where)
