"""The suite from start to end: every task, seed by seed, within a given time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..method.provenance import write_provenance
from ..output.tables import print_table
from .claim import compare, equal_hidden, reading
from .registry import TASKS
from .report import SUITE, quality_table, write_report
from .results import SAMPLE_COLUMNS, Results, read_results, write_results
from .task import Task
from .training import CLIP, Learner, learners_of, train

PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "statsmodels": "statsmodels"}
SPARE = 1.1  # a further seed is begun where the last one's time and this much more is left


def run_tasks(
    out: Path,
    *,
    quick: bool = False,
    minutes: float | None = None,
    seeds: int | None = None,
    only: Sequence[str] | None = None,
    seed: int = 0,
) -> Results:
    """Run the tasks, write results, report and figures into `out`, and return the results.

    quick:    a quarter to a half of the training, and two seeds.
    minutes:  the most that it may take, 25 by default (quick: 9). Seeds for which no time is left are not begun; a
              training that has more than its share is cut short. Both are said.
    seeds:    how many, 3 by default (quick: 2), from `seed` on.
    only:     names of tasks; None: all of them.

    What is measured is written after each task of each seed, so an interrupted run leaves what it had.
    Raises ValueError for an unknown task or a number that makes no sense, ImportError where a package is missing.
    """
    started = time.perf_counter()
    names = list(TASKS) if only is None else list(only)
    minutes = (9.0 if quick else 25.0) if minutes is None else minutes
    seeds = (2 if quick else 3) if seeds is None else seeds
    check(names, minutes, seeds)
    end = started + 60 * minutes
    # As in the demo: a second thread brings little to models this small, and on a busy machine threads wait.
    torch.set_num_threads(1)
    console = Console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tasks = [TASKS[name](device) for name in names]

    out.mkdir(parents=True, exist_ok=True)
    write_provenance(out, SUITE)
    results = Results()
    for task in tasks:
        values = pd.DataFrame(task.baselines().items(), columns=["baseline", "value"])
        results.add("baselines", values, task=task.name)
        results.add("equal_hidden", equal_hidden(task), task=task.name)
    plan = [(task, task.quick_epochs if quick else task.epochs) for task in tasks]
    train_seeds(plan, range(seed, seed + seeds), end, results, out, console)
    paths = write_report(out)
    results = read_results(out)
    print_table(quality_table(results).drop(columns=["quality", "better"]), console)
    console.print(reading(compare(results.curves, results.baselines), results.equal_hidden))
    console.print("Written: " + ", ".join(map(str, paths)))
    console.print(f"The tasks took {time.perf_counter() - started:.0f} s.")
    return results


def train_seeds(
    plan: Sequence[tuple[Task, float]], seeds: Sequence[int], end: float, results: Results, out: Path, console: Console
) -> None:
    """Train each task of the plan for its epochs, seed by seed, until `end` on time.perf_counter's clock."""
    work = [task.epoch_seconds * epochs for task, epochs in plan]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(seeds) * sum(work))
        last = 0.0
        for i, seed in enumerate(seeds):
            began = time.perf_counter()
            if i and end - began < SPARE * last:
                progress.console.print(f"No time for more than {i} of {len(seeds)} seeds, see --minutes.")
                break
            for j, (task, epochs) in enumerate(plan):
                progress.update(bar, description=f"{task.name}, seed {seed}")
                learners = learners_of(task, seed)
                # What one leaves over of its share goes to those that are still to come.
                seconds = (end - time.perf_counter()) * work[j] / sum(work[j:])
                show = partial(advance, progress, bar, progress.tasks[0].completed, work[j])
                curves = train(task, learners, epochs=epochs, seconds=max(1.0, seconds), on_round=show)
                results.add("curves", curves, task=task.name, seed=seed)
                if i == 0:
                    results.add("samples", samples(task, learners, seed))
                write_results(results, out)
                progress.console.print(line(task, seed, curves, epochs))
            last = time.perf_counter() - began


def advance(progress: Progress, bar: TaskID, before: float, work: float, share: float) -> None:
    """Move the bar to a share of the task at hand."""
    progress.update(bar, completed=before + share * work)


def check(names: Sequence[str], minutes: float, seeds: int) -> None:
    """Refuse now what would fail after minutes."""
    unknown = sorted(set(names) - set(TASKS))
    if unknown or not names:
        raise ValueError(f"only should name some of {', '.join(TASKS)}, got {', '.join(unknown) or 'nothing'}")
    if not minutes > 0:
        raise ValueError(f"minutes should be greater than 0, got {minutes}")
    if seeds < 1:
        raise ValueError(f"seeds should be at least 1, got {seeds}")
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"the tasks need {', '.join(missing)}: pip install 'holdfast[bench]'")


def samples(task: Task, learners: Sequence[Learner], seed: int) -> pd.DataFrame:
    """What each of the clipped models makes of the task, for the tasks that have something to show."""
    made = [
        (task.name, one.name, seed, task.illustration(one.model))
        for one in learners
        if one.clip is not None and not one.diverged
    ]
    return pd.DataFrame(made, columns=SAMPLE_COLUMNS).dropna()


def line(task: Task, seed: int, curves: pd.DataFrame, epochs: float) -> str:
    """What a task of one seed has come to."""
    last = curves[curves["clip"] == CLIP].groupby("model", sort=False)["quality"].last()
    reached = ", ".join(f"{model} {quality:.4g}" for model, quality in last.items())
    done = curves["epoch"].max()
    cut = f", cut short after {done:.1f} of {epochs:.1f} epochs, see --minutes" if done < 0.99 * epochs else ""
    return f"{task.name}, seed {seed}: {reached} ({task.metric}){cut}"
