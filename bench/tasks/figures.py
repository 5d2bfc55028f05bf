"""Learning curves, a panel a task, and what clipping changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..output.drawing import MODELS, new_figure
from .registry import TASKS
from .results import Results
from .training import CLIP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLUMNS = 3


def panels(tasks: list[str], height: float) -> tuple[Figure, Iterator[tuple[str, Axes]]]:
    """A figure with a panel for each task."""
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(4.1 * columns, height * rows + 0.5)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    return figure, zip(tasks, grid, strict=False)


def draw_curves(results: Results, path: Path) -> None:
    """Quality over epochs of the clipped runs: mean over seeds, their range shaded, simple answers dashed."""
    curves = results.curves[results.curves["clip"] == CLIP]
    figure, pairs = panels(list(curves["task"].unique()), 2.9)
    handles: dict[str, Line2D] = {}
    for name, axes in pairs:
        task = TASKS[name]
        shown = curves[curves["task"] == name]
        for model, rows in shown.groupby("model", sort=False):
            handles[str(model)] = draw_model(axes, rows, *MODELS[str(model)])
        lines = results.baselines[results.baselines["task"] == name].set_index("baseline")["value"].to_dict()
        if task.optimum is not None:
            lines["best possible"] = task.optimum
        for label, value in lines.items():
            draw_level(axes, label, value)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epochs", fontsize=8)
        axes.set_ylabel(task.metric, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_ylim(*limits(shown["quality"], lines.values(), task.higher_is_better))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=120)


def draw_model(axes: Axes, rows: pd.DataFrame, colour: str, marker: str) -> Line2D:
    """One model's curves in all seeds. Returns the line of their mean."""
    over = rows.groupby("update")[["epoch", "quality"]]
    # Where time ran out, seeds end at different updates: a mean of the rest would jump.
    in_all = over.count()["quality"] == rows["seed"].nunique()
    middle, low, high = over.mean()[in_all], over.min()["quality"][in_all], over.max()["quality"][in_all]
    axes.fill_between(middle["epoch"], low, high, color=colour, alpha=0.18, linewidth=0)
    (line,) = axes.plot(middle["epoch"], middle["quality"], color=colour, marker=marker, markersize=3, linewidth=1.4)
    return line


def draw_level(axes: Axes, label: str, value: float) -> None:
    """A dashed line with a name that stays readable on top of curves."""
    from matplotlib.patheffects import withStroke

    axes.axhline(value, color="0.45", linewidth=0.8, linestyle="--")
    outline = [withStroke(linewidth=2, foreground="white")]
    where = ("axes fraction", "data")
    axes.annotate(label, (0.99, value), xycoords=where, ha="right", va="bottom", fontsize=7, path_effects=outline)


def limits(quality: pd.Series, levels: Iterable[float], higher_is_better: bool) -> tuple[float, float]:
    """The range that an axis shows: the levels, and the curves but for a first fifth that is far off."""
    ends = [*np.nanquantile(quality, (0.2, 1.0) if higher_is_better else (0.0, 0.8)), *levels]
    margin = 0.06 * (max(ends) - min(ends))
    return min(ends) - margin, max(ends) + margin


def draw_clipping(results: Results, path: Path) -> None:
    """The quality that each seed ended with, gradients clipped (filled) and not (hollow)."""
    curves = results.curves
    learners = curves.groupby(["task", "seed", "model", "clip"], dropna=False, sort=False)
    last = learners.tail(1)
    figure, pairs = panels(list(curves["task"].unique()), 2.5)
    for task, axes in pairs:
        shown = last[last["task"] == task]
        models = list(shown["model"].unique())
        for i, model in enumerate(models):
            colour, marker = MODELS[str(model)]
            rows = shown[shown["model"] == model]
            for clipped, face, aside in ((True, colour, -0.15), (False, "none", 0.15)):
                values = rows["quality"][rows["clip"].notna() == clipped]
                axes.plot(
                    np.full(len(values), i + aside), values, marker, color=colour, markerfacecolor=face, markersize=6
                )
        axes.set_xticks(range(len(models)), [model.replace(" ", "\n") for model in models], fontsize=7)
        axes.set_xlim(-0.6, len(models) - 0.4)
        axes.set_title(str(task), fontsize=10)
        axes.set_ylabel(TASKS[str(task)].metric, fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(alpha=0.25, axis="y")
    figure.suptitle(f"Filled: gradients clipped to norm {CLIP:g}. Hollow: as they are. A marker a seed.", fontsize=9)
    figure.savefig(path, dpi=120)
