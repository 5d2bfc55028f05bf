"""The memory of interpreted programs: what each of them may read of what the others have stored.

An operational form of PTX's memory consistency model for what the kernels use of it (views over a history of stores, as
in Kang et al. 2017, "A promising semantics for relaxed-memory concurrency", without its promises). Every store of an
element is kept with the value it replaced. A program knows its own stores, those whose value a strong load of its own
has returned, and those that an acquire took over from a release. It never reads what is older than a store that it
knows. Of the others' it gets the new value or an older one, drawn anew at every load: so stores become visible late,
out of order, and to one program before the other, until a release and an acquire order them.

A load that is not volatile may find its line in the program's own L1: it learns nothing, may go back in time, and in
half of all launches never sees what it has no order with. `raise_on_race` makes that an error.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch

_MAP_NORESERVE = 0x4000  # Linux's; Python names it from 3.13 on

NOBODY, OUTSIDE = 0, 1
"""In place of a store: nobody has stored here in this launch; this belongs to no tensor of the launch."""

STALENESS = (0.0, 0.3, 0.6)
"""How likely a load misses a store that it may miss; each launch draws one."""

PIECES = 2
"""Parts of one store that become visible independently of each other."""


class RaceError(RuntimeError):
    """Two programs touch the same memory in a way that a GPU gives no order to."""


class OutOfBoundsError(IndexError):
    """A program touches memory that belongs to none of its launch's tensors."""


