"""Train the models of a task side by side, one update each in turn, and measure them on the way."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from ..demo.model import parameter_count
from ..demo.train import set_learning_rate
from .task import Task

CLIP = 1.0
EVALUATIONS = 16


@dataclass
class Learner:
    """A model with its batches, its optimizer and its clocks, which run only during its own updates.

    clip:        the largest norm that a gradient may have; None leaves gradients as they are.
    wall, cpu:   seconds on the clock, and of this process on all processors, that `updates` updates took.
    diverged:    a loss or a gradient was not finite; nothing more is learnt.
    """

    name: str
    clip: float | None
    hidden_size: int
    model: nn.Module
    losses: Iterator[Tensor]
    learning_rate: float
    optimizer: torch.optim.Optimizer = field(init=False)
    updates: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    diverged: bool = False
    # The loss and the gradient's norm of each update since they were last asked for.
    recent: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def update(self, progress: float) -> None:
        """Learn from one batch. `progress` is the share of the training that is done: the learning rate follows it."""
        if self.diverged:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        set_learning_rate(self.optimizer, self.learning_rate, progress)
        loss = next(self.losses)
        self.optimizer.zero_grad()
        loss.backward()
        # Without a limit too, so that both ways cost the same.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or math.inf)
        self.recent.append((loss.item(), norm.item()))
        self.diverged = not all(map(math.isfinite, self.recent[-1]))
        if not self.diverged:
            self.optimizer.step()
        if loss.is_cuda:
            torch.cuda.synchronize()
        self.updates += 1
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def learners_of(task: Task, seed: int, clips: Sequence[float | None] = (CLIP, None)) -> list[Learner]:
    """Each model of a task once for each way of clipping: same weights at first, same batches."""
    learners = []
    for name, recurrent in task.models.items():
        hidden_size = task.hidden_size(recurrent)
        for clip in clips:
            model = task.seeded_model(recurrent, hidden_size, seed)
            losses = task.losses(model, seed)
            learners.append(Learner(name, clip, hidden_size, model, losses, task.learning_rates[name]))
    return learners


def train(
    task: Task,
    learners: Sequence[Learner],
    *,
    epochs: float,
    seconds: float | None = None,
    on_round: Callable[[float], None] = lambda progress: None,
) -> pd.DataFrame:
    """Train all learners for the same number of updates and return their curves, a row a measurement.

    epochs:    passes over the training data.
    seconds:   stop early when this much time has passed; None: never. The learning rate follows whichever ends first.
    on_round:  called after every round of updates with the share of the work that is done.

    Columns: model, clip, hidden_size, parameters, update, epoch, wall_s and cpu_s (of the updates alone), loss (mean
    since the row before), gradient_norm (largest since then), clipped (share of the updates since then whose norm was
    above CLIP) and quality.
    """
    updates = max(1, round(epochs * task.updates_per_epoch))
    evaluate_at = {round(updates * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)} | {updates}
    rows = [measure(task, learner) for learner in learners]
    # In changing order: the second of two models of one shape finds what it needs in the caches (5% to 15% less time).
    turns = random.Random(0)
    started = time.perf_counter()
    for update in range(1, updates + 1):
        progress = update / updates
        if seconds is not None:
            progress = min(1.0, max(progress, (time.perf_counter() - started) / seconds))
        for learner in turns.sample(learners, len(learners)):
            learner.update(progress)
        if update in evaluate_at or progress >= 1.0:
            rows += [measure(task, learner) for learner in learners]
        on_round(progress)
        if progress >= 1.0:
            break
    return pd.DataFrame(rows)


def measure(task: Task, learner: Learner) -> dict[str, object]:
    """A row of the curves: where a learner stands now."""
    losses, norms = zip(*learner.recent, strict=True) if learner.recent else ((), ())
    learner.recent = []
    nothing = math.nan
    return {
        "model": learner.name,
        "clip": nothing if learner.clip is None else learner.clip,
        "hidden_size": learner.hidden_size,
        "parameters": parameter_count(learner.model),
        "update": learner.updates,
        "epoch": learner.updates / task.updates_per_epoch,
        "wall_s": learner.wall,
        "cpu_s": learner.cpu,
        "loss": sum(losses) / len(losses) if losses else nothing,
        "gradient_norm": max(norms, default=nothing),
        "clipped": sum(norm > CLIP for norm in norms) / len(norms) if norms else nothing,
        "quality": nothing if learner.diverged else task.quality(learner.model),
    }
