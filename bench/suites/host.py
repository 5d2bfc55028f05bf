"""The eager path on the CPU beside torch.nn: the same op underneath, so all that differs is what holdfast adds."""

from __future__ import annotations

import torch

from ..case import Case
from ..providers import Holdfast, TorchNN
from ..session import Entry, Session

FIXED = Case("lstm", torch.float32, 1, 1, 1)
"""Next to nothing to compute: the time of a call is its fixed part."""

USEFUL = (
    Case("lstm", torch.float32, 128, 16, 50),
    Case("gru", torch.float32, 128, 16, 50),
    Case("rnn_tanh", torch.float32, 128, 16, 50),
    Case("lstm", torch.float32, 256, 1, 20),
    Case("gru", torch.float32, 64, 32, 100, directions=2),
    Case("lstm", torch.float32, 256, 32, 50, layers=2),
    Case("lstm", torch.float32, 512, 8, 20),
    Case("gru", torch.float32, 512, 64, 20),
    Case("lstm", torch.bfloat16, 128, 16, 50),
    Case("rnn_tanh", torch.float32, 32, 4, 10),
)


def run(session: Session) -> None:
    providers = (Holdfast(), TorchNN())
    chosen = USEFUL[:3] if session.options.quick else USEFUL
    session.run(Entry(case, providers) for case in (FIXED, *chosen))