class Memory:
    """The memory of one launch.

    tensors:        all that the programs may touch, element by element: what lies between a view's rows is not theirs.
    programs:       of the grid.
    unchecked:      a tensor that programs may store different values to; the last one stays.
    pieces:         parts of a store that become visible on their own; 0: every element.
    raise_on_race:  raise RaceError; False lets races have their effect.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        programs: int,
        seed: int,
        *,
        unchecked: torch.Tensor | None = None,
        pieces: int = PIECES,
        raise_on_race: bool = True,
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.staleness = float(self.random.choice(STALENESS))
        self.cached = bool(self.random.random() < 0.5)
        self.pieces = pieces
        self.raise_on_race = raise_on_race
        self.unchecked = None if unchecked is None else unchecked.data_ptr()
        self._place(tensors)
        self.known = np.zeros((programs, 1024), bool)
        self.known[:, : OUTSIDE + 1] = True
        self.old = np.zeros(1024, np.uint64)
        self.previous = np.zeros(1024, np.int32)
        self.writer = np.zeros(1024, np.int32)
        self.piece = np.zeros(1024, np.int64)
        self.stores, self.num_pieces = OUTSIDE + 1, 0
        self.released: dict[int, np.ndarray] = {}
        self.unfenced: list[list[np.ndarray]] = [[] for _ in range(programs)]

    def _place(self, tensors: Sequence[torch.Tensor]) -> None:
        """A cell for each of the smallest elements of every storage, in one array: which store it holds."""
        found: dict[int, tuple[int, int]] = {}
        for tensor in tensors:
            memory = tensor.untyped_storage()
            _, size = found.get(memory.data_ptr(), (0, 8))
            found[memory.data_ptr()] = memory.nbytes(), min(size, tensor.element_size())
        starts = sorted(start for start, (length, _) in found.items() if length)
        counts = [found[start][0] // found[start][1] for start in starts]
        self.first_byte = np.array(starts, np.uint64)
        self.lengths = np.array([found[start][0] for start in starts], np.uint64)
        self.sizes = np.array([found[start][1] for start in starts], np.uint64)
        self.first_cell = np.cumsum([0, *counts])
        self.latest = _zeros(int(self.first_cell[-1]))
        for number, (start, count) in enumerate(zip(starts, counts, strict=True)):
            of_it = [t for t in tensors if t.untyped_storage().data_ptr() == start and t.numel()]
            if not any(t.is_contiguous() and t.nbytes == found[start][0] for t in of_it):
                first = int(self.first_cell[number])
                self.latest[first : first + count] = OUTSIDE
                for tensor in of_it:
                    self._cells_of(tensor, number)[...] = NOBODY

    def _cells_of(self, tensor: torch.Tensor, storage: int) -> np.ndarray:
        """The cells of the tensor's elements, [*shape, cells of an element]."""
        each = tensor.element_size() // int(self.sizes[storage])
        cells = self.latest[int(self.first_cell[storage]) + tensor.storage_offset() * each :]
        width = cells.itemsize
        strides = [stride * each * width for stride in tensor.stride()]
        return np.lib.stride_tricks.as_strided(cells, (*tensor.shape, each), (*strides, width))

    def cells(self, program: int, addresses: np.ndarray, itemsize: int) -> np.ndarray:
        """The cells of these elements, [elements, cells of one]. Raises OutOfBoundsError."""
        storage = np.searchsorted(self.first_byte, addresses, side="right").astype(np.int64) - 1
        inside = storage >= 0
        storage = np.maximum(storage, 0)
        if len(self.first_byte):
            offset = addresses - self.first_byte[storage]
            inside &= addresses >= self.first_byte[storage]
            inside &= offset + np.uint64(itemsize) <= self.lengths[storage]
        if inside.all():
            size = self.sizes[storage]
            first = self.first_cell[storage] + (offset // size).astype(np.int64)
            per_element = max(1, itemsize // int(size.min()))
            cells = first[:, None] + np.arange(per_element)
            outside = (self.latest[cells] == OUTSIDE).any(axis=1)
            if not outside.any():
                return cells
        else:
            outside = ~inside
        raise OutOfBoundsError(
            f"program {program} touches {int(outside.sum())} elements outside every tensor of its launch"
        )

    def load(self, program: int, cells: np.ndarray, newest: np.ndarray, *, strong: bool) -> tuple[np.ndarray, bool]:
        """What a load of these cells returns where memory holds `newest` [elements]; and whether a poll that repeats it
        may learn more: something was missed, or something new was learnt."""
        at = self.latest[cells]
        known = self.known[program]
        unknown = ~known[at]
        if not unknown.any():
            return newest, False
        if not strong and self.raise_on_race:
            other = int(self.writer[at[unknown][0]])
            raise RaceError(
                f"program {program} loads, not volatile and after no acquire, what program {other} stores in the "
                "same launch"
            )
        bits, missed = _bits(newest, cells), False
        while unknown.any():
            older = unknown.copy()
            older[unknown] = self._misses(at[unknown], strong)
            if not older.any():
                break
            bits[older] = self.old[at[older]]
            at[older] = self.previous[at[older]]
            unknown = older & ~known[at]
            missed = True
        found = bits.astype(f"u{newest.itemsize // cells.shape[1]}").view(newest.dtype)[:, 0] if missed else newest
        if not strong:
            return found, False
        is_new = not known[at].all()
        known[at] = True
        return found, missed or is_new

    def _misses(self, stores: np.ndarray, strong: bool) -> np.ndarray:
        """Which of these stores a load does not see."""
        if not strong and self.cached:
            return np.ones(len(stores), bool)
        pieces, which = np.unique(self.piece[stores], return_inverse=True)
        return (self.random.random(len(pieces)) < self.staleness)[which]

    def store(self, program: int, cells: np.ndarray, addresses: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        """Note that `program` replaces the elements `old` by `new`."""
        at = self.latest[cells]
        old, new = _bits(old, cells), _bits(new, cells)
        if self.raise_on_race:
            foreign = ~self.known[program][at] & (old != new)
            if self.unchecked is not None:
                foreign &= (addresses != self.unchecked)[:, None]
            if foreign.any():
                other = int(self.writer[at[foreign][0]])
                raise RaceError(f"programs {other} and {program} store different values to the same address")
        elements, each = cells.shape
        ids = self._more(elements * each)
        self.old[ids] = old.ravel()
        self.previous[ids] = at.ravel()
        self.writer[ids] = program
        parts = self.pieces or elements
        of_element = np.arange(elements) if self.pieces == 0 else self.random.integers(0, parts, elements)
        self.piece[ids] = np.repeat(self.num_pieces + of_element, each)
        self.num_pieces += parts
        self.known[program, ids] = True
        self.latest[cells] = ids.reshape(cells.shape)
        self.unfenced[program].append(ids)

    def _more(self, count: int) -> np.ndarray:
        """Numbers of so many more stores."""
        first, self.stores = self.stores, self.stores + count
        while self.stores > len(self.old):
            self.known = np.concatenate([self.known, np.zeros_like(self.known)], axis=1)
            for name in ("old", "previous", "writer", "piece"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros_like(array)]))
        return np.arange(first, self.stores)

    def barrier(self, program: int) -> None:
        """All threads of a program have stored what they stored before."""
        self.unfenced[program].clear()

    def release(self, program: int, address: int) -> None:
        """One thread's release: of what that thread has stored, and all others before their last barrier."""
        known = self.known[program].copy()
        for ids in self.unfenced[program]:
            known[ids] = False
        before = self.released.get(address)
        if before is not None:
            known[: len(before)] |= before
        self.released[address] = known

    def acquire(self, program: int, address: int) -> None:
        """Take over what was released through `address`."""
        released = self.released.get(address)
        if released is not None:
            self.known[program, : len(released)] |= released


def _bits(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Of elements, as their cells hold them: [elements, cells of one] uint64."""
    size = values.itemsize // cells.shape[1]
    return np.ascontiguousarray(values).view(f"u{size}").reshape(cells.shape).astype(np.uint64)


def _zeros(count: int) -> np.ndarray:
    """int32, memory that is taken when it is touched: a test's tensors may reserve more than the machine has."""
    pages = mmap.mmap(-1, max(4 * count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return np.frombuffer(pages, np.int32, count)
