"""cuDNN's home ground: one fp16 LSTM layer, H and I multiples of 128 up to 1024, B a multiple of 8 up to 128."""

from __future__ import annotations

import torch

from ..case import Case
from ..flashrnn import FlashRNN
from ..loops import CompiledLoop, StepLoop
from ..providers import Holdfast, Provider, TorchNN, Untuned
from ..session import Entry, Session
from .tiny import rehearsal

HIDDEN = (768, 1024, 512, 256, 384, 640, 896)
BATCH = (16, 64, 128, 8, 32)


def entries(quick: bool) -> list[Entry]:
    """The shape of the published figures first; there also the loops, which take long."""
    peers: tuple[Provider, ...] = (
        Holdfast(),
        Untuned(),
        Holdfast("single_cta"),
        TorchNN(),
        FlashRNN("cuda_fused"),
    )
    hidden, batch = (HIDDEN[:2], BATCH[:1]) if quick else (HIDDEN, BATCH)
    shapes = sorted(((H, B) for H in hidden for B in batch), key=lambda s: hidden.index(s[0]) + batch.index(s[1]))
    return [
        Entry(
            Case("lstm", torch.float16, H, B, 1024),
            (*peers, CompiledLoop(), StepLoop()) if (H, B) == (768, 16) else peers,
        )
        for H, B in shapes
    ]


def run(session: Session) -> None:
    chosen = entries(session.options.quick or session.options.rehearse)
    if session.options.rehearse:
        session.run(rehearsal(chosen))
    else:
        session.run(chosen, [session.method("cold"), session.method("warm")])
