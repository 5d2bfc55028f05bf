"""The claim that a GRU trains up to 40% faster than an LSTM at equal accuracy, held against the measured curves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from .registry import TASKS
from .task import Task
from .training import CLIP, Learner

PAIR = ("GRU", "LSTM")
CLAIMED = 0.6  # the share of an LSTM's time that a GRU would take
ROUNDS = 12


def equal_hidden(task: Task, rounds: int = ROUNDS) -> pd.DataFrame:
    """GRU and LSTM at one hidden size: seconds an epoch with torch's own choice of op, and with oneDNN off.

    The claim speaks of equal hidden sizes, where a GRU does three quarters of an LSTM's arithmetic. And torch has a
    oneDNN op for an LSTM on a CPU and none for a GRU: with oneDNN off both run ATen's own loop over time.

    Columns: model, hidden_size, onednn (bool), wall_s and cpu_s for an epoch, from the median update of `rounds`.
    """
    hidden_size = task.hidden_size(task.models["LSTM"])
    rows = []
    for onednn in (True, False):
        learners = []
        for name in PAIR:
            model = task.seeded_model(task.models[name], hidden_size, seed=0)
            learners.append(Learner(name, CLIP, hidden_size, model, task.losses(model, seed=0), 1e-3))
        times = []
        with onednn_set(onednn):
            for _ in range(rounds):
                for learner in learners:
                    wall, cpu = learner.wall, learner.cpu
                    learner.update(progress=0.0)
                    times.append({"model": learner.name, "wall_s": learner.wall - wall, "cpu_s": learner.cpu - cpu})
        for name, median in pd.DataFrame(times).groupby("model").median().iterrows():
            rows.append(
                {"model": name, "hidden_size": hidden_size, "onednn": onednn, **median * task.updates_per_epoch}
            )
    return pd.DataFrame(rows)


@contextmanager
def onednn_set(enabled: bool) -> Iterator[None]:
    """Let torch use oneDNN, or not, within a block."""
    with warnings.catch_warnings():
        # Torch warns that its flags concern Intel GPUs too.
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=enabled):
            yield


def compare(curves: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """GRU over LSTM, for each task and seed of the clipped runs.

    The quality to reach is the worse of the two models' best in that seed, so that both reach it. Where it is no better
    than the task's weakest baseline, or a model diverged, nothing was reached and these columns are NaN.

    Columns: task, seed, epoch_cpu and epoch_wall (an epoch of the GRU over one of the LSTM), quality (that to reach),
    epochs (those until it is reached, over the LSTM's), time_cpu and time_wall (the products: time until then).
    """
    rows = []
    clipped = curves[curves["clip"] == CLIP]
    for (task, seed), both in clipped.groupby(["task", "seed"], sort=False):
        sign = 1 if TASKS[str(task)].higher_is_better else -1
        gru, lstm = pair = [both[both["model"] == name] for name in PAIR]
        best = [np.maximum.accumulate(sign * part["quality"].to_numpy()) for part in pair]
        goal = np.min([values[-1] for values in best])
        if not goal > (sign * baselines["value"][baselines["task"] == task]).min():
            goal = np.nan
        until = [epochs_until(goal, part["epoch"].to_numpy(), values) for part, values in zip(pair, best, strict=True)]
        row = {"task": task, "seed": seed, "quality": sign * goal, "epochs": until[0] / until[1]}
        for clock in ("cpu", "wall"):
            row[f"epoch_{clock}"] = seconds_per_epoch(gru, clock) / seconds_per_epoch(lstm, clock)
            row[f"time_{clock}"] = row[f"epoch_{clock}"] * row["epochs"]
        rows.append(row)
    return pd.DataFrame(rows)


def epochs_until(goal: float, epochs: np.ndarray, best: np.ndarray) -> float:
    """When values that never fall, `best` after so many `epochs`, reach a goal; linear between points, NaN if never."""
    if not best[-1] >= goal:
        return np.nan
    reached = int(np.argmax(best >= goal))
    if reached == 0:
        return float(epochs[0])
    return float(np.interp(goal, best[reached - 1 : reached + 1], epochs[reached - 1 : reached + 1]))


def seconds_per_epoch(curve: pd.DataFrame, clock: str) -> float:
    last = curve.iloc[-1]
    return float(last[f"{clock}_s"] / last["epoch"])


def claim_table(ratios: pd.DataFrame, equal_hidden: pd.DataFrame) -> pd.DataFrame:
    """A row a task: GRU over LSTM, mean over seeds and in brackets the smallest and largest.

    Seeds: those in which both learnt, which alone count for what concerns quality.
    """
    rows = []
    for task, part in ratios.groupby("task", sort=False):
        row = {"task": task, "seeds": f"{part['epochs'].count()} of {len(part)}"}
        for column, title in (
            ("epoch_cpu", "epoch, CPU time"),
            ("epoch_wall", "epoch, wall"),
            ("epochs", "epochs to equal quality"),
            ("time_cpu", "CPU time to equal quality"),
        ):
            row[title] = spread(part[column].dropna())
        for onednn, title in ((True, "epoch at equal H"), (False, "epoch at equal H, oneDNN off")):
            times = equal_hidden[(equal_hidden["task"] == task) & (equal_hidden["onednn"] == onednn)]
            by_model = times.set_index("model")["cpu_s"]
            row[title] = f"{by_model['GRU'] / by_model['LSTM']:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def spread(values: pd.Series) -> str:
    """Mean (smallest to largest)."""
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


def reading(ratios: pd.DataFrame, equal_hidden: pd.DataFrame) -> str:
    """What the table says of the claim, in words, with every figure computed from it."""
    mean = ratios.groupby("task", sort=False).mean(numeric_only=True)
    if mean["epochs"].isna().all():
        return "No task was learnt by both GRU and LSTM: nothing can be said of the claim."
    tasks = int(mean["epochs"].count())
    as_claimed = [str(task) for task in mean.index[mean["time_cpu"] <= CLAIMED]]
    which = f" ({', '.join(as_claimed)})" if as_claimed else ""
    left_out = ""
    if unlearnt := int(ratios["epochs"].isna().sum()):
        left_out = f"Left out: {unlearnt} of {len(ratios)} pairs of runs, in which one of the two learnt nothing. "
    by_ops = equal_hidden.pivot_table(index=["onednn", "task"], columns="model", values="cpu_s", sort=False)
    ratio = by_ops["GRU"] / by_ops["LSTM"]
    return (
        f"Claim: a GRU trains up to 40% faster than an LSTM at equal accuracy; read as time, in {CLAIMED:g} of the "
        f"LSTM's. Here, at equal parameter counts, an epoch of the GRU took {between(mean['epoch_cpu'])} times the CPU "
        f"time of the LSTM's (means of the tasks). To the best quality that both reached it needed "
        f"{between(mean['epochs'])} times the epochs (fewer in {(mean['epochs'] < 1).sum()} of {tasks} tasks) and "
        f"{between(mean['time_cpu'])} times the CPU time: less than the LSTM in {(mean['time_cpu'] < 1).sum()} tasks, "
        f"{CLAIMED:g} or less in {len(as_claimed)}{which}. "
        f"{left_out}At equal hidden size, where a GRU does three quarters of the arithmetic, "
        f"an epoch took {between(ratio.loc[True])} times the LSTM's CPU time, and {between(ratio.loc[False])} with "
        f"oneDNN off: that is torch, which on a CPU has a oneDNN op for an LSTM and none for a GRU. What this does not "
        f"show: anything about a GPU, cuDNN or holdfast's kernels, larger models, other data or other schedules; "
        f"learning rates are the best of a few, and {ratios['seed'].nunique()} seeds are few."
    )


def between(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}" if len(values) > 1 else f"{values.iloc[0]:.2f}"
