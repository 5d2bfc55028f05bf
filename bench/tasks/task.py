"""What a task is: data, a model around a recurrent module, a loss to learn from and a measure of quality."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from .models import MODELS, Recurrent, hidden_size_for


class Task(ABC):
    """One task. Its data are loaded by the constructor, on `device`.

    name:              one word: of the rows in the CSV and for --only.
    title:             what is asked, and of what data, in one line.
    metric:            what `quality` measures, with its unit.
    higher_is_better:  the direction of that metric.
    optimum:           the best quality that there can be, where one is known that is not plain.
    parameters:        about how many numbers each model has.
    epochs:            passes over the training data in a full run.
    quick_epochs:      in a quick one.
    epoch_seconds:     about how long all its models take for an epoch on one core, to share out the time of a run.
    learning_rates:    Adam's, at the start: the best of three or four for each model, by held-out quality, other seeds.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    optimum: ClassVar[float | None] = None
    parameters: ClassVar[int]
    epochs: ClassVar[float]
    quick_epochs: ClassVar[float]
    epoch_seconds: ClassVar[float]
    learning_rates: ClassVar[dict[str, float]]
    models: ClassVar[dict[str, Recurrent]] = MODELS

    updates_per_epoch: int

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def model(self, recurrent: Recurrent, hidden_size: int) -> nn.Module:
        """An untrained model."""

    @abstractmethod
    def losses(self, model: nn.Module, seed: int) -> Iterator[Tensor]:
        """Endless losses of one batch after another, each computed when it is asked for; the seed gives their order."""

    @abstractmethod
    def quality(self, model: nn.Module) -> float:
        """The metric on what no model has learnt from."""

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """The metric of simple answers to the same question."""

    def illustration(self, model: nn.Module) -> str | None:
        """Something that a trained model makes, to look at; None where there is nothing."""
        return None

    def hidden_size(self, recurrent: Recurrent) -> int:
        """The hidden size that gives a model about as many parameters as the others have."""
        with torch.device("meta"):  # no memory, no random numbers
            return hidden_size_for(lambda size: self.model(recurrent, size), self.parameters)

    def seeded_model(self, recurrent: Recurrent, hidden_size: int, seed: int) -> nn.Module:
        """An untrained model whose weights the seed decides; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model(recurrent, hidden_size).to(self.device)
