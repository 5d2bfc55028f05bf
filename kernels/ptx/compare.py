"""setp: comparisons of integers and floating-point numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .operation import NUMBER, Bits, Operation, Run, operation
from .rounding import FORMATS, Floats

Predicate = npt.NDArray[np.bool_]

_ORDERED: dict[str, Run] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_COMBINED: dict[str, Run] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _neither_nan(x: Floats, y: Floats) -> Predicate:
    return ~(np.isnan(x) | np.isnan(y))


def _either_nan(x: Floats, y: Floats) -> Predicate:
    return np.isnan(x) | np.isnan(y)


def _not_equal(x: Floats, y: Floats) -> Predicate:
    return (x != y) & _neither_nan(x, y)


def _or_nan(compare: Run) -> Run:
    return lambda x, y: compare(x, y) | _either_nan(x, y)


_FLOATING: dict[str, Run] = {
    **_ORDERED,
    "ne": _not_equal,
    "num": _neither_nan,
    "nan": _either_nan,
    **{f"{name}u": _or_nan(compare) for name, compare in _ORDERED.items()},
}


def _reading(compare: Run, kind: str) -> Run:
    read = FORMATS[kind].read if kind in FORMATS else NUMBER[kind]
    if kind in FORMATS:
        return lambda a, b: compare(read(a), read(b))
    return lambda a, b: compare(a.view(read), b.view(read))


def _combining(compare: Run, combine: Run) -> Run:
    return lambda a, b, c: combine(compare(a, b), c)


def _both(compare: Run) -> Run:
    def run(a: Bits, b: Bits) -> tuple[Predicate, Predicate]:
        found = compare(a, b)
        return found, ~found

    return run


def _combining_both(compare: Run, combine: Run) -> Run:
    def run(a: Bits, b: Bits, c: Predicate) -> tuple[Predicate, Predicate]:
        found = compare(a, b)
        return combine(found, c), combine(~found, c)

    return run


def _in_halves(compare: Run) -> Run:
    """Of each half by itself, the lower one first."""

    def run(a: Bits, b: Bits) -> tuple[Predicate, Predicate]:
        found = compare(a.view(np.uint16), b.view(np.uint16))
        return np.ascontiguousarray(found[..., 0::2]), np.ascontiguousarray(found[..., 1::2])

    return run


def _comparisons(kind: str) -> dict[str, Run]:
    if kind in FORMATS:
        return _FLOATING
    if kind[0] == "b":
        return {name: _ORDERED[name] for name in ("eq", "ne")}
    return _ORDERED if kind[0] == "s" else _ORDERED | {name: _ORDERED[of] for name, of in _UNSIGNED.items()}


COMPARE: dict[str, Operation] = {}
"""With "|" after the opcode for `setp.lt.s32 p|q, a, b`, which gives the negation too, or the upper half's result."""
for _kind in [*(f"{letter}{width}" for letter in "bus" for width in (16, 32, 64)), *FORMATS]:
    for _name, _run in _comparisons(_kind).items():
        _compare = _reading(_run, _kind)
        COMPARE[f"setp.{_name}.{_kind}"] = operation(_compare, [_kind] * 2)
        COMPARE[f"setp.{_name}.{_kind}|"] = operation(_both(_compare), [_kind] * 2)
        for _word, _combine in _COMBINED.items():
            _three, _opcode = [_kind, _kind, "pred"], f"setp.{_name}.{_word}.{_kind}"
            COMPARE[_opcode] = operation(_combining(_compare, _combine), _three)
            COMPARE[f"{_opcode}|"] = operation(_combining_both(_compare, _combine), _three)
        if _kind in ("f16", "bf16"):
            COMPARE[f"setp.{_name}.{_kind}x2|"] = operation(_in_halves(_compare), ["b32"] * 2)
