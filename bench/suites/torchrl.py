"""TorchRL's block-diagonal GRU (DreamerV3, eight blocks) in the shapes of its own figures, without its LayerNorm.

Its figures, bf16 on a GB200 with LayerNorm and resets (pytorch/rl#4158): B=16 H=512 T=64 4.22 ms forward and 7.44 with
the backward pass, T=512 28.3 and 62.6; B=2048 T=512 H=128 both passes 43.96 ms. With resets only where sequences are
few: the right answer is computed episode by episode.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..method.case import Case
from ..providers.holdfast import Holdfast
from ..providers.torch_nn import TorchNN
from .entries import Entry, chosen
from .features import NO_RESETS
from .session import Session

BLOCKS = 8
SHAPES = ((512, 16, 64), (512, 16, 512), (128, 2048, 512))
"""H of all blocks, B and T."""


def entries(quick: bool) -> list[Entry]:
    shapes = SHAPES[:1] if quick else SHAPES
    cases = [Case("gru", torch.bfloat16, H // BLOCKS, B, T, heads=BLOCKS) for H, B, T in shapes]
    dense = [Entry(case, (Holdfast(), TorchNN(), TorchNN(torch.float16))) for case in cases]
    few = [replace(case, sequences="resets") for case in cases if case.batch_size <= 16]
    return dense + [Entry(case, (Holdfast(), NO_RESETS), baseline=NO_RESETS.name) for case in few]


def run(session: Session) -> None:
    session.run(chosen(entries(session.options.few), session.options))
