"""What providers return beside torch.nn in float64, within the tolerance that torch.nn's own error derives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...cells.call.surroundings import precision
from ...kernels.executor import interpreting
from ...kernels.tolerance import compare_all
from .numbers import Numbers, Results


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
        errors = compare_all(
            [*outputs.values()],
            [self.torchs[like][name] for name in outputs],
            [self.numbers.right[name] for name in outputs],
            torch.float16 if tf32 else dtype,
        )
        name, found = max(zip(outputs, errors, strict=True), key=lambda named: named[1].share)
        return Verdict(
            name,
            found.ours,
            factor * found.tolerance,
            all(e.ours <= factor * e.tolerance for e in errors),  # False for NaN
        )
