"""The claim that a GRU trains up to 40% faster than an LSTM at equal accuracy, held against the measured curves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .registry import TASKS
from .training import CLIP

CLAIMED = 0.6  # the share of an LSTM's time that a GRU would take


def compare(curves: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """GRU over LSTM, for each task and seed of the clipped runs.

    The quality to reach is the worse of the two models' best in that seed, so that both reach it. Where it is no better
    than the task's weakest baseline, or a model diverged, there is nothing to compare and no row.

    Columns: task, seed, quality (that one), epoch_cpu and epoch_wall (an epoch of the GRU over one of the LSTM), epochs
    (those until the quality is reached, over the LSTM's), time_cpu and time_wall (the products: time until then).
    """
    rows = []
    clipped = curves[curves["clip"] == CLIP]
    for (task, seed), both in clipped.groupby(["task", "seed"], sort=False):
        higher = TASKS[str(task)].higher_is_better
        gru, lstm = (both[both["model"] == name] for name in ("GRU", "LSTM"))
        if not len(gru) or not len(lstm) or gru["quality"].isna().any() or lstm["quality"].isna().any():
            continue
        bests = [best_so_far(part["quality"].to_numpy(), higher)[-1] for part in (gru, lstm)]
        quality = min(bests) if higher else max(bests)
        simple = baselines["value"][baselines["task"] == task]
        if quality <= simple.min() if higher else quality >= simple.max():
            continue
        epochs = [epochs_until(part, quality, higher) for part in (gru, lstm)]
        row = {"task": task, "seed": seed, "quality": quality, "epochs": epochs[0] / epochs[1]}
        for clock in ("cpu", "wall"):
            row[f"epoch_{clock}"] = seconds_per_epoch(gru, clock) / seconds_per_epoch(lstm, clock)
            row[f"time_{clock}"] = row[f"epoch_{clock}"] * row["epochs"]
        rows.append(row)
    return pd.DataFrame(rows)


def best_so_far(quality: np.ndarray, higher_is_better: bool) -> np.ndarray:
    return np.maximum.accumulate(quality) if higher_is_better else np.minimum.accumulate(quality)


def epochs_until(curve: pd.DataFrame, quality: float, higher_is_better: bool) -> float:
    """When a curve's best quality so far first reaches `quality`, which it does, in epochs; linear between points."""
    best = best_so_far(curve["quality"].to_numpy(), higher_is_better)
    epochs = curve["epoch"].to_numpy()
    last = int(np.argmax(best >= quality if higher_is_better else best <= quality))
    if last == 0:
        return 0.0
    share = (quality - best[last - 1]) / (best[last] - best[last - 1])
    return float(epochs[last - 1] + share * (epochs[last] - epochs[last - 1]))


def seconds_per_epoch(curve: pd.DataFrame, clock: str) -> float:
    last = curve.iloc[-1]
    return float(last[f"{clock}_s"] / last["epoch"])


def claim_table(ratios: pd.DataFrame, equal_hidden: pd.DataFrame) -> pd.DataFrame:
    """A row a task: GRU over LSTM, mean over seeds and in brackets the smallest and largest."""
    rows = []
    for task, part in ratios.groupby("task", sort=False):
        row = {"task": task, "seeds": len(part)}
        for column, title in (
            ("epoch_cpu", "epoch, CPU time"),
            ("epoch_wall", "epoch, wall"),
            ("epochs", "epochs to equal quality"),
            ("time_cpu", "CPU time to equal quality"),
        ):
            row[title] = spread(part[column])
        for onednn, title in ((True, "epoch at equal H"), (False, "epoch at equal H, oneDNN off")):
            times = equal_hidden[(equal_hidden["task"] == task) & (equal_hidden["onednn"] == onednn)]
            by_model = times.set_index("model")["cpu_s"]
            row[title] = f"{by_model['GRU'] / by_model['LSTM']:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def spread(values: pd.Series) -> str:
    """Mean (smallest to largest)."""
    if len(values) == 1:
        return f"{values.iloc[0]:.2f}"
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


def reading(ratios: pd.DataFrame, equal_hidden: pd.DataFrame) -> str:
    """What the table says of the claim, in words, with every figure computed from it."""
    if ratios.empty:
        return "No task was learnt by both GRU and LSTM: nothing can be said of the claim."
    mean = ratios.groupby("task", sort=False).mean(numeric_only=True)
    tasks = len(mean)
    faster = int((mean["time_cpu"] <= CLAIMED).sum())
    quicker = int((mean["time_cpu"] < 1).sum())
    fewer = int((mean["epochs"] < 1).sum())
    pairs = equal_hidden.pivot_table(index=["onednn", "task"], columns="model", values="cpu_s", sort=False)
    by_ops = pairs["GRU"] / pairs["LSTM"]
    default, plain = by_ops.loc[True], by_ops.loc[False]
    return (
        f"Claim: a GRU trains up to 40% faster than an LSTM at equal accuracy; read as time, in {CLAIMED:g} of the "
        f"LSTM's. Here, at equal parameter counts, an epoch of the GRU took {between(mean['epoch_cpu'])} times the CPU "
        f"time of the LSTM's (means of the tasks). To the quality that both reached it needed "
        f"{between(mean['epochs'])} times the epochs (fewer in {fewer} of {tasks} tasks) and "
        f"{between(mean['time_cpu'])} times the CPU time: less than the LSTM in {quicker} of {tasks} tasks, "
        f"{CLAIMED:g} or less in {faster}. At equal hidden size, where a GRU does three quarters of the arithmetic, "
        f"an epoch took {between(default)} times the LSTM's CPU time, and {between(plain)} with oneDNN off: that is "
        f"torch, which on a CPU has a oneDNN op for an LSTM and none for a GRU. What this does not show: anything "
        f"about a GPU, cuDNN or holdfast's kernels, larger models, other data or other schedules; learning rates are "
        f"the best of a few, and the seeds' spread is often as large as the difference."
    )


def between(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}" if len(values) > 1 else f"{values.iloc[0]:.2f}"
