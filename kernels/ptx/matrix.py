"""Products of a warp's matrices, mma.sync, and the moves between shared memory and their fragments.

The products are exact in float64, and so is their sum but for 2**-53; the result is rounded to float32 once. A GPU
keeps fewer bits while it adds, so it differs from this by a few units of float32's last place of the largest summand.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import fragments
from .operation import Bits, Operation, Run
from .rounding import FORMATS, Floats, read_f32, write_f32


def _read_tf32(bits: Bits) -> Floats:
    """The matrix unit does not look at the 13 bits that TF32 has not."""
    return read_f32(bits & np.uint32(0xFFFFE000))


READ = {"bf16": FORMATS["bf16"].read, "f16": FORMATS["f16"].read, "tf32": _read_tf32}
"""From the bits of A's and B's elements to numbers."""


def product(kind: str, a: Bits, b: Bits) -> Floats:
    """a [..., m, k] times the transpose of b [..., n, k], bits of elements of type `kind`: float64."""
    return READ[kind](a).astype(np.float64) @ READ[kind](b).astype(np.float64).swapaxes(-1, -2)


def _mma(k: int, kind: str) -> Run:
    parts = 1 if kind == "tf32" else 2
    left, right, accumulators = fragments.left(k, parts), fragments.right(k, parts), fragments.accumulators(8)

    def run(active: Bits, a: tuple[Bits, ...], b: tuple[Bits, ...], c: tuple[Bits, ...]) -> tuple[Bits, ...]:
        before = read_f32(fragments.gather(accumulators, c)).astype(np.float64)
        after = before + product(kind, fragments.gather(left, a), fragments.gather(right, b))
        return fragments.scatter(accumulators, write_f32(after))

    return run


MMA: dict[str, Operation] = {
    f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32": Operation((np.uint32,) * 3, _mma(k, kind))
    for kind, sizes in (("bf16", (8, 16)), ("f16", (8, 16)), ("tf32", (4, 8)))
    for k in sizes
}

_TILE = fragments.right(8, 2)
"""8 x 8 elements of 16 bits over the lanes, as B has them."""


class Move(NamedTuple):
    """ldmatrix or stmatrix of 1, 2 or 4 tiles. Row r of tile t, 16 bytes, is at the address that lane 8 * t + r names.

    `deal` brings a lane two elements of a row side by side; transposed, of a column.
    """

    tiles: int
    transposed: bool

    def addresses(self, named: Bits) -> Bits:
        """Of all rows [..., 8 * tiles], from what the lanes name [..., 32]."""
        return named[..., : 8 * self.tiles]

    def deal(self, rows: Bits) -> tuple[Bits, ...]:
        """From rows of bytes [..., 8 * tiles, 16] to registers, one a tile."""
        tiles = np.ascontiguousarray(rows).view(np.uint16).reshape(*rows.shape[:-2], self.tiles, 8, 8)
        registers = fragments.scatter(_TILE, tiles.swapaxes(-1, -2) if self.transposed else tiles)[0]
        return tuple(np.ascontiguousarray(registers[..., tile, :]) for tile in range(self.tiles))

    def collect(self, *registers: Bits) -> Bits:
        """From registers, one a tile, to rows of bytes [..., 8 * tiles, 16]."""
        tiles = fragments.gather(_TILE, (np.stack(registers, axis=-2),))
        rows = np.ascontiguousarray(tiles.swapaxes(-1, -2) if self.transposed else tiles)
        return rows.view(np.uint8).reshape(*registers[0].shape[:-1], 8 * self.tiles, 16)


_MOVES = {
    f"sync.aligned.m8n8.x{tiles}{'.trans' if transposed else ''}.shared.b16": Move(tiles, transposed)
    for tiles in (1, 2, 4)
    for transposed in (False, True)
}
LDMATRIX = {f"ldmatrix.{name}": move for name, move in _MOVES.items()}
STMATRIX = {f"stmatrix.{name}": move for name, move in _MOVES.items()}
