"""GRU against LSTM at one hidden size: seconds an epoch with torch's own choice of op, and with oneDNN off.

The claim that a GRU is faster speaks of equal hidden sizes, where it does three quarters of an LSTM's arithmetic. And
torch has a oneDNN op for an LSTM on a CPU and none for a GRU: with oneDNN off both run ATen's own loop over time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import torch

from .task import Task
from .training import CLIP, Learner

ROUNDS = 12
PAIR = ("GRU", "LSTM")


def equal_hidden(task: Task, rounds: int = ROUNDS) -> pd.DataFrame:
    """Columns: model, hidden_size, onednn (bool), wall_s and cpu_s for an epoch, from the median update of `rounds`."""
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
