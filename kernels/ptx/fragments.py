"""Which element of a matrix a register of a lane holds, for mma and wgmma.

A lane is one of 8 rows (`lane // 4`, PTX's groupID) and one of 4 columns (`lane % 4`, threadID_in_group). Its registers
repeat that tile of 8 x 4 words over the matrix, downwards first for A and the accumulators.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .operation import Bits

_LANE = np.arange(32)
_ROW, _COLUMN = _LANE // 4, _LANE % 4
Index = npt.NDArray[np.int64]


class Fragment(NamedTuple):
    """rows, columns: of the element in [register, part of the register, lane]. shape: of the matrix."""

    rows: Index
    columns: Index
    shape: tuple[int, int]


def _fragment(tiles: list[tuple[int, int]], parts: int) -> Fragment:
    """tiles: row and column of the first element of each register's tile, which is 8 x (4 * parts)."""
    inside = parts * _COLUMN + np.arange(parts)[:, None]
    rows = np.array([np.broadcast_to(_ROW + row, inside.shape) for row, _ in tiles])
    columns = np.array([inside + column for _, column in tiles])
    return Fragment(rows, columns, (int(rows.max()) + 1, int(columns.max()) + 1))


@cache
def left(k: int, parts: int) -> Fragment:
    """A of 16 x k: its rows 0 to 7 and 8 to 15, then the next columns."""
    return _fragment([(row, column) for column in range(0, k, 4 * parts) for row in (0, 8)], parts)


@cache
def right(k: int, parts: int) -> Fragment:
    """B of k x 8, as rows of its transpose."""
    return _fragment([(0, row) for row in range(0, k, 4 * parts)], parts)


@cache
def accumulators(n: int) -> Fragment:
    """C and D of 16 x n in float32: two columns side by side in two registers."""
    pair = _fragment([(row, column) for column in range(0, n, 8) for row in (0, 8)], 2)
    shape = (-1, 1, 32)
    return Fragment(pair.rows.reshape(shape), pair.columns.reshape(shape), pair.shape)


def gather(fragment: Fragment, registers: tuple[Bits, ...]) -> Bits:
    """The matrices [..., rows, columns] that registers [..., 32] hold, as bits of their elements."""
    words = np.stack(registers, axis=-2)
    parts = fragment.rows.shape[1]
    element = np.uint16 if parts == 2 else np.uint32
    split = words.view(element).reshape(*words.shape, parts).swapaxes(-1, -2)
    matrix = np.empty((*words.shape[:-2], *fragment.shape), element)
    matrix[..., fragment.rows, fragment.columns] = split
    return matrix


def scatter(fragment: Fragment, matrix: Bits) -> tuple[Bits, ...]:
    """The registers [..., 32] that hold matrices [..., rows, columns] of bits."""
    split = np.ascontiguousarray(matrix[..., fragment.rows, fragment.columns].swapaxes(-1, -2))
    words = split.view(np.uint32)[..., 0]
    return tuple(np.ascontiguousarray(words[..., number, :]) for number in range(words.shape[-2]))
