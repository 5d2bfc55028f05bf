"""The eager path on the CPU beside torch.nn: the same op underneath, so all that differs is what holdfast adds."""

from __future__ import annotations

import pandas as pd
import torch

from ..method.case import Case
from ..method.results import SHAPE, medians, shape_of
from ..providers.holdfast import Holdfast
from ..providers.torch_nn import TorchNN
from .entries import Entry
from .session import Session

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
    useful = USEFUL[:3] if session.options.quick else USEFUL
    session.run(Entry(case, providers) for case in (FIXED, *useful))
    found = medians(session.results.table())
    if {provider.name for provider in providers} <= set(found["provider"]):
        session.console.print(verdict(found))


def verdict(found: pd.DataFrame) -> str:
    """What holdfast adds to torch.nn: microseconds of a call that computes nothing, and the share of a useful one."""
    ours, torchs = (
        found[found["provider"] == name].set_index([*SHAPE, "phase"])["p50_us"] for name in ("holdfast", "torch.nn")
    )
    sizes = ours.index.get_level_values("H")
    added, share = ours - torchs, ours / torchs
    fixed = {
        phase: added[(sizes == FIXED.hidden_size)].xs(phase, level="phase").iloc[0] for phase in ("forward", "training")
    }
    useful = share[sizes != FIXED.hidden_size]
    worst = useful.idxmax()
    clock, case = found["clock"].iloc[0], pd.Series(dict(zip([*SHAPE, "phase"], worst, strict=True)))
    return (
        f"Fixed part ({clock} time): {fixed['forward']:+.1f} us forward, {fixed['training']:+.1f} us training. "
        f"Time over torch.nn's at useful sizes: {useful.median():.3f} in the median, at most {useful.max():.3f} "
        f"({shape_of(case)}, {worst[-1]})"
    )
