"""The recurrent modules that are compared, as parts of models of about equal parameter counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...cells.gru import GRU
from ...cells.lstm import LSTM
from ...cells.rnn import RNN
from ..demo.model import closest_size, parameter_count

# Makes a recurrent module of (input_size, hidden_size); takes the keywords of torch.nn.RNN.
Recurrent = Callable[..., Any]
MODELS: dict[str, Recurrent] = {
    "RNN": RNN,
    "GRU": GRU,
    "GRU reset_after=False": partial(GRU, reset_after=False),
    "LSTM": LSTM,
}


def hidden_size_for(build: Callable[[int], nn.Module], parameters: int) -> int:
    """The even hidden size with which `build` makes a model of about so many parameters."""
    return closest_size(lambda size: parameter_count(build(size)), parameters, range(2, 513, 2))


class LastStep(nn.Module):
    """Many-to-one: reads a sequence, then says something about the whole of it."""

    def __init__(self, recurrent: Recurrent, input_size: int, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = recurrent(input_size, hidden_size)
        self.head = nn.Linear(hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs] of x [T, B, input_size]."""
        outputs, _ = self.recurrent(x)
        return self.head(outputs[-1])


class Decoder(nn.Module):
    """One-to-many: the state that a sequence leaves behind runs on for `steps` steps without any further input."""

    def __init__(self, recurrent: Recurrent, input_size: int, hidden_size: int, steps: int) -> None:
        super().__init__()
        self.encoder = recurrent(input_size, hidden_size)
        self.recurrent = recurrent(1, hidden_size)
        self.head = nn.Linear(hidden_size, 1)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """[steps, B] of x [T, B, input_size]."""
        _, state = self.encoder(x)
        outputs, _ = self.recurrent(x.new_zeros(self.steps, x.shape[1], 1), state)
        return self.head(outputs).squeeze(-1)


class Tagger(nn.Module):
    """Many-to-many: reads symbols in both directions and gives a logit for each."""

    EMBEDDING_SIZE = 32

    def __init__(self, recurrent: Recurrent, symbols: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, self.EMBEDDING_SIZE)
        self.recurrent = recurrent(self.EMBEDDING_SIZE, hidden_size, bidirectional=True)
        self.head = nn.Linear(2 * hidden_size, 1)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits [T, B] of symbols [T, B]."""
        outputs, _ = self.recurrent(self.embedding(symbols))
        return self.head(outputs).squeeze(-1)


class Policy(nn.Module):
    """An actor and a critic on one recurrent layer."""

    def __init__(self, recurrent: Recurrent, observations: int, hidden_size: int, actions: int) -> None:
        super().__init__()
        self.recurrent = recurrent(observations, hidden_size)
        self.actor = nn.Linear(hidden_size, actions)
        self.critic = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor, state: Any, resets: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Logits [T, B, actions], values [T, B] and the next state, of observations x [T, B, observations].

        resets:  bool [T, B], true where a new episode begins: the state before that step is forgotten.
        """
        outputs, state = self.recurrent(x, state, resets=resets)
        return self.actor(outputs), self.critic(outputs).squeeze(-1), state


class NoMemory(nn.Module):
    """The baseline of a task that needs memory: a layer that looks at one step only, called as a recurrent one is."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.layers = nn.Sequential(
            nn.Linear(input_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size), nn.Tanh()
        )

    def forward(self, x: Tensor, hx: None = None, *, resets: Tensor | None = None) -> tuple[Tensor, None]:
        return self.layers(x), None


def batches_of(examples: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """The numbers of all examples in a random order, cut into rows [examples // batch_size, batch_size].

    The few that are left over wait for another order.
    """
    rows = examples // batch_size
    return torch.randperm(examples, generator=generator)[: rows * batch_size].view(rows, batch_size)
