"""Global memory as PTX's memory model lets a kernel see it: late, out of order, and stale.

A store lies in its program for a while and reaches the others element by element, in any order, but for a release and
what it covers: the model orders relaxed stores to different addresses no more than weak ones. A weak load is served
from lines that the program has read before, unless an acquire threw them away.

Two accesses to one word, one of them a store, that nothing orders are a race and reported, unless both are strong and
of the same size: nothing promises that a weak store is ever seen, and accesses of different sizes the model gives no
meaning.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .clocks import Clocks
from .errors import MisalignedError, OutOfBoundsError, RaceError

Ints = npt.NDArray[np.int64]
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SECTOR = 32
"""Bytes that a load brings into the L1 at once."""
_ROOM = 256
"""Between two tensors in the arena, and what their first bytes are aligned to."""


class Pending:
    """Stores of one instruction that the other programs cannot see yet."""

    def __init__(self, offsets: Ints, values: Any, warps: Ints, clocks: Ints) -> None:
        self.offsets, self.values, self.warps, self.clocks = offsets, values, warps, clocks
        self.left, self.count = np.ones(offsets.size, bool), offsets.size

    def take(self, mask: npt.NDArray[np.bool_]) -> Ints:
        """Which elements of the mask are left; they are left no longer."""
        taken = np.flatnonzero(mask & self.left)
        self.left[taken] = False
        self.count -= taken.size
        return taken


class View:
    """What one program has of global memory for itself: its L1 and the stores that nobody else sees."""

    def __init__(self, size: int, granules: int) -> None:
        self.l1 = np.zeros(size, np.uint8)
        self.valid = np.zeros(size // SECTOR, bool)
        self.stores: list[Pending] = []
        self.pending = np.zeros(granules, bool)


class GlobalMemory:
    """The tensors of one launch, copied to an arena and back by `finish`.

    tensors:       (address, bytes) of each.
    granule:       the smallest access of the kernel in bytes.
    report_races:  False lets races happen, with the numbers that a GPU might read.
    """

    def __init__(
        self,
        tensors: Sequence[tuple[int, npt.NDArray[np.uint8]]],
        clocks: Clocks,
        programs: int,
        granule: int,
        source: random.Random,
        report_races: bool = True,
    ) -> None:
        self.clocks, self.random, self.report_races = clocks, source, report_races
        self.tensors = sorted((tensor for tensor in tensors if tensor[1].size), key=lambda tensor: tensor[0])
        self.starts = np.array([address for address, _ in self.tensors], np.int64)
        self.ends = np.array([address + data.size for address, data in self.tensors], np.int64)
        self.bases: list[int] = []
        size = 0
        for address, data in self.tensors:
            self.bases.append(size + address % _ROOM)
            size += -(-(address % _ROOM + data.size) // _ROOM) * _ROOM + _ROOM
        self.shift = np.array([base - address for base, (address, _) in zip(self.bases, self.tensors, strict=True)])
        self.l2 = np.zeros(max(size, _ROOM), np.uint8)
        for base, (_, data) in zip(self.bases, self.tensors, strict=True):
            self.l2[base : base + data.size] = data
        self.newest = self.l2.copy()
        """Every store applied when it was issued."""
        self.granule = granule
        granules = self.l2.size // granule
        self.writer = np.zeros(granules, np.int64)
        self.written = np.zeros(granules, np.int64)
        """When, by the writer's clock; 0 for never."""
        self.size = np.zeros(granules, np.int8)
        """Of the last store there; negative for a weak one."""
        self.reader = np.zeros(granules, np.int64)
        self.read = np.zeros(granules, np.int64)
        """Of the last weak load."""
        self.views = [View(self.l2.size, granules) for _ in range(programs)]
        self.free_running = False
        """Whether polls of what nobody has changed go on and on."""
        self.version = 0
        self.changed = np.zeros(self.l2.size // SECTOR, np.int64)
        """The version of the last store that became visible there."""

    def finish(self) -> None:
        for number in range(len(self.views)):
            self.land_all(number)
        for base, (_, data) in zip(self.bases, self.tensors, strict=True):
            data[:] = self.l2[base : base + data.size]

    def locate(self, addresses: Ints, size: int) -> Ints:
        """Places in the arena of accesses of so many bytes."""
        tensor = np.searchsorted(self.starts, addresses, "right") - 1
        outside = np.full(len(addresses), not self.tensors)
        if self.tensors:
            outside = (tensor < 0) | (addresses + size > self.ends[tensor])
        if outside.any():
            raise OutOfBoundsError(
                f"{outside.sum()} threads touch memory outside every tensor of the launch, "
                f"{hex(addresses[outside][0])} and so on"
            )
        if (addresses & (size - 1)).any():
            raise MisalignedError(f"an access of {size} bytes at {hex(addresses[addresses % size != 0][0])}")
        return addresses + self.shift[tensor]

    def load(self, program: int, warps: Ints, offsets: Ints, size: int, strong: bool) -> Any:
        """What lies at the offsets, for threads of these warps."""
        view, granules = self.views[program], self._granules(offsets, size)
        if view.stores and view.pending[granules].any():
            self._land_where(program, granules)
        self._check_load(warps, granules, size, strong)
        places = offsets // size
        if strong:
            return self.l2.view(BITS[size])[places]
        sectors = offsets // SECTOR
        fetch = sectors if self.random.random() < 0.25 else sectors[~view.valid[sectors]]
        if fetch.size:
            view.l1.reshape(-1, SECTOR)[fetch] = self.l2.reshape(-1, SECTOR)[fetch]
            view.valid[fetch] = True
        return view.l1.view(BITS[size])[places]

    def store(self, program: int, warps: Ints, offsets: Ints, values: Any, strong: bool, lands: bool = False) -> None:
        """values: unsigned integers of the width of each access. lands: visible to everybody at once."""
        size = values.itemsize
        view, granules, places = self.views[program], self._granules(offsets, size), offsets // size
        newest = self.newest.view(BITS[size])
        self._check_store(warps, granules, size, strong, newest[places] != values)
        newest[places] = values
        if (newest[places] != values).any() and self.report_races:
            raise RaceError("threads store different values to the same address at once")
        if view.stores and view.pending[granules].any():
            self._land_where(program, granules)
        self.writer[granules], self.written[granules] = warps[:, None], self.clocks.seen[warps, warps][:, None]
        self.size[granules] = size if strong else -size
        stores = Pending(offsets, values, warps, self.clocks.seen[warps, warps])
        if lands:
            self._land(view, stores, stores.left)
            return
        view.l1.view(BITS[size])[places] = values
        view.pending[granules] = True
        view.stores.append(stores)

    def acquire(self, program: int) -> None:
        self.views[program].valid[:] = False

    def release(self, warp: int) -> None:
        """What happened before becomes visible."""
        seen = self.clocks.seen[warp]
        for view in self.views:
            for stores in view.stores:
                self._land(view, stores, seen[stores.warps] >= stores.clocks)
            self._forget_empty(view)

    def land_some(self) -> None:
        """Some stores become visible now, in random order."""
        for view in self.views:
            if view.stores and self.random.random() < 0.5:
                stores = self.random.choice(view.stores)
                bits = np.frombuffer(self.random.randbytes(-(-stores.offsets.size // 8)), np.uint8)
                self._land(view, stores, np.unpackbits(bits, count=stores.offsets.size).view(bool))
                self._forget_empty(view)

    def land_all(self, program: int) -> None:
        view = self.views[program]
        for stores in view.stores:
            self._land(view, stores, stores.left)
        view.stores.clear()

    def any_pending(self) -> bool:
        return any(view.stores for view in self.views)

    def _granules(self, offsets: Ints, size: int) -> Ints:
        """[accesses, granules of each]"""
        first = (offsets // self.granule)[:, None]
        return first if size == self.granule else first + np.arange(size // self.granule)

    def _check_load(self, warps: Ints, granules: Ints, size: int, strong: bool) -> None:
        seen, writers = self.clocks.seen, self.writer[granules]
        unordered = seen[warps[:, None], writers] < self.written[granules]
        if unordered.any() and self.report_races:
            self._report("load", size, strong, self.size[granules][unordered], writers[unordered])
        if not strong:
            self.reader[granules], self.read[granules] = warps[:, None], seen[warps, warps][:, None]

    def _check_store(
        self, warps: Ints, granules: Ints, size: int, strong: bool, differs: npt.NDArray[np.bool_]
    ) -> None:
        seen, writers = self.clocks.seen, self.writer[granules]
        # Several programs may store the same, such as the word that says that they gave up.
        unordered = (seen[warps[:, None], writers] < self.written[granules]) & differs[:, None]
        if unordered.any() and self.report_races:
            self._report("store", size, strong, self.size[granules][unordered], writers[unordered])
        unordered = seen[warps[:, None], self.reader[granules]] < self.read[granules]
        if unordered.any() and self.report_races:
            reader = self.reader[granules][unordered][0]
            raise RaceError(f"a store over what warp {reader} of the grid loads, weakly, and nothing orders the two")

    def _report(self, what: str, size: int, strong: bool, stored: npt.NDArray[Any], writers: Ints) -> None:
        """Of accesses that meet a store and nothing orders the two."""
        races = stored != size if strong else np.ones_like(stored, bool)
        if races.any():
            other, writer = int(stored[races][0]), int(writers[races][0])
            before = f"{'strong' if other > 0 else 'weak'} store of {abs(other)} bytes by warp {writer} of the grid"
            word = "strong" if strong else "weak"
            raise RaceError(f"a {word} {what} of {size} bytes meets a {before}, and nothing orders the two")

    def _land_where(self, program: int, granules: Ints) -> None:
        """The program's stores to these places become visible."""
        view = self.views[program]
        wanted = np.zeros_like(view.pending)
        wanted[granules] = True
        for stores in view.stores:
            self._land(view, stores, np.any(wanted[self._granules(stores.offsets, stores.values.itemsize)], axis=1))
        self._forget_empty(view)

    def _land(self, view: View, stores: Pending, mask: npt.NDArray[np.bool_]) -> None:
        """Those of the mask that have not before."""
        taken = stores.take(mask)
        if not taken.size:
            return
        offsets, values = stores.offsets[taken], stores.values[taken]
        size = values.itemsize
        self.l2.view(BITS[size])[offsets // size] = values
        view.l1.view(BITS[size])[offsets // size] = values
        view.pending[self._granules(offsets, size)] = False
        self.version += 1
        self.changed[offsets // SECTOR] = self.version

    def _forget_empty(self, view: View) -> None:
        view.stores = [stores for stores in view.stores if stores.count]
