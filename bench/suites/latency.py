"""Single steps: as calls of one step, as a stream, and what a call of the kernel path costs the host."""

from __future__ import annotations

import torch

from ..case import Case
from ..host_overhead import HostSide
from ..loops import StepLoop
from ..providers import Holdfast, TorchNN
from ..session import Entry, Session
from ..variants import Streamed
from .tiny import rehearsal

OVERHEAD = (
    Case("lstm", torch.bfloat16, 16, 1, 2),
    Case("gru", torch.bfloat16, 16, 1, 2),
    Case("rnn_tanh", torch.bfloat16, 16, 1, 2),
    Case("lstm", torch.bfloat16, 16, 1, 2, directions=2),
    Case("lstm", torch.bfloat16, 16, 1, 2, layers=2),
)


def run(session: Session) -> None:
    dtype = torch.float16 if session.device.type == "cuda" or session.options.rehearse else torch.float32
    shapes = ((256, 1, 1), (768, 1, 1), (256, 16, 1), (256, 1, 32))
    cases = [Case(cell, dtype, H, B, T) for cell in ("lstm", "gru") for H, B, T in shapes]
    if session.options.quick:
        cases = [case for case in cases if case.cell == "lstm"]
    providers = (Holdfast(), Streamed(), TorchNN(), StepLoop())
    chosen = [Entry(case, providers, phases=("forward",)) for case in cases]
    wall = [session.method("warm", "wall")]
    session.run(rehearsal(chosen) if session.options.rehearse else chosen, wall)
    session.run([Entry(case, (HostSide(),), baseline="") for case in OVERHEAD], wall)
