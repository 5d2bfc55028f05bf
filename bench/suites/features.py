"""What the sequence features cost, each beside the layer without it."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..case import Case
from ..loops import StepLoop
from ..numbers import Numbers
from ..providers import Holdfast, Provider, TorchNN
from ..session import Entry, Session
from ..variants import Packed, Twin
from .tiny import rehearsal


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
    if session.device.type == "cuda" or session.options.rehearse:
        found = [Case(cell, torch.bfloat16, 512, 32, 512) for cell in ("lstm", "gru", "rnn_tanh")]
        return found[:1] if session.options.quick or session.options.rehearse else found
    found = [Case(cell, torch.float32, 128, 16, 100) for cell in ("lstm", "gru", "rnn_tanh")]
    return found[:1] if session.options.quick or session.options.rehearse else found


def run(session: Session) -> None:
    chosen = [entry for case in cases(session) for entry in entries(case)]
    session.run(rehearsal(chosen) if session.options.rehearse else chosen)
