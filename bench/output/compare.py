"""Two results folders side by side: what got faster or slower by more than the noise of both."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..method.provenance import read_provenance
from ..method.results import KEY, medians, read, shape_of
from .tables import duration

SAME = ("gpu", "host", "torch", "triton", "cuda", "cudnn", "threads")
"""What should not differ between two runs that are compared."""


def compare(before: Path, after: Path) -> pd.DataFrame:
    """One row a measurement that both folders have.

    change:   after / before - 1 of the medians: negative is faster.
    noise:    sum of both runs' noise (spread of their repeats' medians); NaN where a run was not repeated.
    verdict:  "faster", "slower", "same", or "unknown" without a noise to judge by.

    Raises ValueError where a folder holds no results or nothing is in both.
    """
    both = medians(read(before)).merge(medians(read(after)), on=KEY, suffixes=("_before", "_after"))
    if both.empty:
        raise ValueError(f"{before} and {after} have no measurement in common: same suites on the same cases?")
    change = both["p50_us_after"] / both["p50_us_before"] - 1
    noise = both["noise_before"] + both["noise_after"]
    verdict = pd.Series("same", index=both.index)
    verdict[change < -noise] = "faster"
    verdict[change > noise] = "slower"
    verdict[noise.isna()] = "unknown"
    config = both["config_before"].fillna("").ne(both["config_after"].fillna(""))
    return pd.DataFrame(
        {
            "suite": both["suite"],
            "case": [shape_of(row) for _, row in both.iterrows()],
            "phase": both["phase"],
            "provider": both["provider"],
            "l2": both["l2"],
            "before": [duration(us) for us in both["p50_us_before"]],
            "after": [duration(us) for us in both["p50_us_after"]],
            "change": change,
            "noise": noise,
            "verdict": verdict,
            "config": config.map({True: "another", False: ""}),
        }
    )


def differences(before: Path, after: Path) -> list[str]:
    """Facts of the machines and versions that differ, as sentences; a change may be theirs."""
    ours, theirs = read_provenance(before), read_provenance(after)
    found = []
    for suite in ours.keys() & theirs.keys():
        for name in SAME:
            a, b = ours[suite].get(name), theirs[suite].get(name)
            if a != b:
                found.append(f"{suite}: {name} was {a}, is {b}")
    return sorted(found)
