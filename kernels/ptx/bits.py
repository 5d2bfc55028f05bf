"""Moving, selecting and shuffling bits within a lane."""

from __future__ import annotations

from typing import Any

import numpy as np

from .operation import NUMBER, REGISTER, Bits, Operation, Run, operation

_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


def unpack(packed: Bits, count: int) -> tuple[Bits, ...]:
    """The parts of a register, lowest first: `mov.b32 {%rs1, %rs2}, %r1`."""
    part: Any = REGISTER[str(8 * packed.itemsize // count)]
    split = np.ascontiguousarray(packed).view(part).reshape(*packed.shape, count)
    return tuple(np.ascontiguousarray(split[..., number]) for number in range(count))


def pack(parts: tuple[Bits, ...]) -> Bits:
    """A register from its parts, lowest first: `mov.b32 %r1, {%rs1, %rs2}`."""
    whole = REGISTER[str(8 * parts[0].itemsize * len(parts))]
    return np.stack(parts, axis=-1).view(whole)[..., 0]


def _shift_left(value: Bits, amount: Bits) -> Bits:
    # NumPy shifts by as much as the width, and by more, to zero, or to the sign: as PTX does.
    return np.left_shift(value, np.minimum(amount, 8 * value.itemsize).astype(value.dtype))


def _shift_right(number: Any) -> Run:
    def run(value: Bits, amount: Bits) -> Bits:
        by = np.minimum(amount, 8 * value.itemsize).astype(number)
        return np.right_shift(value.view(number), by).view(value.dtype)

    return run


def _field(signed: bool) -> Run:
    """bfe: bits `start` to `start + length`; bits beyond the register are the sign: the field's top bit if it lies in
    the register, and the register's otherwise."""

    def run(value: Bits, start: Bits, length: Bits) -> Bits:
        wide = value.astype(np.uint64)
        begin = (start & np.uint32(0xFF)).astype(np.int64)
        count = (length & np.uint32(0xFF)).astype(np.int64)
        there = np.clip(np.minimum(count, 32 - begin), 0, None)  # 32 of 64 bits at most
        mask = ~(_ONES << there.astype(np.uint64))
        field = np.where(begin < 32, wide >> np.minimum(begin, 63).astype(np.uint64), 0) & mask
        if signed:
            top = wide >> np.clip(np.minimum(begin + count - 1, 31), 0, None).astype(np.uint64) & np.uint64(1)
            field |= np.where((top == 1) & (count > 0), ~mask, np.uint64(0))
        return field.astype(np.uint32)

    return run


def _permute(low: Bits, high: Bits, selector: Bits) -> Bits:
    """prmt: each nibble of the selector names one of eight bytes, or, with its top bit, that byte's sign."""
    eight = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(low)
    for place in range(4):
        nibble = selector >> np.uint32(4 * place) & np.uint32(15)
        byte = (eight >> (8 * (nibble & np.uint32(7))).astype(np.uint64)).astype(np.uint32) & np.uint32(0xFF)
        sign = np.where(byte >> np.uint32(7) == 1, np.uint32(0xFF), np.uint32(0))
        result |= np.where(nibble >> np.uint32(3) == 1, sign, byte) << np.uint32(8 * place)
    return result


def _select(if_true: Bits, if_false: Bits, predicate: Bits) -> Bits:
    return np.where(predicate, if_true, if_false)


def _same(value: Bits) -> Bits:
    return value


BITS: dict[str, Operation] = {
    "bfe.u32": operation(_field(signed=False), ["b32"] * 3),
    "bfe.s32": operation(_field(signed=True), ["b32"] * 3),
    "prmt.b32": operation(_permute, ["b32"] * 3),
}
for _kind in ("pred", "b16", "b32", "b64"):
    for _name, _run in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        BITS[f"{_name}.{_kind}"] = operation(_run, [_kind] * 2)
    BITS[f"not.{_kind}"] = operation(np.invert, [_kind])
    BITS[f"mov.{_kind}"] = operation(_same, [_kind])
for _width in ("16", "32", "64"):
    for _letter in "us":
        BITS[f"mov.{_letter}{_width}"] = operation(_same, [f"b{_width}"])
        BITS[f"shr.{_letter}{_width}"] = operation(_shift_right(NUMBER[_letter + _width]), [f"b{_width}", "u32"])
    BITS[f"shr.b{_width}"] = BITS[f"shr.u{_width}"]
    BITS[f"shl.b{_width}"] = operation(_shift_left, [f"b{_width}", "u32"])
    for _letter in "bus":
        BITS[f"selp.{_letter}{_width}"] = operation(_select, [f"b{_width}"] * 2 + ["pred"])
for _name in ("mov", "selp"):
    for _kind in ("f32", "f64"):
        BITS[f"{_name}.{_kind}"] = BITS[f"{_name}.b{_kind[1:]}"]
