"""Tune a list of problems one after the other, with a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ...autotune.identity import key_of
from ...autotune.measure import require_gpu
from ...autotune.processes import Children, Workers
from ...autotune.store import Store
from ...autotune.tune import CANDIDATES, Setup, Tuned, tune
from ...kernels.resources import DeviceLimits
from ..output.tuning import write
from .problems import Wanted


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
                write(done, options.limits, options.store, options.out)
    return done


def share(budget_s: float, left: int) -> float:
    """Seconds for the next of `left` problems, when `budget_s` are left for all."""
    return max(0.0, budget_s) / max(1, left) if math.isfinite(budget_s) else budget_s
