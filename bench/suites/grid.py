"""All three cells in three dtypes over hidden and batch sizes, odd ones too."""

from __future__ import annotations

import itertools

import torch

from ..method.case import Case
from ..providers.holdfast import Holdfast, Kernels, Untuned
from ..providers.torch_nn import TorchNN
from .entries import Entry, by_worth, chosen
from .session import Session

HIDDEN = (768, 256, 512, 1024, 128, 384, 64, 100, 1000, 192, 1536, 2048)
BATCH = (16, 64, 1, 128, 256, 7)
CELLS = (
    ("gru", torch.bfloat16),
    ("lstm", torch.bfloat16),
    ("gru", torch.float16),
    ("lstm", torch.float16),
    ("rnn_tanh", torch.bfloat16),
    ("gru", torch.float32),
    ("lstm", torch.float32),
    ("rnn_tanh", torch.float16),
    ("rnn_tanh", torch.float32),
)


def entries(quick: bool) -> list[Entry]:
    """In order of worth: common sizes before odd ones, and within a size all cells and dtypes."""
    hidden, batch = (HIDDEN[:1], BATCH[:1]) if quick else (HIDDEN, BATCH)
    # Where the bar is set T is 1024; larger products are slow enough to be measured in fewer steps.
    return [
        Entry(
            Case(cell, dtype, H, B, 1024 if H <= 1024 and B <= 128 else 256),
            (
                Holdfast(),
                Kernels(),
                Untuned(),
                TorchNN(),
                *([] if dtype == torch.float16 else [TorchNN(torch.float16)]),
            ),
        )
        for (H, B), (cell, dtype) in itertools.product(by_worth(hidden, batch), CELLS)
    ]


def run(session: Session) -> None:
    session.run(chosen(entries(session.options.few), session.options))
