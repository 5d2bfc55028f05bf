"""Right or wrong: twice torch's own error in the same dtype against float64 is allowed, plus one rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

# float32 goes through the matrix unit as three TF32 products, 22 bits of 24.
_FLOOR_ULPS = {torch.float32: 2, torch.bfloat16: 1, torch.float16: 1, torch.float64: 1}


FLOAT32_AS_TF32 = 2.0**-22
"""Relative error of three TF32 products in place of one of float32; torch's own may be zero on a few numbers."""


@dataclass(frozen=True)
class Errors:
    """Largest absolute errors against float64, and what they may be.

    ours:    of the result under test.
    torchs:  of torch.nn in the same dtype on the same numbers.
    floor:   one unit in the last place of the largest reference value, two for float32; torch's error
             on a handful of numbers may be zero by luck.
    """

    ours: float
    torchs: float
    floor: float

    @property
    def tolerance(self) -> float:
        return 2 * self.torchs + self.floor

    @property
    def ok(self) -> bool:
        return self.ours <= self.tolerance  # False for NaN

    @property
    def share(self) -> float:
        """Of the tolerance that is used up; infinite for NaN, which no comparison would find to be the worst."""
        share = self.ours / self.tolerance if self.tolerance else math.inf if self.ours else 0.0
        return math.inf if math.isnan(share) else share


def worst(errors: Iterable[Errors]) -> Errors:
    """The errors nearest to, or furthest beyond, their tolerance."""
    return max(errors, key=lambda e: e.share)


def compare_all(
    results: Sequence[torch.Tensor],
    torchs: Sequence[torch.Tensor],
    references: Sequence[torch.Tensor],
    dtype: torch.dtype,
    torch_elsewhere: float = 0.0,
) -> list[Errors]:
    """Errors of the results of one computation, e.g. its gradients, and of torch's own against float64 references.

    dtype:  the precision in which the floor is counted; float32 results of tf32 products pass torch.float16,
            which has as many bits of mantissa.

    torch's error is taken relative to each tensor's largest value and is the largest of them all: a
    small tensor shows a precision's error only by luck. For a computation that is small as a whole,
    torch_elsewhere is its `relative_error` on other numbers.
    """
    relative = max(relative_error(torchs, references), torch_elsewhere)
    sizes = [_size(reference) for reference in references]
    return [
        Errors(_error(result, reference), relative * size, size * _FLOOR_ULPS[dtype] * torch.finfo(dtype).eps)
        for result, reference, size in zip(results, references, sizes, strict=True)
    ]


def relative_error(results: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> float:
    """The largest error of any tensor relative to its largest value."""
    pairs = [(result, reference) for result, reference in zip(results, references, strict=True) if _size(reference)]
    return max((_error(result, reference) / _size(reference) for result, reference in pairs), default=0.0)


def _size(reference: torch.Tensor) -> float:
    return reference.abs().max().item() if reference.numel() else 0.0


def _error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return (result.double() - reference).abs().max().item() if reference.numel() else 0.0
