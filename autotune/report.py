"""What tuning has told: a table of a run's candidates; how good the estimate and the heuristic were."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import pandas as pd

from ..kernels.config import Config
from ..kernels.kept import Keep
from .identity import problem_of, usual_keep
from .store import Entry


@dataclass(kw_only=True)
class Row:
    """A candidate's line of the table, filled in as the run goes on.

    Times are of a whole call of `tune.LENGTH` steps with the largest batch of the class; p20 and p80 are of warm_us.
    """

    config: Config
    keep: Keep
    status: str = "compiled"
    estimate_us: float
    cold_us: float | None = None
    warm_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    registers: int | None = None
    shared_bytes: int | None = None
    is_heuristic: bool
    why: str = ""


_DTYPES = {"float": "Float64", "int": "Int64", "bool": "boolean"}
COLUMNS = {f.name: _DTYPES.get(str(f.type).removesuffix(" | None"), "string") for f in fields(Row)}
"""Of the table: pandas' own types, in which a number may be missing."""


def to_table(rows: Iterable[Row]) -> pd.DataFrame:
    """The fastest first, then what was not timed, the most promising first."""
    content = [asdict(row) | {"config": _words(row.config)} for row in rows]
    table = pd.DataFrame(content, columns=list(COLUMNS)).astype(COLUMNS)
    return table.sort_values(["warm_us", "estimate_us"], ignore_index=True)


def _words(config: Config) -> str:
    """A config with its stages, which it leaves out of its own words where there is one."""
    return str(config) if config.num_stages == 1 else f"{config} num_stages={config.num_stages}"


def rank_correlation(table: pd.DataFrame) -> float | None:
    """Spearman's correlation of estimated and measured times; None with fewer than three measurements.

    1: the model orders the candidates as the GPU does; 0: it knows nothing. Ranks and then Pearson's formula, because
    pandas' own "spearman" needs SciPy.
    """
    timed = table[table["warm_us"].notna()]
    if len(timed) < 3:
        return None
    found = timed["estimate_us"].rank().corr(timed["warm_us"].rank())
    return None if pd.isna(found) else float(found)


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
    """The figure over all tuned problems of cells that are defined here; None where no problem has both times."""
    ratios: dict[str, float] = {}
    for entry in entries:
        try:
            timed = entry.latest(usual_keep(problem_of(entry.key)))
        except KeyError:  # a cell of somebody's own
            continue
        if entry.heuristic in timed:
            best = min(t.p50_us for t in timed.values())
            ratios[entry.key.name] = timed[entry.heuristic].p50_us / best
    if not ratios:
        return None
    where = max(ratios, key=lambda name: ratios[name])
    return Quality(len(ratios), statistics.geometric_mean(ratios.values()), ratios[where], where)
