"""Who has the next turn in the concurrent interpreter: small objects with one idea each.

Each is made for one launch with a generator of its own, so that a name and a seed are the schedule:

    interpret(seed=17, scheduler="starve_one")
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .schedule import Program  # needs greenlet, which a machine with a GPU may lack


class Scheduler(Protocol):
    def __init__(self, generator: random.Random) -> None: ...

    def choose(self, awake: Sequence[Program]) -> Program:
        """One of these, in the order of their numbers."""
        ...


class AtRandom:
    """Anybody, at every access to memory."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator

    def choose(self, awake: Sequence[Program]) -> Program:
        return self.random.choice(awake)


class RoundRobin:
    """One access each, in the order of their numbers, from a random one on."""

    def __init__(self, generator: random.Random) -> None:
        self.last = generator.randrange(-1, 64)

    def choose(self, awake: Sequence[Program]) -> Program:
        program = next((p for p in awake if p.index > self.last), awake[0])
        self.last = program.index
        return program


class Preempt:
    """Never the same program twice, as long as there is another: an interruption at every access to memory."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.last = -1

    def choose(self, awake: Sequence[Program]) -> Program:
        program = self.random.choice([p for p in awake if p.index != self.last] or awake)
        self.last = program.index
        return program


class StarveOne:
    """One program gets a turn only where nobody else can use it."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.victim: int | None = None

    def choose(self, awake: Sequence[Program]) -> Program:
        if self.victim is None:
            self.victim = self.random.choice(awake).index
        return self.random.choice([p for p in awake if p.index != self.victim] or awake)


class FarAhead:
    """One program goes on as long as it can, and the others only while it waits for them."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.first: int | None = None

    def choose(self, awake: Sequence[Program]) -> Program:
        if self.first is None:
            self.first = self.random.choice(awake).index
        return next((p for p in awake if p.index == self.first), None) or self.random.choice(awake)


class Priorities:
    """The awake program of the highest random priority; a few times somebody falls behind all others.

    Probabilistic concurrency testing (Burckhardt et al. 2010): finds a bug that needs d turns in one order with a
    probability of at least 1 / (programs * turns^(d - 1)).
    """

    CHANGES, TURNS = 3, 200

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.of: dict[int, float] = {}
        self.changes = {generator.randrange(self.TURNS) for _ in range(self.CHANGES)}
        self.turn = 0

    def choose(self, awake: Sequence[Program]) -> Program:
        for program in awake:
            self.of.setdefault(program.index, self.random.random())
        program = max(awake, key=lambda p: self.of[p.index])
        if self.turn in self.changes:
            self.of[program.index] = -float(self.turn)
            program = max(awake, key=lambda p: self.of[p.index])
        self.turn += 1
        return program


SCHEDULERS: dict[str, type[Scheduler]] = {
    "random": AtRandom,
    "round_robin": RoundRobin,
    "preempt": Preempt,
    "starve_one": StarveOne,
    "far_ahead": FarAhead,
    "priorities": Priorities,
}
