"""Right or wrong: what a provider returns against torch.nn in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..cells.call.surroundings import interpreting, precision
from .numbers import Numbers, Results
from .tolerance import compare_all


@dataclass(frozen=True)
class Verdict:
    worst: str
    error: float
    allowed: float
    ok: bool


class Judge:
    """Compares what providers return with torch.nn in float64, allowing what torch.nn's own error allows."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        self.torchs: dict[torch.dtype, Results] = {}

    def __call__(self, outputs: Results, dtype: torch.dtype, *, factor: float) -> Verdict:
        """factor: times the tolerance of `compare_all`."""
        interpreted = interpreting()
        tf32 = (interpreted or self.numbers.device.type == "cuda") and precision(dtype) == "tf32"
        # torch on a CPU knows no TF32, which the interpreted kernels round to; float16 has as many bits.
        like = torch.float16 if tf32 and interpreted else dtype
        if like not in self.torchs:
            self.torchs[like] = self.numbers.computed_in(like)
        names = list(outputs)
        errors = compare_all(
            [outputs[name] for name in names],
            [self.torchs[like][name] for name in names],
            [self.numbers.right[name] for name in names],
            torch.float16 if tf32 else dtype,
        )
        shares = [e.ours / e.tolerance if e.tolerance else math.inf for e in errors]
        worst = max(range(len(names)), key=lambda i: math.inf if math.isnan(shares[i]) else shares[i])
        return Verdict(
            names[worst],
            errors[worst].ours,
            factor * errors[worst].tolerance,
            all(e.ours <= factor * e.tolerance for e in errors),  # False for NaN
        )
