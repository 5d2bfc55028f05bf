"""Train several character models side by side: same batches in the same order, one update each in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .model import CharModel, detach, parameter_count
from .text import chunks, streams

BITS = 1 / math.log(2)
# For each the best of those tried (RNN and GRU: 3e-3, 6e-3, 1e-2; LSTM: 1e-2, 2e-2), by held-out bits after two epochs.
LEARNING_RATES = {"RNN": 6e-3, "GRU": 1e-2, "LSTM": 2e-2}


@dataclass(frozen=True)
class Recipe:
    """How the models learn; the same for all of them.

    batch_size:     streams read side by side.
    length:         steps through which gradients flow; the state goes on to the next chunk.
    epochs:         passes over the training text.
    learning_rate:  at the start; it falls along a half cosine. None: the one in LEARNING_RATES.
    clip:           the largest gradient norm an update may have.
    seconds:        stop early when training has taken this long; None: never.
    evaluations:    about how many times the models are measured on the way.
    seed:           of the order of the batches.
    """

    batch_size: int = 16
    length: int = 64
    epochs: float = 5.0
    learning_rate: float | None = None
    clip: float = 1.0
    seconds: float | None = None
    evaluations: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """Bits per character of a model in evaluation mode, after so many updates and seconds of its own."""

    update: int
    epoch: float
    seconds: float
    train_bits: float
    held_out_bits: float


@dataclass
class Learner:
    """A model, its optimizer, the state it carries, and what it has learnt so far."""

    name: str
    model: CharModel
    optimizer: torch.optim.Optimizer
    learning_rate: float
    state: object = None
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return parameter_count(self.model)


def train(
    models: dict[str, CharModel],
    train_numbers: Tensor,
    held_out_numbers: Tensor,
    recipe: Recipe,
    on_update: Callable[[float, list[Learner]], None] = lambda progress, learners: None,
) -> list[Learner]:
    """Train every model on the same text for the same number of updates.

    The models take turns, an update each, so that a time limit stops all of them at the same update and
    a busy machine slows all of them alike. A model's clock runs only during its own updates.

    on_update:  called after every round with the share of the work that is done and the learners.
    """
    device = next(iter(models.values())).head.weight.device
    learners = [
        Learner(name, model, torch.optim.Adam(model.parameters()), recipe.learning_rate or LEARNING_RATES[name])
        for name, model in models.items()
    ]
    texts = [streams(numbers, recipe.batch_size).to(device) for numbers in (train_numbers, held_out_numbers)]
    # Scoring the whole training text would cost as much as learning it: a part as long as the held-out text will do.
    texts.append(texts[0][: texts[1].shape[0]])
    train_text, held_out_text, train_part = texts

    updates_per_epoch = math.ceil((train_text.shape[0] - 1) / recipe.length)
    updates = max(1, round(recipe.epochs * updates_per_epoch))
    between = max(1, updates // recipe.evaluations)
    started = time.perf_counter()
    for update, (inputs, targets, first) in enumerate(batches(train_text, recipe, updates), start=1):
        progress = update / updates
        if recipe.seconds is not None:
            # The learning rate follows whichever ends first, the updates or the time, and is low at the end either way.
            progress = min(1.0, max(progress, (time.perf_counter() - started) / recipe.seconds))
        for learner in learners:
            if first:
                learner.state = None
            learn(learner, inputs, targets, recipe, progress)
        last = progress >= 1.0
        if update % between == 0 or update == 1 or last:
            for learner in learners:
                bits = [bits_per_character(learner.model, text, recipe.length) for text in (train_part, held_out_text)]
                learner.curve.append(Point(update, update / updates_per_epoch, learner.seconds, *bits))
        on_update(progress, learners)
        if last:
            break
    return learners


def batches(text: Tensor, recipe: Recipe, updates: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Endless passes over a text, cut to `updates` chunks; the third value says that a new pass begins.

    Each pass starts at another step, so that a character does not always stand at the same place of its chunk.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    done = 0
    while True:
        offset = int(torch.randint(min(recipe.length, text.shape[0] - 1), (), generator=generator))
        for i, (inputs, targets) in enumerate(chunks(text[offset:], recipe.length)):
            if done == updates:
                return
            yield inputs, targets, i == 0
            done += 1


def learn(learner: Learner, inputs: Tensor, targets: Tensor, recipe: Recipe, progress: float) -> None:
    """One update on a chunk, from the state that the last chunk left."""
    started = time.perf_counter()
    set_learning_rate(learner.optimizer, learner.learning_rate, progress)
    logits, state = learner.model(inputs, learner.state)
    learner.state = detach(state)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    learner.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(learner.model.parameters(), recipe.clip)
    learner.optimizer.step()
    if inputs.is_cuda:
        torch.cuda.synchronize()
    learner.seconds += time.perf_counter() - started


def set_learning_rate(optimizer: torch.optim.Optimizer, start: float, progress: float) -> None:
    """Let the learning rate fall from `start` to a fiftieth of it along a half cosine, as progress goes from 0 to 1."""
    for group in optimizer.param_groups:
        group["lr"] = start * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def bits_per_character(model: CharModel, text: Tensor, length: int) -> float:
    """Mean bits that a model needs for each character of streams [N, B], reading them from start to end."""
    was_training = model.training
    model.eval()
    state = None
    total = torch.zeros((), dtype=torch.float64, device=text.device)
    for inputs, targets in chunks(text, length):
        logits, state = model(inputs, state)
        total += nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    model.train(was_training)
    return float(total) * BITS / ((text.shape[0] - 1) * text.shape[1])
