"""The activations that a cell may use, by Keras' names.

Each has a derivative that is a function of its output, which is all that a kernel keeps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def linear(x: Tensor) -> Tensor:
    return x


def hard_sigmoid(x: Tensor) -> Tensor:
    """As in Keras 3. F.hardsigmoid is the same function without a second derivative."""
    return F.relu6(x + 3) / 6


ACTIVATIONS: dict[str, Activation] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": linear,
    "hard_sigmoid": hard_sigmoid,
    "softsign": F.softsign,
    "elu": F.elu,
    "softplus": F.softplus,
    "exponential": torch.exp,
    "selu": F.selu,
}


def find_activation(name: str, argument: str = "activation") -> Activation:
    """The function of this name.

    Raises ValueError, naming `argument`, where there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"{argument} should be one of {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
    return ACTIVATIONS[name]
