"""Programs of a grid as coroutines on one thread, and the seeded choice of who runs next.

A program gives up its turn at every access to memory. One that re-reads memory in which nothing has
changed is put to sleep until something does: a poll costs one turn for every change, and "all are
asleep" is a deadlock, found at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import greenlet

Range = tuple[int, int]
"""First and last byte address of an access."""


class DeadlockError(RuntimeError):
    """Every program that has not ended waits for memory that nobody will write."""


class Program:
    """One program of the grid: its coroutine, what it polls, and its stores that others cannot see yet."""

    def __init__(self, index: int, body: Callable[[], None]) -> None:
        self.index = index
        self.coroutine = greenlet.greenlet(body)
        self.polled: set[Range] = set()
        self.asleep = False
        self.changed = False
        self.store_buffer: list[Callable[[], Range | None]] = []


class Scheduler:
    """Runs programs to their end, one at a time, in an order drawn from `seed`."""

    def __init__(self, seed: int, *, raise_on_deadlock: bool = True) -> None:
        self.random = random.Random(seed)
        self.raise_on_deadlock = raise_on_deadlock
        self.programs: list[Program] = []
        self.current: Program | None = None
        self.trace: list[int] = []

    def run(self, bodies: Sequence[tuple[int, Callable[[], None]]]) -> None:
        """Run (index, body) pairs. Raises what a body raises, and DeadlockError."""
        main = greenlet.getcurrent()
        self.programs = [Program(index, body) for index, body in bodies]
        alive = list(self.programs)
        while alive:
            if self.random.random() < 0.25:
                self._drain_one()
            awake = [program for program in alive if not program.asleep]
            if not awake:
                if self._drain_one():
                    continue
                self._on_deadlock(alive)
                awake = alive
            program = self.random.choice(awake)
            self.current = program
            self.trace.append(program.index)
            program.coroutine.parent = main
            program.coroutine.switch()
            self.current = None
            if program.coroutine.dead:
                alive.remove(program)
        for program in self.programs:
            self.drain(program)

    def give_up_turn(self) -> None:
        greenlet.getcurrent().parent.switch()

    def before_poll(self, where: Range) -> None:
        """A volatile read of `where` is about to happen: sleep if it cannot tell anything new."""
        program = self.running()
        if where in program.polled:
            program.asleep = not program.changed
            self.give_up_turn()
            program.polled.clear()
            program.changed = False
        else:
            self.give_up_turn()
        program.polled.add(where)

    def after_own_store(self) -> None:
        """The running program goes on: what it has read so far, it may read again without waiting for it."""
        self.running().polled.clear()

    def after_write(self, where: Range) -> None:
        """Memory in `where` has changed: wake those who poll it."""
        for program in self.programs:
            if any(low <= where[1] and where[0] <= high for low, high in program.polled):
                program.changed = True
                program.asleep = False

    def drain(self, program: Program) -> None:
        """Make all buffered stores of a program visible, in random order."""
        while program.store_buffer:
            self._apply(program, self.random.randrange(len(program.store_buffer)))

    def running(self) -> Program:
        assert self.current is not None
        return self.current

    def _drain_one(self) -> bool:
        holders = [program for program in self.programs if program.store_buffer]
        if not holders:
            return False
        program = self.random.choice(holders)
        self._apply(program, self.random.randrange(len(program.store_buffer)))
        return True

    def _apply(self, program: Program, position: int) -> None:
        where = program.store_buffer.pop(position)()
        if where is not None:
            self.after_write(where)

    def _on_deadlock(self, alive: Sequence[Program]) -> None:
        if self.raise_on_deadlock:
            waiting = ", ".join(str(program.index) for program in alive)
            raise DeadlockError(f"programs {waiting} wait for memory that no program will write")
        for program in alive:
            program.asleep = False
