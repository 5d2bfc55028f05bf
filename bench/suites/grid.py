"""All three cells in three dtypes over hidden and batch sizes, odd ones too."""

from __future__ import annotations

import itertools

import torch

from ..case import Case
from ..providers import Holdfast, TorchNN, Untuned
from ..session import Entry, Session
from .own_cell import of_cell
from .tiny import rehearsal

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
    shapes = sorted(((H, B) for H in hidden for B in batch), key=lambda s: hidden.index(s[0]) + batch.index(s[1]))
    # Where the bar is set T is 1024; larger products are slow enough to be measured in fewer steps.
    return [
        Entry(
            Case(cell, dtype, H, B, 1024 if H <= 1024 and B <= 128 else 256),
            (Holdfast(), Untuned(), TorchNN(), *([] if dtype == torch.float16 else [TorchNN(torch.float16)])),
        )
        for (H, B), (cell, dtype) in itertools.product(shapes, CELLS)
    ]


def run(session: Session) -> None:
    chosen = of_cell(entries(session.options.quick or session.options.rehearse), session.options.cell)
    session.run(rehearsal(chosen) if session.options.rehearse else chosen)
