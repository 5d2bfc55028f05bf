"""Programs of a grid as coroutines on one thread.

A program gives up its turn at every access to memory; who has the next one is a scheduler's choice (`schedulers`). One
that polls memory in which nothing has changed is put to sleep until something does: a poll costs one turn for every
change, and "all are asleep" is a deadlock, found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import greenlet

from .executor import DeadlockError

if TYPE_CHECKING:
    from .schedulers import Scheduler

Range = tuple[int, int]
"""First and last byte address of an access."""


class Program:
    """One program of the grid: its coroutine, what it polls, how many turns it has had."""

    def __init__(self, index: int, body: Callable[[], None]) -> None:
        self.index = index
        self.coroutine = greenlet.greenlet(body)
        self.polled: set[Range] = set()
        self.asleep = False
        self.changed = False
        self.turns = 0


class Coroutines:
    """Runs programs to their end, one at a time."""

    def __init__(self, scheduler: Scheduler, *, raise_on_deadlock: bool = True, most_turns: int | None = None) -> None:
        self.scheduler = scheduler
        self.raise_on_deadlock = raise_on_deadlock
        self.most_turns = most_turns
        self.programs: list[Program] = []
        self.current: Program | None = None
        self.trace: list[int] = []

    def run(
        self,
        bodies: Sequence[tuple[int, Callable[[], None]]],
        turns: Mapping[int, int] | None = None,
        late: Collection[int] = (),
    ) -> None:
        """Run (index, body) pairs. Raises what a body raises, and DeadlockError.

        turns:  after how many a program has no more and is left where it is.
        late:   programs that begin when all others have ended.
        """
        self.programs = [Program(index, body) for index, body in bodies]
        self._run([program for program in self.programs if program.index not in late], turns or {})
        self._run([program for program in self.programs if program.index in late], turns or {})

    def _run(self, alive: list[Program], turns: Mapping[int, int]) -> None:
        main = greenlet.getcurrent()
        while alive := [p for p in alive if not p.coroutine.dead and p.turns < turns.get(p.index, p.turns + 1)]:
            awake = [program for program in alive if not program.asleep]
            if not awake:
                self._on_deadlock(alive)
                awake = alive
            program = self.scheduler.choose(awake)
            self.current = program
            if len(self.trace) == self.most_turns:
                raise DeadlockError(f"program {program.index} and others have not ended after {self.most_turns} turns")
            self.trace.append(program.index)
            program.turns += 1
            program.coroutine.parent = main
            program.coroutine.switch()
            self.current = None

    def give_up_turn(self) -> None:
        greenlet.getcurrent().parent.switch()

    def before_poll(self, where: Range) -> None:
        """A strong read of `where` is about to happen: sleep if it cannot tell anything new."""
        program = self.running()
        if where in program.polled:
            program.asleep = not program.changed
            self.give_up_turn()
            program.polled.clear()
            program.changed = False
        else:
            self.give_up_turn()
        program.polled.add(where)

    def may_learn_more(self) -> None:
        """What the running program has read so far, it may read again without waiting for a change."""
        self.running().polled.clear()

    def after_write(self, where: Range) -> None:
        """Memory in `where` has changed: wake those who poll it."""
        for program in self.programs:
            if any(low <= where[1] and where[0] <= high for low, high in program.polled):
                program.changed = True
                program.asleep = False

    def running(self) -> Program:
        assert self.current is not None
        return self.current

    def _on_deadlock(self, alive: Sequence[Program]) -> None:
        if self.raise_on_deadlock:
            waiting = ", ".join(str(program.index) for program in alive)
            raise DeadlockError(f"programs {waiting} wait for memory that no program will write")
        for program in alive:
            program.asleep = False
