"""The results folder: long-form CSV files from which tables and figures are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ...autotune.files import replace_file

SAMPLE_COLUMNS = ["task", "model", "seed", "text"]


@dataclass
class Results:
    """What a run has measured so far.

    curves:        a row a measurement of a learner, see `training.train`, with task and seed.
    baselines:     task, baseline, value.
    equal_hidden:  see `claim.equal_hidden`, with task.
    samples:       task, model, seed, text: what the last trained models make.
    """

    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    baselines: pd.DataFrame = field(default_factory=pd.DataFrame)
    equal_hidden: pd.DataFrame = field(default_factory=pd.DataFrame)
    samples: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SAMPLE_COLUMNS))

    def add(self, table: str, rows: pd.DataFrame, **columns: object) -> None:
        """Append rows to one of the tables, with further columns put in front."""
        rows = rows.copy()
        for i, (name, value) in enumerate(columns.items()):
            rows.insert(i, name, value)
        old = getattr(self, table)
        setattr(self, table, pd.concat([old, rows], ignore_index=True) if len(old) else rows)


TABLES = ("curves", "baselines", "equal_hidden", "samples")


def write_results(results: Results, folder: Path) -> None:
    """Write every table, each whole or not at all."""
    for name in TABLES:
        # Six digits say more than a measurement does, and keep the files small.
        replace_file(folder / f"{name}.csv", getattr(results, name).to_csv(index=False, float_format="%.6g"))


def read_results(folder: Path) -> Results:
    """The tables of a folder. Raises FileNotFoundError, which names the file, where one is missing."""
    return Results(**{name: pd.read_csv(folder / f"{name}.csv") for name in TABLES})
