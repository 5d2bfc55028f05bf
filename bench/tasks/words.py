"""Word boundaries restored: text without its white space, and a model that reads both ways says where it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..demo.text import Corpus, Vocabulary, python_docs
from .models import Recurrent, Tagger, batches_of
from .task import Task


def without_spaces(text: str) -> tuple[str, list[bool]]:
    """The text without white space, and for each character that is left whether white space followed it."""
    words = text.split()
    return "".join(words), [i == len(word) for word in words for i in range(1, len(word) + 1)]


class Words(Task):
    """For each character, whether a word ends there."""

    name = "words"
    title = "Word boundaries of the same text without its white space, many-to-many, bidirectional"
    metric = "held-out accuracy, %"
    higher_is_better = True
    parameters = 30_000
    epochs = 4.0
    quick_epochs = 1.5
    epoch_seconds = 16.0
    learning_rates: ClassVar = {"RNN": 1e-2, "GRU": 2e-2, "GRU reset_after=False": 2e-2, "LSTM": 2e-2}

    batch_size = 64
    length = 64

    def __init__(self, device: torch.device, corpus: Corpus | None = None) -> None:
        super().__init__(device)
        corpus = python_docs() if corpus is None else corpus
        self.train_text, self.train_ends = without_spaces(corpus.train)
        self.held_out_text, self.held_out_ends = without_spaces(corpus.held_out)
        self.vocabulary = Vocabulary(self.train_text)
        self.train_x, self.train_y = self.as_sequences(self.train_text, self.train_ends)
        self.held_out_x, self.held_out_y = self.as_sequences(self.held_out_text, self.held_out_ends)
        self.updates_per_epoch = self.train_x.shape[1] // self.batch_size

    def as_sequences(self, text: str, ends: list[bool]) -> tuple[Tensor, Tensor]:
        """Characters and their labels in pieces of `length`, both [length, pieces]; the rest is left away."""
        pieces = len(text) // self.length
        numbers = self.vocabulary.encode(text)
        return tuple(  # type: ignore[return-value]
            values[: pieces * self.length].view(pieces, self.length).t().contiguous().to(self.device)
            for values in (numbers, torch.tensor(ends))
        )

    def model(self, recurrent: Recurrent, hidden_size: int) -> Tagger:
        return Tagger(recurrent, len(self.vocabulary), hidden_size)

    def losses(self, model: nn.Module, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for batch in batches_of(self.train_x.shape[1], self.batch_size, generator).to(self.device):
                targets = self.train_y[:, batch].float()
                yield nn.functional.binary_cross_entropy_with_logits(model(self.train_x[:, batch]), targets)

    @torch.no_grad()
    def quality(self, model: nn.Module) -> float:
        return 100 * float(((model(self.held_out_x) > 0) == self.held_out_y).double().mean())

    def baselines(self) -> dict[str, float]:
        """The commoner label always, and the commoner label of each pair of a character and its successor."""
        pairs = list(zip(self.held_out_text, self.held_out_text[1:], strict=False))
        ends = self.held_out_ends[:-1]
        votes: Counter[tuple[str, str]] = Counter()
        for pair, end in zip(zip(self.train_text, self.train_text[1:], strict=False), self.train_ends, strict=False):
            votes[pair] += 1 if end else -1
        majority = 2 * sum(self.train_ends) > len(self.train_ends)
        return {
            "majority": 100 * sum(end == majority for end in ends) / len(ends),
            "pairs of characters": 100
            * sum(end == (votes[pair] > 0) for pair, end in zip(pairs, ends, strict=True))
            / len(ends),
        }

    def illustration(self, model: nn.Module) -> str:
        """The beginning of the held-out text as the model separates it."""
        pieces = 4
        with torch.no_grad():
            ends = (model(self.held_out_x[:, :pieces]) > 0).t().flatten().tolist()
        return "".join(
            character + (" " if end else "") for character, end in zip(self.held_out_text, ends, strict=False)
        )
