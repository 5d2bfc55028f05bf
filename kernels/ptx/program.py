"""One program of the grid: its registers, and groups of its warps that run on together.

A register is an array [warps, 32] of all warps at once; an instruction works on all of it, and what the group's own
lanes have of the result is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .asynchronous import Asynchronous
from .errors import DivergenceError
from .memory import GlobalMemory, Ints
from .shared import SharedMemory

Lanes = npt.NDArray[np.bool_]


class Program:
    """parameters: the kernel's, as bytes. now: tells the time in nanoseconds."""

    def __init__(
        self,
        index: int,
        registers: list[Any],
        shared: SharedMemory,
        memory: GlobalMemory,
        parameters: npt.NDArray[np.uint8],
        now: Callable[[], int],
    ) -> None:
        self.index, self.registers, self.shared, self.memory = index, registers, shared, memory
        self.parameters, self.now = parameters, now
        self.warps = len(shared.seen)
        self.first_warp = index * self.warps
        """Its number in the grid."""
        self.asynchronous = Asynchronous(self.warps)
        self.waiting: dict[int, list[Group]] = {}
        """At each barrier, by its number."""

    def arrive(self, group: Group) -> list[Group]:
        """A group has come to its barrier: those that may go on, all in one group where no branch has split them."""
        assert group.barrier is not None
        number, threads = group.barrier
        waiting = self.waiting.setdefault(number, [])
        waiting.append(group)
        arrived = np.concatenate([one.warps for one in waiting])
        if len(arrived) < (threads // 32 or self.warps):
            return []
        self.waiting[number] = []
        self.memory.clocks.meet(arrived + self.first_warp)
        if any(one.meetings for one in waiting):
            return waiting
        return [Group(self, group.at, np.logical_or.reduce([one.lanes for one in waiting]))]


class Meeting:
    """Where lanes that took different ways wait for each other, and the ways not yet walked."""

    def __init__(self, at: int, lanes: Lanes) -> None:
        self.at, self.lanes = at, lanes
        self.ways: list[tuple[int, Lanes]] = []


class Group:
    """Lanes at one instruction. All their warps are whole where no branch has split them."""

    def __init__(self, program: Program, at: int, lanes: Lanes) -> None:
        self.program, self.registers = program, program.registers
        self.at = at
        self.meetings: list[Meeting] = []
        self.meets_at = -1
        self.barrier: tuple[int, int] | None = None
        """Number of the barrier that it waits at, and how many threads that takes; 0 for all."""
        self.polled: dict[int, tuple[Ints, int, int]] = {}
        """By instruction: the sectors of the last strong load, their version then, and `looked`."""
        self.looked = 0
        """How often a strong load has looked at something new."""
        self.take(lanes)

    def take(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.places = np.flatnonzero(lanes)
        self.full = self.places.size == lanes.size
        self.own_warps = self.places >> 5
        """Of each lane, within the program."""

    @property
    def warps(self) -> Ints:
        """Those that have a lane here, within the program."""
        return np.flatnonzero(self.lanes.any(1))

    @property
    def in_grid(self) -> Ints:
        return self.warps + self.program.first_warp

    def whole_warps(self, what: str) -> Ints:
        """The warps, all lanes of which must be here."""
        if not self.full and (self.lanes.any(1) != self.lanes.all(1)).any():
            raise DivergenceError(f"{what} by part of a warp")
        return self.warps

    def apart(self) -> list[Group]:
        """Each of its warps as a group of its own; only where no branch has split it."""
        return [
            Group(self.program, self.at, self.lanes & (np.arange(self.program.warps) == w)[:, None]) for w in self.warps
        ]

    def changed(self) -> bool:
        """Whether something has changed in the memory that it polls."""
        changed = self.program.memory.changed
        return any((changed[sectors] > version).any() for sectors, version, _ in self.polled.values())

    def keep(self, slot: int, value: Any) -> None:
        """Write a register in the group's lanes."""
        registers = self.registers
        registers[slot] = value if self.full else np.where(self.lanes, value, registers[slot])

    def branch(self, taken: Lanes, target: int, meets_at: int) -> None:
        count = np.count_nonzero(taken)
        if count == 0:
            return
        if count == self.places.size:
            self.at = target
            return
        if not self.meetings or self.meets_at != meets_at:
            self.meetings.append(Meeting(meets_at, self.lanes))
            self.meets_at = meets_at
        ways = [(at, lanes) for at, lanes in ((self.at, self.lanes & ~taken), (target, taken)) if at != meets_at]
        self.at, lanes = ways.pop()
        self.take(lanes)
        self.meetings[-1].ways += ways

    def meet(self) -> None:
        """At the meeting point: walk the next way, or go on together."""
        meeting = self.meetings[-1]
        if meeting.ways:
            self.at, lanes = meeting.ways.pop()
            self.take(lanes)
            return
        self.meetings.pop()
        self.meets_at = self.meetings[-1].at if self.meetings else -1
        self.take(meeting.lanes)

    def elsewhere(self) -> list[tuple[int, Lanes]]:
        """Where the lanes are that a branch has parted from those that run: at its other way, or where all meet."""
        found, named = [], self.lanes
        for meeting in reversed(self.meetings):
            for at, lanes in [*meeting.ways, (meeting.at, meeting.lanes)]:
                if (rest := lanes & ~named).any():
                    found.append((at, rest))
                    named = named | rest
        return found

    def end(self) -> bool:
        """The lanes here have ended; whether all of the group have."""
        for meeting in self.meetings:
            meeting.lanes = meeting.lanes & ~self.lanes
        while self.meetings:
            self.at = self.meetings[-1].at
            self.meet()
            if self.places.size:
                return False
        return True
