"""A compile report in one row for each target."""

from __future__ import annotations

import pandas as pd


def summary(report: pd.DataFrame) -> pd.DataFrame:
    """How many kernels were compiled for each target, and the most that any of them takes."""
    rows = []
    for target, rows_of_target in report.groupby("target", sort=False):
        chosen = rows_of_target[rows_of_target["regime"] != "eager"]
        compiled = chosen[chosen["registers"].notna()]
        rows.append(
            {
                "target": target,
                "problems": len(rows_of_target),
                "eager": len(rows_of_target) - len(chosen),
                "failed": len(chosen) - len(compiled),
                "most registers": compiled["registers"].max(),
                "spilling": int((compiled["spill_bytes"] > 0).sum()),
                "most shared bytes": compiled["shared_bytes"].max(),
                "loads W_hh in loop": int((compiled["weight_loads_in_loop"] > 0).sum()),
            }
        )
    return pd.DataFrame(rows)
