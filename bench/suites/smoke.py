"""A few small layers through every provider that needs no compiler: seconds, on any machine."""

from __future__ import annotations

import torch

from ..method.case import Case
from ..providers.holdfast import Holdfast
from ..providers.loops import StepLoop
from ..providers.torch_nn import TorchNN
from .entries import Entry, chosen
from .session import Session


def run(session: Session) -> None:
    dtype = torch.float16 if session.device.type == "cuda" or session.options.rehearse else torch.float32
    cases = [Case(cell, dtype, 64, 8, 16) for cell in ("rnn_tanh", "gru", "lstm")]
    cases.append(Case("lstm", dtype, 100, 3, 7, directions=2))
    entries = [Entry(case, (Holdfast(), TorchNN(), StepLoop())) for case in cases]
    session.run(chosen(entries, session.options))
