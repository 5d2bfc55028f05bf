"""What happened before what: a vector clock for each warp of the grid.

An event of warp v at its time c happened before what warp w does now if and only if c <= seen[w, v]. Barriers join the
clocks of those that meet there; a release leaves its warp's clock at the address, where an acquire finds it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Warps = npt.NDArray[np.int64]
"""Numbers of warps in the grid."""


class Clocks:
    def __init__(self, warps: int) -> None:
        self.seen = np.zeros((warps, warps), np.int64)
        np.fill_diagonal(self.seen, 1)
        self.left: dict[int, npt.NDArray[np.int64]] = {}
        """By address in global memory: the clock that a release left there."""
        self._observed: dict[int, npt.NDArray[np.int64]] = {}
        self._fenced: dict[int, npt.NDArray[np.int64]] = {}

    def tick(self, warps: Warps) -> None:
        self.seen[warps, warps] += 1

    def meet(self, warps: Warps) -> None:
        """A barrier."""
        self.seen[warps] = self.seen[warps].max(0)
        self.tick(warps)

    def fence(self, warp: int) -> None:
        """Later strong stores release what happened so far; what strong loads have seen so far is acquired."""
        if warp in self._observed:
            np.maximum(self.seen[warp], self._observed.pop(warp), out=self.seen[warp])
        self._fenced[warp] = self.seen[warp].copy()
        self.seen[warp, warp] += 1

    def any_fenced(self, warps: Warps) -> bool:
        return bool(self._fenced) and any(warp in self._fenced for warp in warps.tolist())

    def any_left(self) -> bool:
        """Whether a plain strong store may change what a release left, or releases itself."""
        return bool(self.left or self._fenced)

    def strong_load(self, warp: int, address: int, acquires: bool) -> None:
        if address not in self.left:
            return
        into = self.seen[warp] if acquires else self._observed.setdefault(warp, np.zeros(len(self.seen), np.int64))
        np.maximum(into, self.left[address], out=into)

    def strong_store(self, warp: int, address: int, releases: bool, modifies: bool) -> None:
        """modifies: an atomic operation, which goes on with what was left there before."""
        clocks = [self.seen[warp].copy()] if releases else [self._fenced[warp]] if warp in self._fenced else []
        clocks += [self.left[address]] if modifies and address in self.left else []
        if clocks:
            self.left[address] = np.maximum.reduce(clocks)
        else:
            self.left.pop(address, None)
        if releases:
            self.seen[warp, warp] += 1
