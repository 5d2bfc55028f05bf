"""What a recipe is: the usual way and ours, which must agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """One thing done in several ways.

    ways:       by name, the usual one first; each does it once and returns the same numbers.
    tolerance:  how far apart the numbers may be, absolute; what they are computed in is float32, so it is that of a
                sum in another order.
    """

    name: str
    ways: Mapping[str, Callable[[], Tensor]]
    tolerance: float = 2e-5


def with_gradients(y: Tensor, module: nn.Module) -> Tensor:
    """The numbers of y and of the gradients of all parameters, in a row."""
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat([y.detach().flatten(), *gradients])
