"""What came of tuning, and what a store of tuning results holds, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ...autotune.constants import constants_for
from ...autotune.identity import keeps, problem_of
from ...autotune.report import NO_MEASUREMENTS, heuristic_quality, rank_correlation
from ...autotune.select import stores
from ...autotune.store import Entry, EntryError, Store
from ...autotune.tune import Tuned
from ...kernels.resources import DeviceLimits
from .tables import print_table, to_markdown

TEN_BEST = 10


def summary(done: Sequence[Tuned]) -> pd.DataFrame:
    """One row per problem: what was tried, the best, the heuristic's choice, how well the estimate ordered them."""
    return pd.DataFrame([_summary_row(tuned) for tuned in done])


def _summary_row(tuned: Tuned) -> dict[str, Any]:
    key, table = tuned.entry.key, tuned.table
    keep = keeps(problem_of(key))[0]
    latest = tuned.entry.latest(keep)
    best, fused = tuned.entry.best(keep), tuned.entry.fused(keep)
    default = latest.get(tuned.entry.heuristic) if tuned.entry.heuristic else None
    extra = [*(["both directions"] if key.directions == 2 else []), *key.features]
    extra += ["short"] if key.length == "short" else []
    correlation = rank_correlation(table[table["keep"] == keep])
    return {
        "problem": " ".join([key.cell, key.phase, key.dtype, f"H={key.hidden_size}", f"B<={key.batch}", *extra]),
        "tried": len(table),
        "timed": int(table["warm_us"].notna().sum()),
        "best config": str(best.config) if best else "",
        "best us": f"{best.p50_us:.1f}" if best else "none",
        "torch us": f"{fused.p50_us:.1f}" if fused else "none",
        "winner": tuned.entry.winner(keep),
        "heuristic us": f"{default.p50_us:.1f}" if default else "none",
        "heuristic/best": f"{default.p50_us / best.p50_us:.3f}" if default and best else "none",
        "rank correlation": "none" if correlation is None else f"{correlation:.2f}",
        "note": tuned.note,
    }


def write(done: Sequence[Tuned], limits: DeviceLimits, store: Store, out: Path) -> None:
    """All rows as tune.csv, the summary as tune.md, the entries as a store in entries/ where `store` is not that."""
    out.mkdir(parents=True, exist_ok=True)
    tables = []
    for tuned in done:
        key = tuned.entry.key.asdict() | {
            "features": " ".join(tuned.entry.key.features),
            "num_heads": tuned.entry.key.num_heads,
            "gpu": tuned.entry.fingerprint.gpu,
        }
        tables.append(tuned.table.assign(**key)[[*key, *tuned.table.columns]])
    pd.concat(tables, ignore_index=True).to_csv(out / "tune.csv", index=False)
    lines = [to_markdown(summary(done)), quality_line([tuned.entry for tuned in done]), constants_line(limits)]
    (out / "tune.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    entries = Store(out / "entries")
    if entries.root != store.root:
        entries.add(done[-1].entry)


def print_results(done: Sequence[Tuned], limits: DeviceLimits, *, rehearsed: bool) -> None:
    """The candidates of each problem, the best ten; then a summary, and the heuristic's quality."""
    console = Console()
    for tuned in done:
        console.print(f"[bold]{tuned.entry.key.name}[/bold] on {tuned.entry.fingerprint.gpu}")
        shown = tuned.table.head(TEN_BEST).drop(columns=["p20_us", "p80_us", "shared_bytes"])
        shown = shown.assign(why=shown["why"].where(~shown["status"].isin(["timed", "stopped", "right"]), pd.NA))
        shown = shown.replace("", pd.NA).dropna(axis="columns", how="all")
        if shown.empty:
            console.print(f"  {tuned.note or 'no candidate'}\n")
            continue
        shown = shown.assign(is_heuristic=shown["is_heuristic"].map({True: "yes", False: ""}))
        print_table(shown.round(1).astype(object).where(shown.notna(), ""), console)
    shown = summary(done)
    print_table(shown[[name for name in shown if not shown[name].isin(["", "none"]).all()]], console)
    if rehearsed:
        console.print("A rehearsal: nothing was timed, and no selection will use what it wrote.")
    console.print(quality_line([tuned.entry for tuned in done]), markup=False)
    console.print(constants_line(limits), markup=False)


def quality_line(entries: Sequence[Entry]) -> str:
    """The heuristic's quality over these results, or that nobody has measured any."""
    quality = heuristic_quality(entries)
    return NO_MEASUREMENTS if quality is None else str(quality)


def store_quality() -> str:
    """The heuristic's quality over all tuning results that selection would look at: the user's and the shipped ones."""
    entries = [entry for _, store in stores() for _, entry in store.entries() if isinstance(entry, Entry)]
    return quality_line(entries)


def constants_line(limits: DeviceLimits) -> str:
    constants = constants_for(limits)
    measured = ", ".join(constants.measured) or "none of the cost model's constants is"
    return f"measured on {limits.name}: {measured}; the others are published or assumed"


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
        try:
            keep = keeps(problem_of(entry.key))[0]
        except KeyError:
            rows.append({"entry": entry.key.name, "note": f"the cell {entry.key.cell!r} is not defined here"})
            continue
        best = entry.best(keep)
        rows.append(
            {
                "entry": entry.key.name,
                "gpu": entry.fingerprint.gpu,
                "triton": entry.fingerprint.triton,
                "timings": len(entry.timings),
                "rejected": len(entry.rejected),
                "best us": f"{best.p50_us:.1f}" if best else "none",
                "best config": str(best.config) if best else "",
                "winner": entry.winner(keep),
                "note": "" if best else "no complete timing: not used",
            }
        )
    return pd.DataFrame(rows).astype(object).fillna("")
