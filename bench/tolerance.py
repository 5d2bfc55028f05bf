"""How wrong a result may be: twice torch's own error in the same dtype, plus one rounding of the result."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Errors:
    """Largest absolute errors against float64, and what they may be.

    ours:    of the result under test.
    torchs:  of torch.nn in the same dtype on the same numbers.
    floor:   one unit in the last place of the largest reference value; torch's error on a handful of numbers may
             be zero by luck.
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


def compare(result: torch.Tensor, torchs: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> Errors:
    """Errors of a result and of torch's own against a float64 reference, all of one shape.

    dtype:  the precision in which the floor is counted; float32 results of tf32 products pass torch.float16,
            which has as many bits of mantissa.
    """
    if reference.numel() == 0:
        return Errors(0.0, 0.0, 0.0)
    largest = reference.abs().max().item()
    return Errors(
        ours=(result.double() - reference).abs().max().item(),
        torchs=(torchs.double() - reference).abs().max().item(),
        floor=largest * torch.finfo(dtype).eps,
    )
