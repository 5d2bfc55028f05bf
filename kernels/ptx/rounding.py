"""PTX's floating-point formats: from bits to numbers, and numbers rounded to nearest even.

float64 holds every number of the formats and every product of two. A sum is made exact by what float64 has lost of it:
where something is lost, the result's last bit is set ("round to odd"), and rounding once more is then as good as
rounding once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .operation import Bits, Run

Floats = npt.NDArray[np.floating[Any]]


class Format(NamedTuple):
    """read:  from registers to float32 or float64 numbers.
    write: from float64 numbers to registers; a NaN becomes the one that PTX's arithmetic makes.
    """

    read: Callable[[Bits], Floats]
    write: Callable[[Floats], Bits]


def read_f32(bits: Bits) -> Floats:
    return bits.view(np.float32)


def write_f32(numbers: Floats) -> Bits:
    rounded = numbers.astype(np.float32)
    return np.where(np.isnan(rounded), np.uint32(0x7FFFFFFF), rounded.view(np.uint32))


def read_f16(bits: Bits) -> Floats:
    return bits.view(np.float16).astype(np.float32)


def write_f16(numbers: Floats) -> Bits:
    rounded = numbers.astype(np.float16)
    return np.where(np.isnan(rounded), np.uint16(0x7FFF), rounded.view(np.uint16))


def read_bf16(bits: Bits) -> Floats:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def write_bf16(numbers: Floats) -> Bits:
    single = _odd_f32(numbers).view(np.uint32)
    rounded = (single + np.uint32(0x7FFF) + (single >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), rounded.astype(np.uint16))


def _flushed(bits: Bits) -> Bits:
    return np.where(bits & np.uint32(0x7F800000) == 0, bits & np.uint32(0x80000000), bits)


def flushing(run: Run) -> Run:
    """`.ftz`: subnormal float32 operands and results are zeros of their sign."""

    def flushed(*sources: Bits) -> Bits:
        return _flushed(run(*map(_flushed, sources)))

    return flushed


FORMATS = {
    "f32": Format(read_f32, write_f32),
    "f16": Format(read_f16, write_f16),
    "bf16": Format(read_bf16, write_bf16),
}


def _odd_f32(numbers: Floats) -> Floats:
    near = numbers.astype(np.float32)
    if numbers.dtype == np.float32:
        return near
    lost = np.abs(numbers) - np.abs(near.astype(np.float64))
    return _odd(near, np.isfinite(numbers) & (lost != 0), lost > 0)


def exact_sum(a: Floats, b: Floats) -> Floats:
    """a + b of float64 numbers, to odd."""
    total = a + b
    of_b = total - a
    lost = (a - (total - of_b)) + (b - of_b)
    return _odd(total, np.isfinite(total) & (lost != 0), (lost > 0) == (total > 0))


def _odd(numbers: Floats, inexact: npt.NDArray[np.bool_], away: npt.NDArray[np.bool_]) -> Floats:
    """Of the two neighbours of an inexact number the odd one, which lies away from zero or towards it."""
    integer = np.int32 if numbers.dtype == np.float32 else np.int64
    bits = numbers.view(integer)
    step = np.where(away, integer(1), integer(-1))
    return (bits + np.where(inexact & (bits & integer(1) == 0), step, integer(0))).view(numbers.dtype)
