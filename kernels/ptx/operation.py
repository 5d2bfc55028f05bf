"""What an instruction of PTX does with numbers, apart from where the numbers come from and go to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[Any]
"""A register of any number of lanes: unsigned integers of its width, or bool for a predicate."""

Run: TypeAlias = Callable[..., Any]

REGISTER = {"pred": np.bool_, "8": np.uint8, "16": np.uint16, "32": np.uint32, "64": np.uint64}
NUMBER = {
    **{f"{letter}{width}": REGISTER[width] for letter in "ub" for width in ("8", "16", "32", "64")},
    **{"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64},
}
"""PTX's integer types as NumPy's."""


class Operation(NamedTuple):
    """sources: the register type of each operand, in PTX's order.
    run:     from arrays of these types to the result, a tuple where there are several: pure, for all lanes at once.

    Arrays may have any shape, lie contiguous along their last axis, and are never written to.
    """

    sources: tuple[Any, ...]
    run: Run


def register(kind: str) -> Any:
    """The register type that holds PTX's type `kind`, e.g. "s32", "bf16x2", "pred"."""
    if kind == "pred":
        return np.bool_
    number, _, packed = kind.partition("x")
    width = int(number.lstrip("subft")) * int(packed or 1)
    return REGISTER[str(width)]


def operation(run: Run, kinds: Iterable[str]) -> Operation:
    return Operation(tuple(map(register, kinds)), run)


def on_numbers(run: Run, kind: str) -> Run:
    """`run` on integers of PTX's type `kind`, from registers and back to registers of the result's width."""
    number, bits = NUMBER[kind], register(kind)
    if number is bits:
        return run

    def signed(*sources: Bits) -> Bits:
        result = run(*(source.view(number) for source in sources))
        return result.view(REGISTER[str(8 * result.itemsize)])

    return signed


def in_halves(run: Run) -> Run:
    """`run` on each 16-bit half of 32-bit registers."""

    def packed(*sources: Bits) -> Bits:
        return run(*(source.view(np.uint16) for source in sources)).view(np.uint32)

    return packed
