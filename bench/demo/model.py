"""A next-character model: embedding, one recurrent layer of holdfast, linear head."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...cells.gru import GRU
from ...cells.lstm import LSTM
from ...cells.rnn import RNN
from .text import Vocabulary

EMBEDDING_SIZE = 64
CELLS: dict[str, Any] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}


class CharModel(nn.Module):
    """Reads characters and predicts, at each, the next one.

    cell:     "RNN" (tanh), "GRU", "LSTM", or what makes a recurrent module of (input_size, hidden_size).
    dropout:  share of the recurrent layer's outputs that the head does not see while training.
    """

    def __init__(
        self, cell: str | Callable[[int, int], Any], characters: int, hidden_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING_SIZE)
        self.recurrent = (CELLS[cell] if isinstance(cell, str) else cell)(EMBEDDING_SIZE, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, characters)

    def forward(self, characters: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [T, B, vocabulary] and the state after characters [T, B], from `state` (None: zeros)."""
        outputs, state = self.recurrent(self.embedding(characters), state)
        return self.head(self.dropout(outputs)), state


def parameter_count(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def hidden_size_for(cell: str, characters: int, parameters: int) -> int:
    """The hidden size, a multiple of 8, whose model comes closest to a number of parameters."""
    return closest_size(lambda size: parameter_count(CharModel(cell, characters, size)), parameters)


def closest_size(count: Callable[[int], int], parameters: int, sizes: Sequence[int] = range(8, 1025, 8)) -> int:
    """The one of `sizes`, which ascend, whose `count` comes closest to a number of parameters."""
    above = bisect_left(sizes, parameters, key=count)
    return min(sizes[max(0, above - 1) : above + 1], key=lambda size: abs(count(size) - parameters))


def detach(state: Any) -> Any:
    """The state (a tensor, or the LSTM's pair) cut off from the graph that made it: truncated backpropagation."""
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


@torch.no_grad()
def sample(
    model: CharModel, vocabulary: Vocabulary, prompt: str, length: int, temperature: float = 0.7, seed: int = 0
) -> str:
    """Let a model go on writing after a prompt, one drawn character at a time.

    temperature:  below 1 the model's favourites come more often, above 1 less often.
    Returns the prompt and `length` characters. Raises ValueError for an empty prompt or a temperature of 0 or less.
    """
    if not prompt:
        raise ValueError("the prompt must hold at least one character")
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
    device = model.head.weight.device
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    characters = vocabulary.encode(prompt).to(device)[:, None]
    drawn = []
    state = None
    for _ in range(length):
        logits, state = model(characters, state)
        probabilities = (logits[-1, 0].float() / temperature).softmax(-1).cpu()
        probabilities[0] = 0.0  # "any other character" cannot be written
        choice = torch.multinomial(probabilities, 1, generator=generator)
        drawn.append(choice)
        characters = choice.to(device)[:, None]
    model.train(was_training)
    return prompt + vocabulary.decode(torch.cat(drawn)) if drawn else prompt
