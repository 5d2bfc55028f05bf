"""Next-character prediction on Python's documentation: many-to-many, and text written by the models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..demo.model import CharModel, detach, sample
from ..demo.text import Corpus, Vocabulary, python_docs, streams, unigram_bits, xz_bits
from ..demo.train import Recipe, batches, bits_per_character
from .models import Recurrent
from .task import Task

PROMPT = "The "


class Characters(Task):
    """Predict each next character. A model's state goes on from chunk to chunk, gradients end at a chunk's start."""

    name = "characters"
    title = "Next character of Python's documentation (pydoc_data.topics), many-to-many"
    metric = "bits per held-out character"
    higher_is_better = False
    parameters = 60_000
    epochs = 3.0
    quick_epochs = 0.75
    epoch_seconds = 28.0
    learning_rates: ClassVar = {"RNN": 1e-2, "GRU": 2e-2, "GRU reset_after=False": 2e-2, "LSTM": 3e-2}

    batch_size = 32
    length = 64

    def __init__(self, device: torch.device, corpus: Corpus | None = None) -> None:
        super().__init__(device)
        self.corpus = python_docs() if corpus is None else corpus
        self.vocabulary = Vocabulary(self.corpus.train)
        self.train_text, self.held_out_text = (
            streams(self.vocabulary.encode(text), self.batch_size).to(device)
            for text in (self.corpus.train, self.corpus.held_out)
        )
        self.updates_per_epoch = -(-(self.train_text.shape[0] - 1) // self.length)

    def model(self, recurrent: Recurrent, hidden_size: int) -> CharModel:
        return CharModel(recurrent, len(self.vocabulary), hidden_size)

    def losses(self, model: nn.Module, seed: int) -> Iterator[Tensor]:
        recipe = Recipe(batch_size=self.batch_size, length=self.length, seed=seed)
        state = None
        for inputs, targets, first in batches(self.train_text, recipe, updates=sys.maxsize):
            logits, state = model(inputs, None if first else state)
            state = detach(state)
            yield nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def quality(self, model: nn.Module) -> float:
        return bits_per_character(cast(CharModel, model), self.held_out_text, self.length)

    def baselines(self) -> dict[str, float]:
        return {"unigram": unigram_bits(self.corpus), "xz": xz_bits(self.corpus)}

    def illustration(self, model: nn.Module) -> str:
        return sample(cast(CharModel, model), self.vocabulary, PROMPT, 300)
