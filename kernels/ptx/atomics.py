"""What an atomic operation leaves in memory."""

from __future__ import annotations

import numpy as np

from .floats import FLOATS
from .operation import Bits, Operation, Run, on_numbers, operation


def _exchange(old: Bits, new: Bits) -> Bits:
    return new


def _compare_and_swap(old: Bits, expected: Bits, new: Bits) -> Bits:
    return np.where(old == expected, new, old)


_OF_INTEGERS: dict[str, Run] = {"add": np.add, "min": np.minimum, "max": np.maximum}
_OF_BITS: dict[str, Run] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "exch": _exchange}

ATOMIC: dict[str, Operation] = {}
"""By operation and type, e.g. "add.u32": from what memory holds and the operands to what it holds afterwards."""
for _kind in ("u32", "s32", "u64", "s64"):
    for _name, _run in _OF_INTEGERS.items():
        ATOMIC[f"{_name}.{_kind}"] = operation(on_numbers(_run, _kind), [_kind] * 2)
for _kind in ("b32", "b64"):
    for _name, _run in _OF_BITS.items():
        ATOMIC[f"{_name}.{_kind}"] = operation(_run, [_kind] * 2)
    ATOMIC[f"cas.{_kind}"] = operation(_compare_and_swap, [_kind] * 3)
ATOMIC["add.f32"] = FLOATS["add.f32"]
for _kind in ("f16", "bf16", "f16x2", "bf16x2"):
    ATOMIC[f"add.noftz.{_kind}"] = FLOATS[f"add.{_kind}"]
