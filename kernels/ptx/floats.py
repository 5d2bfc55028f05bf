"""Arithmetic of floating-point numbers, rounded once, to nearest even."""

from __future__ import annotations

import numpy as np

from .operation import Bits, Operation, Run, in_halves, operation
from .rounding import FORMATS, Floats, exact_sum, flushing, read_f32, write_f32


def _single(run: Run) -> Run:
    """A sum or product of float32, which NumPy rounds as PTX does."""

    def arithmetic(*sources: Bits) -> Bits:
        return write_f32(run(*map(read_f32, sources)))

    return arithmetic


def _half(run: Run, kind: str) -> Run:
    """As `_single` for 16 bits: `run` is exact, or to odd, in float64."""
    read, write = FORMATS[kind]

    def arithmetic(*sources: Bits) -> Bits:
        return write(run(*(read(source).astype(np.float64) for source in sources)))

    return arithmetic


def _exact_difference(a: Floats, b: Floats) -> Floats:
    return exact_sum(a, -b)


def _fused(a: Floats, b: Floats, c: Floats) -> Floats:
    return exact_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))


def _extreme(of_numbers: Run, of_zeros: Run, kind: str) -> Run:
    """min and max: the other operand where one is a NaN, and +0 is the larger zero."""
    read, write = FORMATS[kind]

    def run(a: Bits, b: Bits) -> Bits:
        x, y = read(a), read(b)
        # Two equal numbers have the same bits, or are zeros, which differ in the sign.
        return np.where(x == y, of_zeros(a, b), write(of_numbers(x, y)))

    return run


def _negative(bits: Bits) -> Bits:
    # PTX names no result for a NaN. Its sign is turned, so that the sentinel, which is one, may come of it.
    return bits ^ (bits.dtype.type(1) << bits.dtype.type(8 * bits.itemsize - 1))


def _magnitude(bits: Bits) -> Bits:
    return bits & ~(bits.dtype.type(1) << bits.dtype.type(8 * bits.itemsize - 1))


_IN_FLOAT32: dict[str, Run] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
_IN_FLOAT64: dict[str, Run] = {"add": exact_sum, "sub": _exact_difference, "mul": np.multiply}

FLOATS: dict[str, Operation] = {
    "fma.rn.f32": operation(_single(_fused), ["f32"] * 3),
    "fma.rn.ftz.f32": operation(flushing(_single(_fused)), ["f32"] * 3),
}
for _name, _run in _IN_FLOAT32.items():
    _flushing = operation(flushing(_single(_run)), ["f32"] * 2)
    FLOATS[f"{_name}.f32"] = FLOATS[f"{_name}.rn.f32"] = operation(_single(_run), ["f32"] * 2)
    FLOATS[f"{_name}.ftz.f32"] = FLOATS[f"{_name}.rn.ftz.f32"] = _flushing
for _kind in ("f16", "bf16"):
    _fma = operation(_half(_fused, _kind), [_kind] * 3)
    FLOATS[f"fma.rn.{_kind}"] = _fma
    FLOATS[f"fma.rn.{_kind}x2"] = operation(in_halves(_fma.run), ["b32"] * 3)
    for _name, _run in _IN_FLOAT64.items():
        _two = operation(_half(_run, _kind), [_kind] * 2)
        FLOATS[f"{_name}.{_kind}"] = FLOATS[f"{_name}.rn.{_kind}"] = _two
        FLOATS[f"{_name}.{_kind}x2"] = FLOATS[f"{_name}.rn.{_kind}x2"] = operation(in_halves(_two.run), ["b32"] * 2)
for _kind in FORMATS:
    _largest = operation(_extreme(np.fmax, np.bitwise_and, _kind), [_kind] * 2)
    _smallest = operation(_extreme(np.fmin, np.bitwise_or, _kind), [_kind] * 2)
    FLOATS[f"max.{_kind}"], FLOATS[f"min.{_kind}"] = _largest, _smallest
    FLOATS[f"neg.{_kind}"] = operation(_negative, [_kind])
    FLOATS[f"abs.{_kind}"] = operation(_magnitude, [_kind])
    if _kind != "f32":
        FLOATS[f"max.{_kind}x2"] = operation(in_halves(_largest.run), ["b32"] * 2)
        FLOATS[f"min.{_kind}x2"] = operation(in_halves(_smallest.run), ["b32"] * 2)
        FLOATS[f"neg.{_kind}x2"] = operation(in_halves(_negative), ["b32"])
        FLOATS[f"abs.{_kind}x2"] = operation(in_halves(_magnitude), ["b32"])
