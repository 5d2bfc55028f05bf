"""What the demo hands over: a table (CSV and Markdown) and a figure of the learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..output.drawing import MODELS, new_figure
from ..output.tables import to_markdown
from .train import Learner


def results_table(learners: Sequence[Learner]) -> pd.DataFrame:
    """One row a model: its size, its time, and the bits per character it ends with."""
    rows = []
    for learner in learners:
        last = learner.curve[-1]
        rows.append(
            {
                "model": learner.name,
                "hidden size": learner.model.recurrent.hidden_size,
                "parameters": learner.parameters,
                "epochs": round(last.epoch, 2),
                "s/epoch": round(last.seconds / last.epoch, 2),
                "total s": round(last.seconds, 1),
                "bits/char learnt": round(last.train_bits, 3),
                "bits/char held out": round(last.held_out_bits, 3),
            }
        )
    return pd.DataFrame(rows)


def curves_table(learners: Sequence[Learner]) -> pd.DataFrame:
    """Every point of every learning curve, one a row."""
    return pd.DataFrame([{"model": learner.name, **vars(point)} for learner in learners for point in learner.curve])


def plot_curves(learners: Sequence[Learner], baselines: Mapping[str, float], path: Path) -> None:
    """Draw bits per held-out character over updates and over seconds, with the baselines as lines."""
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, label in ((left, "update", "updates"), (right, "seconds", "seconds of training")):
        for learner in learners:
            colour, marker = MODELS[learner.name]
            where = [getattr(point, key) for point in learner.curve]
            held_out = [point.held_out_bits for point in learner.curve]
            seen = [point.train_bits for point in learner.curve]
            name = f"{learner.name} (H={learner.model.recurrent.hidden_size}, {held_out[-1]:.2f} bits)"
            axes.plot(where, held_out, color=colour, marker=marker, markersize=3, linewidth=1.5, label=name)
            axes.plot(where, seen, color=colour, linewidth=0.8, linestyle=":")
        for name, bits in baselines.items():
            axes.axhline(bits, color="0.45", linewidth=0.8, linestyle="--")
            # Out of the curves' way: they fall at the left, and end at the right near what they have not beaten.
            beaten = bits > max(learner.curve[-1].held_out_bits for learner in learners)
            x, across, above = (0.99, "right", "bottom") if beaten else (0.01, "left", "top")
            where_to = ("axes fraction", "data")
            axes.annotate(f"{name} {bits:.2f}", (x, bits), xycoords=where_to, ha=across, va=above, fontsize=8)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    left.set_ylabel("bits per character")
    left.set_ylim(top=min(left.get_ylim()[1], 1.05 * max(baselines.values())))
    left.legend(
        frameon=False, title="held out (dotted: training text)", fontsize=8, title_fontsize=8, loc="center right"
    )
    figure.savefig(path, dpi=130)


def write_report(learners: Sequence[Learner], baselines: Mapping[str, float], out: Path) -> list[Path]:
    """Write table, curves and figure into a folder, which is made where missing, and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    table = results_table(learners)
    table.to_csv(out / "results.csv", index=False)
    (out / "results.md").write_text(to_markdown(table), encoding="utf-8")
    curves_table(learners).to_csv(out / "curves.csv", index=False)
    plot_curves(learners, baselines, out / "learning_curves.png")
    return [out / name for name in ("results.csv", "results.md", "curves.csv", "learning_curves.png")]
