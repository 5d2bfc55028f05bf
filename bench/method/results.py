"""The results table: one row a provider, phase, case, L2 state and repeat, kept in `results.csv` of a folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

FILE = "results.csv"
SHAPE = ["cell", "dtype", "H", "B", "T", "I", "directions", "layers", "heads", "sequences"]
"""What tells cases apart."""

KEY = ["suite", "provider", "phase", *SHAPE, "l2", "clock"]
"""What tells measurements apart; repeats share it."""

COLUMNS = [
    *KEY,
    "repeat",
    "samples",
    "p20_us",
    "p50_us",
    "p80_us",
    "us_per_step",
    "baseline",
    "ratio",
    "floor_us",
    "floor_multiple",
    "bytes_held",
    "bytes_peak",
    "rate",
    "regime",
    "config",
    "origin",
    "algorithm",
    "error",
    "allowed",
    "status",
    "note",
]
"""In the order of the file.

p20_us, p50_us, p80_us:  of a whole call, within the repeat.
baseline, ratio:         the provider compared with, and its p50 in the same repeat over this row's: above 1 this row
                         is faster.
floor_us:                least time of a call on this machine (bench/README.md), floor_multiple: p50 over it.
bytes_held, bytes_peak:  between forward and backward; at most at once.
rate:                    of a floor measurement: bytes or floating-point operations a second.
error, allowed:          largest error against float64, and what is allowed.
status:                  "ok", "wrong" (no time), "unavailable", "failed", "rehearsed", "computed".
"""


WORDS = {"suite", "provider", "phase", "cell", "dtype", "sequences", "l2", "clock"}
WORDS |= {"baseline", "regime", "config", "origin", "algorithm", "status", "note"}


class Results:
    """The rows of one suite on their way into a folder; what other suites left there stays.

    Rows are written whenever some are added: a run that is cut off keeps what it has.
    """

    def __init__(self, folder: Path, suite: str) -> None:
        self.folder, self.suite = folder, suite
        folder.mkdir(parents=True, exist_ok=True)
        existing = read(folder) if (folder / FILE).exists() else pd.DataFrame(columns=COLUMNS)
        self._others = existing[existing["suite"] != suite]
        self.rows: list[dict[str, object]] = []

    def add(self, rows: Iterable[dict[str, object]]) -> None:
        self.rows += [{"suite": self.suite, **row} for row in rows]
        written = self.table()
        if len(self._others):
            written = pd.concat([self._others, written], ignore_index=True)
        partial = self.folder / f".{FILE}.{os.getpid()}"
        written.to_csv(partial, index=False, float_format="%.6g")
        os.replace(partial, self.folder / FILE)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=COLUMNS)


def read(folder: Path) -> pd.DataFrame:
    """The results of a folder. ValueError where there are none or the file has other columns."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FILE}; `holdfast bench SUITE --out {folder}` writes one")
    words = {name: "string" for name in ("note", "config", "algorithm")}
    try:
        table = pd.read_csv(path, keep_default_na=True, dtype=words)
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path} is not a results file of this version: it lacks {', '.join(missing)}; run it again")
    for name in COLUMNS:
        if name in WORDS:
            continue
        try:
            table[name] = pd.to_numeric(table[name])
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: column {name} should hold numbers: {error}") from error
        if table[name].isin([math.inf, -math.inf]).any():
            raise ValueError(f"{path}: column {name} should hold finite numbers")
    return table[COLUMNS]


def medians(table: pd.DataFrame) -> pd.DataFrame:
    """One row a measurement: medians over the repeats, and their spread as the noise.

    noise:  (largest - smallest) / median of the repeats' p50; NaN where there is one repeat only.
    """
    timed = table[table["p50_us"].notna()]
    if timed.empty:
        return timed.assign(noise=pd.Series(dtype=float))
    groups = timed.groupby(KEY, sort=False, dropna=False)
    numbers = groups[["p20_us", "p50_us", "p80_us", "us_per_step", "ratio", "floor_us", "floor_multiple"]].median()
    words = groups[["regime", "config", "origin", "algorithm", "baseline", "error", "allowed", "status"]].first()
    spread = (groups["p50_us"].max() - groups["p50_us"].min()) / groups["p50_us"].median()
    noise = spread.where(groups["p50_us"].count() > 1).rename("noise")
    return numbers.join(words).join(noise).reset_index()


def shape_of(row: pd.Series) -> str:
    """A case in a few characters: "lstm fp16 H=768 B=16 T=1024"."""
    values = {name: row[name] for name in SHAPE if pd.notna(row[name])}
    words = [str(values.pop(name)) for name in ("cell", "dtype") if name in values]
    words += [f"{name}={int(values[name])}" for name in ("H", "B", "T") if name in values]
    if "I" in values and "H" in values and values["I"] != values["H"] * values.get("heads", 1):
        words.append(f"I={int(values['I'])}")
    words += [f"{int(values[name])} {name}" for name in ("directions", "layers", "heads") if values.get(name, 1) > 1]
    words += [values["sequences"]] if values.get("sequences", "dense") != "dense" else []
    return " ".join(words)
