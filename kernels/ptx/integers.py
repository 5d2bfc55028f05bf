"""Arithmetic of integers. What does not fit wraps around."""

from __future__ import annotations

import numpy as np

from .operation import NUMBER, Bits, Operation, Run, in_halves, on_numbers, operation


def _low(a: Bits, b: Bits) -> Bits:
    return a * b


def _high(kind: str) -> Run:
    wide, width = np.int64 if kind[0] == "s" else np.uint64, int(kind[1:])

    def run(a: Bits, b: Bits) -> Bits:
        return (a.astype(wide) * b.astype(wide) >> wide(width)).astype(a.dtype)

    return run


def _wide(kind: str) -> Run:
    twice = NUMBER[f"{kind[0]}{2 * int(kind[1:])}"]

    def run(a: Bits, b: Bits) -> Bits:
        return a.astype(twice) * b.astype(twice)

    return run


def _plus(multiply: Run) -> Run:
    def run(a: Bits, b: Bits, c: Bits) -> Bits:
        product = multiply(a, b)
        return product + c.view(product.dtype)

    return run


def _quotient(a: Bits, b: Bits) -> Bits:
    """Towards zero; all bits set where b is 0, for which PTX names no result."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, ~b.dtype.type(0), (a - np.fmod(a, divisor)) // divisor)


def _remainder(a: Bits, b: Bits) -> Bits:
    return a - _quotient(a, b) * b


def _not_negative(run: Run) -> Run:
    """`.relu`"""
    return lambda a, b: np.maximum(run(a, b), 0)


INTEGERS: dict[str, Operation] = {
    f"{_name}.relu.s32": operation(on_numbers(_not_negative(_run), "s32"), ["s32"] * 2)
    for _name, _run in (("min", np.minimum), ("max", np.maximum))
}
for _kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
    _two: dict[str, Run] = {"add": np.add, "sub": np.subtract, "mul.lo": _low, "min": np.minimum, "max": np.maximum}
    _two |= {"div": _quotient, "rem": _remainder}
    for _name, _run in _two.items():
        INTEGERS[f"{_name}.{_kind}"] = operation(on_numbers(_run, _kind), [_kind] * 2)
    INTEGERS[f"mad.lo.{_kind}"] = operation(on_numbers(_plus(_low), _kind), [_kind] * 3)
    if _kind[0] == "s":
        INTEGERS[f"neg.{_kind}"] = operation(on_numbers(np.negative, _kind), [_kind])
        INTEGERS[f"abs.{_kind}"] = operation(on_numbers(np.abs, _kind), [_kind])
for _kind in ("u16", "s16", "u32", "s32"):
    INTEGERS[f"mul.hi.{_kind}"] = operation(on_numbers(_high(_kind), _kind), [_kind] * 2)
    _sum = f"{_kind[0]}{2 * int(_kind[1:])}"
    INTEGERS[f"mul.wide.{_kind}"] = operation(on_numbers(_wide(_kind), _kind), [_kind] * 2)
    INTEGERS[f"mad.wide.{_kind}"] = operation(_plus(INTEGERS[f"mul.wide.{_kind}"].run), [_kind, _kind, _sum])
for _name in ("min", "max"):
    for _kind in ("u16", "s16"):
        INTEGERS[f"{_name}.{_kind}x2"] = operation(in_halves(INTEGERS[f"{_name}.{_kind}"].run), ["b32"] * 2)
