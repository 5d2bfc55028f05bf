"""Tensors with guard bands: whatever is allocated in the block has other bytes before and behind it, which nobody may
change.

    with guarded() as allocated:
        y, h_n = module(x)              # x, allocated outside, as it is
    assert len(allocated) > 1           # and the bands are looked at when the block ends
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

BAND = 4096
"""Bytes on either side: further off than any row, tile or vector of the small layers that are tested."""

BAND_BYTE = 0xA5
"""Of a band. As a number it is near -1e-16 in float32: what reads it computes something wrong and not NaN."""

_ALLOCATE = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.zeros.default,
    torch.ops.aten.full.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_zeros.default,
}


class GuardBandError(AssertionError):
    """Somebody has written outside a tensor."""


class Guards(TorchDispatchMode):
    """fresh:  the byte that fresh memory is filled with, 0xFF for NaN; None leaves it."""

    def __init__(self, fresh: int | None = 0xFF) -> None:
        super().__init__()
        self.fresh = fresh
        self.allocated: list[torch.Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function not in _ALLOCATE or not found.numel() or not found.is_contiguous():
            return found
        length = found.numel() * found.element_size()
        block = torch.full((length + 2 * BAND,), BAND_BYTE, dtype=torch.uint8, device=found.device)
        inside = block[BAND : BAND + length]
        if "empty" in function.overloadpacket.__name__:
            if self.fresh is not None:
                inside.fill_(self.fresh)
        else:
            inside.copy_(found.view(-1).view(torch.uint8))
        self.allocated.append(block)
        return inside.view(found.dtype).view(found.shape)

    def check(self) -> None:
        for number, block in enumerate(self.allocated):
            for name, band in (("before", block[:BAND]), ("behind", block[-BAND:])):
                touched = (band != BAND_BYTE).nonzero()
                if len(touched):
                    raise GuardBandError(
                        f"{len(touched)} bytes {name} allocation {number} of {len(block) - 2 * BAND} bytes were "
                        f"written, byte {int(touched[0])} of the band first"
                    )


@contextmanager
def guarded(fresh: int | None = 0xFF) -> Iterator[list[torch.Tensor]]:
    """Every allocation of the block has guard bands. Raises GuardBandError at its end."""
    with Guards(fresh) as guards:
        yield guards.allocated
    guards.check()


def inside_bands(tensor: torch.Tensor, strides: tuple[int, ...] | None = None, offset: int = 0) -> torch.Tensor:
    """A copy of a caller's tensor in a block of bands: strides in elements (None: contiguous), `offset` elements past
    where memory is aligned. What lies between its rows is band, too."""
    strides = tensor.contiguous().stride() if strides is None else strides
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    band = math.ceil(BAND / tensor.element_size())
    block = torch.full(
        ((band * 2 + offset + max(extent, 1)) * tensor.element_size(),),
        BAND_BYTE,
        dtype=torch.uint8,
        device=tensor.device,
    )
    view = block.view(tensor.dtype).as_strided(tensor.shape, strides, band + offset)
    view.copy_(tensor)
    return view
