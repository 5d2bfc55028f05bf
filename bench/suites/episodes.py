"""Episodes in rollouts on a CPU: a call with resets, beside the loop over steps that people write, and one without."""

from __future__ import annotations

import torch

from ..method.case import Case
from ..method.results import medians
from ..providers.holdfast import Holdfast
from ..providers.loops import ModuleLoop
from .entries import Entry, chosen
from .features import NO_RESETS
from .session import Session

CASES = tuple(
    Case("lstm", torch.float32, H, B, 128, input_size=64, sequences="rare resets")
    for H in (64, 128, 256)
    for B in (8, 16, 64)
)


def run(session: Session) -> None:
    cases = CASES[:1] if session.options.few else CASES
    providers = (Holdfast(), ModuleLoop(), NO_RESETS)
    session.run(chosen([Entry(case, providers, baseline=ModuleLoop.name) for case in cases], session.options))
    found = medians(session.results.table())
    if {provider.name for provider in providers} <= set(found["provider"]):
        times = found.pivot_table(index=["H", "B", "phase"], columns="provider", values="p50_us")
        ours = times[providers[0].name]
        over_loop, over_dense = times[ModuleLoop.name] / ours, ours / times[NO_RESETS.name]
        for (H, B, phase), ratio in over_loop.items():
            session.console.print(f"H={H} B={B} {phase}: {ratio:.2f} faster, {over_dense[H, B, phase]:.2f} of dense")
        session.console.print(
            f"The loop's time over that of one call with resets: {over_loop.min():.2f} to {over_loop.max():.2f}; "
            f"of the call over one without resets: {over_dense.min():.2f} to {over_dense.max():.2f}"
        )
