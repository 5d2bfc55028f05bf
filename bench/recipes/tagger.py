"""A BiLSTM tagger of sentences of different lengths: lengths= in place of packing, padding and sorting."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ... import convert
from .recipe import Recipe, with_gradients


class PackedTagger(nn.Module):
    """Words to a score for each tag, the usual way."""

    def __init__(self, words: int, embedding_size: int, hidden_size: int, tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, embedding_size, padding_idx=0)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden_size, tags)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, T, tags] of words [B, T], lengths [B]."""
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
        return self.head(y)


class Tagger(PackedTagger):
    """The same, with lengths."""

    def __init__(self, words: int, embedding_size: int, hidden_size: int, tags: int) -> None:
        super().__init__(words, embedding_size, hidden_size, tags)
        convert(self)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.lstm(self.embedding(words), lengths=lengths)
        return self.head(y)


def recipes(quick: bool) -> Iterator[Recipe]:
    """A training step on sentences of 1 to 40 words, and on sentences that are all of one length."""
    B, T, H = (4, 10, 16) if quick else (32, 40, 128)
    for name, shortest in ((f"1 to {T} words", 1), (f"all {T} words", T)):
        torch.manual_seed(0)
        lengths = torch.randint(shortest, T + 1, (B,))
        here = torch.arange(T) < lengths[:, None]
        words, tags = (torch.randint(1, most, (B, T)) * here for most in (1000, 9))
        taggers = {"packing": PackedTagger(1000, 64, H, 9), "lengths=": Tagger(1000, 64, H, 9)}
        taggers["lengths="].load_state_dict(taggers["packing"].state_dict())

        def step(tagger: nn.Module, words: Tensor = words, lengths: Tensor = lengths, tags: Tensor = tags) -> Tensor:
            tagger.zero_grad()
            scores = tagger(words, lengths)
            nn.functional.cross_entropy(scores.flatten(0, 1), tags.flatten(), ignore_index=0).backward()
            return with_gradients(scores, tagger)

        yield Recipe(f"Tagger, training step: {name}", {way: partial(step, m) for way, m in taggers.items()})
