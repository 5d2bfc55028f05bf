"""cvt: from one type to another."""

from __future__ import annotations

import numpy as np

from .operation import NUMBER, REGISTER, Bits, Operation, Run, operation
from .rounding import FORMATS, read_f32, write_bf16, write_f16, write_f32


def _integer(source: str, target: str) -> Run:
    """Extended by the source's sign, or cut off."""
    number, wide = NUMBER[source], NUMBER[target]

    def run(value: Bits) -> Bits:
        return value.view(number).astype(wide).view(REGISTER[target[1:]])

    return run


def _to_single(source: str) -> Run:
    def run(value: Bits) -> Bits:
        return write_f32(value.view(NUMBER[source]))

    return run


def _widened(kind: str) -> Run:
    """Exact; a NaN keeps its bits, as one of bfloat16 does where the compiler makes a shift of this."""

    def run(value: Bits) -> Bits:
        return FORMATS[kind].read(value).view(np.uint32)

    return run


def _rounded(write: Run) -> Run:
    def run(value: Bits) -> Bits:
        return write(read_f32(value))

    return run


def _packed(write: Run) -> Run:
    """The first operand is the upper half."""

    def run(high: Bits, low: Bits) -> Bits:
        return write(read_f32(high)).astype(np.uint32) << np.uint32(16) | write(read_f32(low)).astype(np.uint32)

    return run


def _tf32_away(value: Bits) -> Bits:
    """rna: to 10 bits of mantissa, halves away from zero. The 13 bits below them are 0."""
    rounded = value + np.uint32(0x1000) & np.uint32(0xFFFFE000)
    finite = value & np.uint32(0x7F800000) != np.uint32(0x7F800000)
    return np.where(np.isnan(read_f32(value)), np.uint32(0x7FFFFFFF), np.where(finite, rounded, value))


CONVERT: dict[str, Operation] = {
    "cvt.f32.f16": operation(_widened("f16"), ["f16"]),
    "cvt.f32.bf16": operation(_widened("bf16"), ["bf16"]),
    "cvt.rna.tf32.f32": operation(_tf32_away, ["f32"]),
}
for _kind, _write in (("f16", write_f16), ("bf16", write_bf16)):
    CONVERT[f"cvt.rn.{_kind}.f32"] = operation(_rounded(_write), ["f32"])
    CONVERT[f"cvt.rn.{_kind}x2.f32"] = operation(_packed(_write), ["f32"] * 2)
_integers = [kind for kind in NUMBER if kind[0] in "us"]
for _kind in _integers:
    CONVERT[f"cvt.rn.f32.{_kind}"] = operation(_to_single(_kind), [_kind])
for _target in _integers:
    for _source in _integers:
        CONVERT[f"cvt.{_target}.{_source}"] = operation(_integer(_source, _target), [_source])
