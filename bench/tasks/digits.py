"""Handwritten digits from scikit-learn, read pixel by pixel: many-to-one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from .models import LastStep, Recurrent, batches_of
from .task import Task

CLASSES = 10
BRIGHTEST = 16.0


class Digits(Task):
    """Name the digit after its 64 pixels, one at a time, row by row."""

    name = "digits"
    title = "Handwritten digits (scikit-learn, 8 by 8) read as 64 pixels, many-to-one"
    metric = "held-out accuracy, %"
    higher_is_better = True
    parameters = 10_000
    epochs = 30.0
    quick_epochs = 15.0
    epoch_seconds = 2.3
    learning_rates: ClassVar = {"RNN": 3e-3, "GRU": 2e-2, "GRU reset_after=False": 2e-2, "LSTM": 2e-2}

    batch_size = 64

    def __init__(self, device: torch.device) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        super().__init__(device)
        pixels, digits = load_digits(return_X_y=True)
        parts = train_test_split(pixels / BRIGHTEST, digits, test_size=0.25, random_state=0, stratify=digits)
        self.split = parts
        train_pixels, held_out_pixels, train_digits, held_out_digits = parts
        self.train_x, self.held_out_x = (self.as_sequences(part) for part in (train_pixels, held_out_pixels))
        self.train_y, self.held_out_y = (torch.tensor(part).to(device) for part in (train_digits, held_out_digits))
        self.updates_per_epoch = len(train_digits) // self.batch_size

    def as_sequences(self, pixels: object) -> Tensor:
        """[64, N, 1] of N pictures of 64 pixels."""
        return torch.tensor(pixels, dtype=torch.float32, device=self.device).t().unsqueeze(-1)

    def model(self, recurrent: Recurrent, hidden_size: int) -> LastStep:
        return LastStep(recurrent, 1, hidden_size, CLASSES)

    def losses(self, model: nn.Module, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for batch in batches_of(len(self.train_y), self.batch_size, generator).to(self.device):
                yield nn.functional.cross_entropy(model(self.train_x[:, batch]), self.train_y[batch])

    @torch.no_grad()
    def quality(self, model: nn.Module) -> float:
        return 100 * float((model(self.held_out_x).argmax(-1) == self.held_out_y).double().mean())

    def baselines(self) -> dict[str, float]:
        from sklearn.dummy import DummyClassifier
        from sklearn.linear_model import LogisticRegression

        train_pixels, held_out_pixels, train_digits, held_out_digits = self.split
        answers = {"majority": DummyClassifier(), "logistic regression": LogisticRegression(max_iter=1000)}
        return {
            name: 100 * answer.fit(train_pixels, train_digits).score(held_out_pixels, held_out_digits)
            for name, answer in answers.items()
        }
