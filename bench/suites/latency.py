"""Single steps: as calls of one step, as a stream, and what a call of the kernel path costs the host."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from ...cells.backend import backend
from ..method.case import Case
from ..method.measure import Method
from ..method.results import medians
from ..providers.holdfast import Holdfast
from ..providers.loops import StepLoop
from ..providers.torch_nn import TorchNN
from ..providers.variants import HostSide, Streamed
from .entries import Entry, chosen
from .session import Session

OVERHEAD = tuple(
    replace(Case(cell, torch.float32, 16, 1, 2), **more)
    for cell in ("lstm", "gru", "rnn_tanh")
    for more in ({}, {"layers": 2}, {"directions": 2}, {"length": 1}, {"sequences": "ragged"})
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
    _host_side(session, wall)


def _host_side(session: Session, method: list[Method]) -> None:
    """The kernel path's time on the host, launches included, beside torch.nn's own CPU call of the same layer."""
    from ..method import fake_driver

    dense = [Entry(case, (HostSide(), TorchNN())) for case in OVERHEAD if case.sequences == "dense"]
    packed = TorchNN(packed=True)
    ragged = [Entry(case, (HostSide(), packed), baseline=packed.name) for case in OVERHEAD if case.sequences != "dense"]
    entries = dense[:2] if session.options.quick else dense + ragged
    why = fake_driver.missing() or (torch.cuda.is_available() and "a CUDA driver is here")
    if why:
        session.console.print(f"{session.suite}: the host's time of a launch is left out: {why}")
        return
    if session.options.rehearse:
        session.run(entries, method)
        return
    with fake_driver.fake_gpu(), backend("triton"):
        session.run(entries, method)
    if session.wants(HostSide()):
        session.console.print(verdict(medians(session.results.table())))


def verdict(found: pd.DataFrame) -> str:
    """How much longer a call of the kernel path keeps the host than torch.nn's CPU call takes: each phase's range."""
    ours = found[(found["provider"] == HostSide.name) & found["ratio"].notna()]
    if ours.empty:
        return ""
    times = (1 / ours["ratio"]).groupby(ours["phase"])
    each = [f"{phase} {ratios.min():.2f} to {ratios.max():.2f}" for phase, ratios in times]
    return (
        f"Host's time of a call on the kernel path, Triton's launcher included, over torch.nn's own CPU call "
        f"({ours['clock'].iloc[0]} time): {', '.join(each)}. GEMMs run on the CPU on both sides; no kernel is executed."
    )
