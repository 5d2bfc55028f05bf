"""cuDNN's home ground: one fp16 LSTM layer, H and I multiples of 128 up to 1024, B a multiple of 8 up to 128."""

from __future__ import annotations

import torch

from ..method.case import Case
from ..providers.flashrnn import FlashRNN
from ..providers.holdfast import Holdfast, Kernels, Untuned
from ..providers.loops import CompiledLoop, StepLoop
from ..providers.provider import Provider
from ..providers.torch_nn import TorchNN
from .entries import Entry, by_worth, chosen
from .session import Session

HIDDEN = (768, 1024, 512, 256, 384, 640, 896)
BATCH = (16, 64, 128, 8, 32)


def entries(quick: bool) -> list[Entry]:
    """The shape of the published figures first; there also the loops, which take long."""
    peers: tuple[Provider, ...] = (
        Holdfast(),
        Kernels(),
        Untuned(),
        Holdfast("single_cta"),
        TorchNN(),
        FlashRNN("cuda_fused"),
    )
    hidden, batch = (HIDDEN[:2], BATCH[:1]) if quick else (HIDDEN, BATCH)
    return [
        Entry(
            Case("lstm", torch.float16, H, B, 1024),
            (*peers, CompiledLoop(), StepLoop()) if (H, B) == (768, 16) else peers,
        )
        for H, B in by_worth(hidden, batch)
    ]


def run(session: Session) -> None:
    session.run(chosen(entries(session.options.few), session.options), [session.method("cold"), session.method("warm")])
