"""Single steps: as calls of one step, as a stream, and what a call of the kernel path costs the host."""

from __future__ import annotations

import torch

from ..method.case import Case
from ..providers.holdfast import Holdfast
from ..providers.loops import StepLoop
from ..providers.torch_nn import TorchNN
from ..providers.variants import HostSide, Streamed
from .entries import Entry, chosen
from .session import Session

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
    wall = [session.method("warm", "wall")]
    session.run(chosen([Entry(case, providers, phases=("forward",)) for case in cases], session.options), wall)
    session.run([Entry(case, (HostSide(),), baseline="") for case in OVERHEAD], wall)
