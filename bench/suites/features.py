"""What the sequence features cost, each beside the layer without it."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..method.case import Case
from ..method.numbers import Numbers
from ..providers.holdfast import Holdfast
from ..providers.loops import StepLoop
from ..providers.provider import Provider
from ..providers.torch_nn import TorchNN
from ..providers.variants import Packed, Twin
from .entries import Entry, chosen
from .session import Session


def same_tokens(numbers: Numbers) -> Case:
    """A dense batch with as many real steps, to one row's rounding."""
    return replace(numbers.case, sequences="dense", length=round(numbers.real_steps / numbers.case.batch_size))


REAL_TOKENS = Twin("dense, as many real tokens", same_tokens)
NO_RESETS = Twin("no resets", lambda numbers: replace(numbers.case, sequences="dense"))
ONE_DIRECTION = Twin("one direction", lambda numbers: replace(numbers.case, directions=1))
ONE_LAYER = Twin("one layer", lambda numbers: replace(numbers.case, layers=1))


def entries(case: Case) -> list[Entry]:
    """Each feature of one plain case; ratios are against the twin without the feature."""

    def entry(twin: Twin, *providers: Provider, **change: object) -> Entry:
        return Entry(replace(case, **change), (Holdfast(), twin, *providers), baseline=twin.name)  # type: ignore[arg-type]

    return [
        entry(REAL_TOKENS, Packed(), TorchNN(packed=True), StepLoop(), sequences="ragged"),
        entry(NO_RESETS, StepLoop(), sequences="resets"),
        entry(ONE_DIRECTION, TorchNN(), directions=2),
        entry(ONE_LAYER, TorchNN(), layers=2),
    ]


def cases(session: Session) -> list[Case]:
    for_kernels = session.device.type == "cuda" or session.options.rehearse
    dtype, H, B, T = (torch.bfloat16, 512, 32, 512) if for_kernels else (torch.float32, 128, 16, 100)
    return [Case(cell, dtype, H, B, T) for cell in (("lstm",) if session.options.few else ("lstm", "gru", "rnn_tanh"))]


def run(session: Session) -> None:
    session.run(chosen([entry for case in cases(session) for entry in entries(case)], session.options))
