"""Deployment: TorchScript takes a model after to_torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ... import convert, to_torch
from .recipe import Recipe


class Detector(nn.Module):
    """Frames [B, T, 40] to a score each, [B, T]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, hidden_size, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0]).squeeze(-1)


def recipes(quick: bool) -> Iterator[Recipe]:
    """A scripted model."""
    H, (B, T) = (16, (2, 9)) if quick else (128, (3, 100))
    torch.manual_seed(0)
    model = Detector(H).eval()
    ours = convert(copy.deepcopy(model))
    x = torch.randn(B, T, 40)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(to_torch(copy.deepcopy(ours)))

    @torch.no_grad()
    def run(module: nn.Module) -> Tensor:
        return module(x)

    yield Recipe(
        f"Deployment: B={B} T={T} H={H}",
        {
            "torch.nn": lambda: run(model),
            "to_torch, scripted": lambda: run(script),
        },
    )
