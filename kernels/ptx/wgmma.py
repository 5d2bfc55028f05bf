"""wgmma: products of four warps, with A in registers or shared memory and B in shared memory.

A descriptor names a matrix in shared memory (PTX ISA, "Asynchronous warpgroup-level matrix shared memory layout"):
bits 0-13 its address, 16-29 the leading and 32-45 the stride dimension's byte offset, each in 16 bytes, 49-51 the base
offset and 62-63 the swizzle. In memory lie rows of as many bytes as the swizzle has, eight of them in a block; a row
runs along K, or, where the matrix is transposed, along M or N.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from . import fragments
from .errors import UnknownInstructionError
from .matrix import product
from .operation import Bits
from .rounding import read_f32, write_f32

_ROW_BYTES = (16, 128, 64, 32)
"""By the descriptor's swizzle: none, 128, 64 and 32 bytes."""


@cache
def element_addresses(descriptor: int, extent: int, k: int, itemsize: int, transposed: bool) -> npt.NDArray[np.int64]:
    """[extent, k]: where each element's first byte lies in shared memory; extent is of M or N."""
    address, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    row_bytes = _ROW_BYTES[descriptor >> 62 & 3]
    if row_bytes > 16 and descriptor >> 49 & 7:  # it shifts the swizzle's pattern; Triton 3.9 writes it without one too
        raise UnknownInstructionError("wgmma with a base offset in a descriptor")
    of_extent, of_k = np.arange(extent)[:, None], np.arange(k)[None, :]
    along, across = (of_extent, of_k) if transposed else (of_k, of_extent)
    in_row = row_bytes // itemsize
    # Two strides go from block to block, along the rows and across them. Which is which depends on the layout: without
    # a swizzle the leading one is that of K, with one it is that along the rows (K-major: never used, for an
    # instruction's K is within a row).
    leading_is_along = row_bytes > 16 or not transposed
    step_along, step_across = (leading, stride) if leading_is_along else (stride, leading)
    linear = (
        address
        + along % in_row * itemsize
        + along // in_row * step_along
        + across % 8 * row_bytes
        + across // 8 * step_across
    )
    # 16-byte pieces of a row change places with the number of the 128 bytes that the address lies in.
    return linear ^ (linear >> 7 & row_bytes // 16 - 1) << 4


@dataclass(frozen=True)
class Wgmma:
    """D [64, n] = A [64, k] B [k, n] + D in float32. `kind` is of A's and B's elements."""

    n: int
    k: int
    kind: str

    @property
    def registers(self) -> int:
        """Of D, of each lane."""
        return self.n // 2

    @property
    def itemsize(self) -> int:
        return 4 if self.kind == "tf32" else 2

    def a_bytes(self, descriptor: int, transposed: bool) -> npt.NDArray[np.int64]:
        """[64, k]: address of each element of A."""
        return element_addresses(descriptor, 64, self.k, self.itemsize, bool(transposed))

    def b_bytes(self, descriptor: int, transposed: bool) -> npt.NDArray[np.int64]:
        """[n, k]: address of each element of B."""
        return element_addresses(descriptor, self.n, self.k, self.itemsize, bool(transposed))

    def a_registers(self, registers: tuple[Bits, ...]) -> Bits:
        """A [64, k] from four registers [4 warps, 32]: warp w has rows 16 w to 16 w + 15."""
        matrices = fragments.gather(fragments.left(self.k, 4 // self.itemsize), registers)
        return matrices.reshape(64, self.k)

    def product(
        self, a: Bits, b: Bits, before: tuple[Bits, ...] | None, scale_a: int = 1, scale_b: int = 1
    ) -> tuple[Bits, ...]:
        """D's registers [4 warps, 32], from bits of A [64, k], of B [n, k] and D before; None where scale-d is false.

        Rounded as mma.sync is (see `matrix`).
        """
        layout = fragments.accumulators(self.n)
        total = scale_a * scale_b * product(self.kind, a, b)
        if before is not None:
            total += read_f32(fragments.gather(layout, before)).reshape(64, self.n)
        return fragments.scatter(layout, write_f32(total).reshape(4, 16, self.n))


WGMMA = {
    f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind}": Wgmma(n, k, kind)
    for kind, k in (("bf16", 16), ("f16", 16), ("tf32", 8))
    for n in range(8, 257, 8)
}
