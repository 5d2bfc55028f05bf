"""A few small layers through every provider that needs no compiler: seconds, on any machine."""

from __future__ import annotations

import torch

from ..case import Case
from ..loops import StepLoop
from ..providers import Holdfast, TorchNN
from ..session import Entry, Session
from .own_cell import of_cell
from .tiny import rehearsal


def run(session: Session) -> None:
    dtype = torch.float16 if session.device.type == "cuda" or session.options.rehearse else torch.float32
    cases = [Case(cell, dtype, 64, 8, 16) for cell in ("rnn_tanh", "gru", "lstm")]
    cases.append(Case("lstm", dtype, 100, 3, 7, directions=2))
    chosen = of_cell([Entry(case, (Holdfast(), TorchNN(), StepLoop())) for case in cases], session.options.cell)
    session.run(rehearsal(chosen) if session.options.rehearse else chosen)
