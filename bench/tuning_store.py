"""What a store of tuning results holds, as a table."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console

from ..autotune.identity import keeps, problem_of
from ..autotune.store import Entry, EntryError, Store
from .tables import print_table
from .tuning import quality_line


def print_store(store: Store) -> None:
    """Print a line a file, and the heuristic's quality over all of them."""
    console = Console()
    found = list(store.entries())
    console.print(f"{len(found)} entries in {store.root}", markup=False)
    if found:
        print_table(store_table(store), console)
        console.print(quality_line([entry for _, entry in found if isinstance(entry, Entry)]), markup=False)


def store_table(store: Store) -> pd.DataFrame:
    """One row per file: what it holds, or why it cannot be used."""
    rows: list[dict[str, Any]] = []
    for path, entry in store.entries():
        if isinstance(entry, EntryError):
            rows.append({"entry": path.stem, "note": str(entry).partition(": ")[2]})
            continue
        best = entry.best(keeps(problem_of(entry.key))[0])
        rows.append(
            {
                "entry": entry.key.name,
                "gpu": entry.fingerprint.gpu,
                "triton": entry.fingerprint.triton,
                "timings": len(entry.timings),
                "rejected": len(entry.rejected),
                "best us": f"{best.p50_us:.1f}" if best else "none",
                "best config": str(best.config) if best else "",
                "note": "" if best else "no complete timing: not used",
            }
        )
    return pd.DataFrame(rows).astype(object).fillna("")
