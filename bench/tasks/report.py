"""Tables, figures and a reading, all made from the files of a results folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ...autotune.files import replace_file
from ..method.provenance import read_provenance
from ..output.tables import to_markdown
from .claim import claim_table, compare, reading
from .figures import draw_clipping, draw_curves
from .models import MODELS
from .registry import TASKS
from .results import Results, read_results
from .training import CLIP

SUITE = "tasks"


def final(curves: pd.DataFrame) -> pd.DataFrame:
    """The last row of each learner: task, seed, model, clip, and with the largest gradient norm of its whole run."""
    learners = curves.groupby(["task", "seed", "model", "clip"], dropna=False, sort=False)
    last = learners.tail(1).set_index(["task", "seed", "model", "clip"])
    last["gradient_norm"] = learners["gradient_norm"].max()
    last["clipped"] = learners["clipped"].mean()
    return last.reset_index()


def summary(results: Results) -> pd.DataFrame:
    """A row a task and model: size, time an epoch, and quality over seeds (mean ± standard deviation)."""
    rows = []
    for (task, model), runs in final(results.curves).groupby(["task", "model"], sort=False):
        clipped, unclipped = runs[runs["clip"] == CLIP], runs[runs["clip"].isna()]
        rows.append(
            {
                "task": task,
                "model": model,
                "hidden size": int(runs["hidden_size"].iloc[0]),
                "parameters": int(runs["parameters"].iloc[0]),
                "epochs": span(runs["epoch"]),
                "CPU s/epoch": mean(clipped["cpu_s"] / clipped["epoch"]),
                "wall s/epoch": mean(clipped["wall_s"] / clipped["epoch"]),
                "quality": over_seeds(clipped["quality"]),
                "without clipping": over_seeds(unclipped["quality"]),
                "updates clipped": f"{100 * clipped['clipped'].mean():.0f}%",
                "largest norm, unclipped": f"{unclipped['gradient_norm'].max():.3g}",
            }
        )
    return pd.DataFrame(rows)


def quality_table(results: Results) -> pd.DataFrame:
    """A row a task: the quality of each model with clipped gradients, and of the best simple answer."""
    rows = []
    for task, runs in final(results.curves).groupby("task", sort=False):
        simple = results.baselines[results.baselines["task"] == task].set_index("baseline")["value"]
        higher = TASKS[str(task)].higher_is_better
        best = simple.idxmax() if higher else simple.idxmin()
        row = {"task": task, "quality": TASKS[str(task)].metric, "better": "higher" if higher else "lower"}
        for model in MODELS:
            row[model] = over_seeds(runs[(runs["model"] == model) & (runs["clip"] == CLIP)]["quality"])
        rows.append({**row, "best simple answer": f"{simple[best]:.3g} ({best})"})
    return pd.DataFrame(rows)


def span(epochs: pd.Series) -> str:
    """How many epochs were learnt from: not the same for every seed where time ran out."""
    least, most = (f"{value:.3g}" for value in (epochs.min(), epochs.max()))
    return least if least == most else f"{least} to {most}"


def mean(values: pd.Series) -> str:
    return f"{values.mean():.3g}"


def over_seeds(quality: pd.Series) -> str:
    """Mean and standard deviation of the runs that ended with finite numbers, and how many did not."""
    ended = quality.dropna()
    diverged = f" ({len(quality) - len(ended)} of {len(quality)} diverged)" if len(ended) < len(quality) else ""
    if ended.empty:
        return diverged.strip(" ()") or "not run"
    digits = 1 if ended.abs().max() >= 10 else 3
    spread = f" ± {ended.std():.{digits}f}" if len(ended) > 1 else ""
    return f"{ended.mean():.{digits}f}{spread}{diverged}"


def task_lines(results: Results) -> str:
    """What each task asks, what its quality is, and what simple answers reach."""
    lines = []
    for name, baselines in results.baselines.groupby("task", sort=False):
        task = TASKS[str(name)]
        reached = ", ".join(f"{value:.3g} {baseline}" for baseline, value in baselines[["baseline", "value"]].values)
        reached += "" if task.optimum is None else f", {task.optimum:g} at best"
        better = "higher" if task.higher_is_better else "lower"
        lines.append(
            f"- **{name}**: {task.title}. Quality: {task.metric}, {better} is better. To compare: {reached}.\n"
        )
    return "".join(lines)


def clipping(last: pd.DataFrame) -> str:
    """In how many runs clipping gradients ended better, counted from the last rows of pairs that differ in it alone."""
    keys = ["task", "model", "seed"]
    clipped = last[last["clip"].notna()].set_index(keys)["quality"]
    unclipped = last[last["clip"].isna()].set_index(keys)["quality"].reindex(clipped.index)
    better = [1 if TASKS[task].higher_is_better else -1 for task in clipped.index.get_level_values("task")]
    # Where one of the two diverged, it is the worse one.
    gain = ((clipped - unclipped) * better).fillna(clipped.notna().astype(int) - unclipped.notna().astype(int))
    return (
        f"Clipping gradients to norm {CLIP:g} ended better in {(gain > 0).sum()} of {len(gain)} runs, worse in "
        f"{(gain < 0).sum()} and equal in {(gain == 0).sum()}."
    )


def markdown(results: Results, provenance: Mapping[str, object]) -> str:
    """The whole report in Markdown, without its figures."""
    seeds = results.curves["seed"].nunique()
    ratios = compare(results.curves, results.baselines)
    parts = [
        "# Real tasks: RNN, GRU and LSTM at equal parameter counts\n\n",
        task_lines(results),
        f"\nQuality is what a model has after its last update, mean ± standard deviation over {seeds} seed"
        f"{'s' if seeds > 1 else ''}; gradients are clipped to norm {CLIP:g} unless it says otherwise. Times are "
        "those of the updates alone, on the clock and of the process.\n\n",
        to_markdown(summary(results)),
        f"\n{clipping(final(results.curves))}\n",
        "\n## Does a GRU train faster than an LSTM?\n\nGRU over LSTM, mean over seeds (smallest to largest):\n\n",
        to_markdown(claim_table(ratios, results.equal_hidden)),
        f"\n{reading(ratios, results.equal_hidden)}\n",
        "\n## What the models make\n" if len(results.samples) else "",
        *(f"\n{row.task}, {row.model}:\n\n```text\n{row.text}\n```\n" for row in results.samples.itertuples()),
        "\n## Where this comes from\n\n",
        to_markdown(pd.DataFrame(provenance.items(), columns=["fact", "value"])),
    ]
    return "".join(parts)


def write_report(folder: Path) -> list[Path]:
    """Make `tasks.md`, `tasks.png` and `tasks_clipping.png` in a results folder from what `run_tasks` wrote there."""
    results = read_results(folder)
    paths = [folder / name for name in ("tasks.md", "tasks.png", "tasks_clipping.png")]
    replace_file(paths[0], markdown(results, read_provenance(folder)[SUITE]))
    draw_curves(results, paths[1])
    draw_clipping(results, paths[2])
    return paths
