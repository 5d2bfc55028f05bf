"""Tune a list of problems with a progress bar, and say what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..autotune.cost import constants_for
from ..autotune.identity import keeps, key_of, problem_of
from ..autotune.measure import require_gpu
from ..autotune.processes import Children, Workers
from ..autotune.report import NO_MEASUREMENTS, heuristic_quality, rank_correlation
from ..autotune.store import Entry, Store
from ..autotune.tune import CANDIDATES, Setup, Tuned, tune
from ..kernels.resources import DeviceLimits
from .tables import print_table, to_markdown
from .tuning_list import Wanted, share

TEN_BEST = 10


@dataclass
class Options:
    """device:      to time on; None: a rehearsal.
    budget_s:    wall-clock seconds for the whole list.
    out:         folder for tune.csv, tune.md and, under entries/, what a later `--import` reads; None: no files.
    """

    limits: DeviceLimits
    device: torch.device | None
    budget_s: float
    store: Store
    out: Path | None = None
    candidates: int = CANDIDATES


def tune_list(wanted: Sequence[Wanted], options: Options, console: Console | None = None) -> list[Tuned]:
    """Tune each problem in turn; the files are written anew after each, so that a run cut off keeps what it has.

    Raises MeasurementRefusedError before anything is done where there is nothing to time on.
    """
    console = console or Console(stderr=True)
    if options.device is not None:
        require_gpu(options.device)
    end = time.monotonic() + options.budget_s
    done: list[Tuned] = []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with bar, Workers(children=Children()) as workers:
        whole = bar.add_task(f"tuning {len(wanted)} problem(s)", total=len(wanted), note="")
        part = bar.add_task("", total=None, note="")
        for index, (problem, length) in enumerate(wanted):
            left = end - time.monotonic()
            if left <= 0:
                bar.update(whole, note=f"the time is up: {len(wanted) - index} left for another run")
                break
            bar.update(whole, note=key_of(problem).name.rpartition("-")[0])

            def show(stage: str, completed: int, total: int, note: str) -> None:
                bar.update(part, description=f"  {stage}", completed=completed, total=total, note=note)

            result = tune(
                problem,
                Setup(options.limits, options.device, options.store, options.candidates),
                length=length,
                budget_s=share(left, len(wanted) - index),
                workers=workers,
                progress=show,
            )
            done.append(result)
            bar.update(whole, advance=1)
            if options.out is not None:
                write(done, options, options.out)
    return done


def summary(done: Sequence[Tuned]) -> pd.DataFrame:
    """One row per problem: what was tried, the best, the heuristic's choice, how well the estimate ordered them."""
    return pd.DataFrame([_summary_row(tuned) for tuned in done])


def _summary_row(tuned: Tuned) -> dict[str, Any]:
    key, table = tuned.entry.key, tuned.table
    keep = keeps(problem_of(key))[0]
    latest = tuned.entry.latest(keep)
    best = tuned.entry.best(keep)
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
        "heuristic us": f"{default.p50_us:.1f}" if default else "none",
        "heuristic/best": f"{default.p50_us / best.p50_us:.3f}" if default and best else "none",
        "rank correlation": "none" if correlation is None else f"{correlation:.2f}",
        "note": tuned.note,
    }


def write(done: Sequence[Tuned], options: Options, out: Path) -> None:
    """All rows as tune.csv, the summary as tune.md, the entries as a store in entries/."""
    out.mkdir(parents=True, exist_ok=True)
    tables = []
    for tuned in done:
        key = tuned.entry.key.asdict() | {
            "features": " ".join(tuned.entry.key.features),
            "gpu": tuned.entry.fingerprint.gpu,
        }
        tables.append(tuned.table.assign(**key)[[*key, *tuned.table.columns]])
    pd.concat(tables, ignore_index=True).to_csv(out / "tune.csv", index=False)
    lines = [to_markdown(summary(done)), quality_line([tuned.entry for tuned in done]), constants_line(options.limits)]
    (out / "tune.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    entries = Store(out / "entries")
    if entries.root != options.store.root:
        entries.add(done[-1].entry)


def print_results(done: Sequence[Tuned], options: Options) -> None:
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
    if options.device is None:
        console.print("A rehearsal: nothing was timed, and no selection will use what it wrote.")
    console.print(quality_line([tuned.entry for tuned in done]), markup=False)
    console.print(constants_line(options.limits), markup=False)


def quality_line(entries: Sequence[Entry]) -> str:
    """The heuristic's quality over these results, or that nobody has measured any."""
    quality = heuristic_quality(entries)
    return NO_MEASUREMENTS if quality is None else str(quality)


def store_quality() -> str:
    """The heuristic's quality over all tuning results that selection would look at: the user's and the shipped ones."""
    from ..autotune.select import stores

    entries = [entry for _, store in stores() for _, entry in store.entries() if isinstance(entry, Entry)]
    return quality_line(entries)


def constants_line(limits: DeviceLimits) -> str:
    constants = constants_for(limits)
    measured = ", ".join(constants.measured) or "none of the cost model's constants is"
    return f"measured on {limits.name}: {measured}; the others are assumed"
