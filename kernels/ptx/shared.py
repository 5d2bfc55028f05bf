"""Shared memory of one program, and who has touched which of its bytes when.

An access of another warp that no barrier separates from a store is reported, and so is a wgmma that reads what was
stored without a proxy fence, and a store to what a wgmma may still be reading.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MisalignedError, OutOfBoundsError, RaceError
from .memory import BITS, Ints

BASE = 1024
"""Address of the first byte: below it lies what the system keeps."""


class SharedMemory:
    """seen: the part of the grid's clocks that is this program's warps'."""

    def __init__(self, size: int, granule: int, seen: npt.NDArray[np.int64], source: random.Random) -> None:
        self.size, self.granule, self.seen = size, granule, seen
        room = -(-size // 16) * 16
        self.bytes = np.frombuffer(source.randbytes(room), np.uint8).copy()
        granules, warps = max(1, room // granule), len(seen)
        self.writer = np.zeros(granules, np.int64)
        self.written = np.zeros(granules, np.int64)
        self.read = np.zeros((granules, warps), np.int64)
        self.fenced = np.zeros((granules, warps), np.int64)
        """When each warp first made the last store visible to the asynchronous proxy; 0 for not yet."""
        self.async_readers = np.zeros(granules, np.int64)

    def locate(self, addresses: Ints, size: int) -> Ints:
        offsets = addresses - BASE
        outside = (offsets < 0) | (offsets + size > self.size)
        if outside.any():
            raise OutOfBoundsError(
                f"{outside.sum()} threads touch shared memory beyond the program's {self.size} bytes, "
                f"at {int(offsets[outside][0])} and so on"
            )
        if (offsets & (size - 1)).any():
            raise MisalignedError(
                f"an access of {size} bytes at {int(offsets[offsets % size != 0][0])} of shared memory"
            )
        return offsets

    def load(self, warps: Ints, offsets: Ints, size: int) -> Any:
        granules = self._granules(offsets, size)
        self._check_writers(warps, granules, "loads")
        self.read[granules, warps[:, None]] = self.seen[warps, warps][:, None]
        return self.bytes.view(BITS[size])[offsets // size]

    def store(self, warps: Ints, offsets: Ints, values: Any) -> None:
        size = values.itemsize
        granules, places = self._granules(offsets, size), offsets // size
        whole = self.bytes.view(BITS[size])
        differs = whole[places] != values
        if differs.any():
            self._check_writers(warps[differs], granules[differs], "stores another value over")
        readers = self.read[granules] > self.seen[warps][:, None, :]
        if readers.any():
            reader = np.nonzero(readers)[2][0]
            raise RaceError(f"a store to shared memory that warp {reader} loads, and no barrier separates the two")
        if self.async_readers[granules].any():
            raise RaceError("a store to shared memory that a wgmma may still be reading: nothing waited for it")
        whole[places] = values
        if (whole[places] != values).any():
            raise RaceError("threads store different values to the same shared memory at once")
        self.writer[granules], self.written[granules] = warps[:, None], self.seen[warps, warps][:, None]
        self.fenced[granules] = 0

    def fence_proxy(self, warps: Ints) -> None:
        """What happened before becomes visible to the asynchronous proxy."""
        for warp in warps:
            known = self.written <= self.seen[warp, self.writer]
            self.fenced[known & (self.fenced[:, warp] == 0), warp] = self.seen[warp, warp]

    def granules_of(self, offsets: Ints, size: int) -> Ints:
        """Each once."""
        return np.unique(self._granules(offsets, size))

    def load_async(self, warp: int, offsets: Ints, size: int, touched: Ints) -> Any:
        """What a wgmma of this warp reads at these offsets. touched: their granules, which `async_done` takes back."""
        self._check_writers(np.full(len(touched), warp), touched[:, None], "reads asynchronously")
        fenced = self.fenced[touched]
        fenced_before = ((fenced > 0) & (fenced <= self.seen[warp])).any(-1)
        if ((self.written[touched] > 0) & ~fenced_before).any():
            raise RaceError("a wgmma reads shared memory that was stored without a fence.proxy.async since")
        self.async_readers[touched] += 1
        return self.bytes.view(BITS[size])[offsets // size]

    def async_done(self, warp: int, granules: Ints) -> None:
        self.async_readers[granules] -= 1
        self.read[granules, warp] = self.seen[warp, warp]

    def _granules(self, offsets: Ints, size: int) -> Ints:
        first = (offsets // self.granule)[:, None]
        return first if size == self.granule else first + np.arange(size // self.granule)

    def _check_writers(self, warps: Ints, granules: Ints, does: str) -> None:
        unordered = self.seen[warps[:, None], self.writer[granules]] < self.written[granules]
        if unordered.any():
            access = np.nonzero(unordered)[0][0]
            writer = self.writer[granules][unordered][0]
            raise RaceError(
                f"warp {warps[access]} {does} what warp {writer} stores to shared memory, with no barrier between"
            )
