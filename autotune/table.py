"""What a tuning run tells of its candidates: one row each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd

from ..kernels.config import Config
from ..kernels.layer import Keep

COLUMNS = {
    "config": "string",
    "keep": "string",
    "status": "string",
    "estimate_us": "Float64",
    "cold_us": "Float64",
    "warm_us": "Float64",
    "p20_us": "Float64",
    "p80_us": "Float64",
    "registers": "Int64",
    "shared_bytes": "Int64",
    "is_heuristic": "boolean",
    "why": "string",
}
"""Times are of a whole call of `tune.LENGTH` steps with the largest batch of the class; p20 and p80 are of warm_us."""


@dataclass
class Row:
    """A candidate's line of the table, filled in as the run goes on."""

    config: Config
    keep: Keep
    status: str
    estimate_us: float
    is_heuristic: bool
    registers: int | None = None
    shared_bytes: int | None = None
    cold_us: float | None = None
    warm_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    why: str = ""


def to_table(rows: Iterable[Row]) -> pd.DataFrame:
    """The fastest first, then what was not timed, the most promising first."""
    content = [asdict(row) | {"config": _words(row.config)} for row in rows]
    table = pd.DataFrame(content, columns=list(COLUMNS)).astype(COLUMNS)
    return table.sort_values(["warm_us", "estimate_us"], ignore_index=True)


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


def _words(config: Config) -> str:
    """A config with its stages, which it leaves out of its own words where there is one."""
    return str(config) if config.num_stages == 1 else f"{config} num_stages={config.num_stages}"
