"""Every order in which the programs of a launch can run, walked: does a wait never end?

A program is a list of actions; memory follows from how far each program has come, so that is a state. Programs start in
the grid's order as there is room for `resident` of them, which a GPU's scheduler does not promise to change before one
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .protocols import SENTINEL, bit_of


@dataclass(frozen=True)
class Publish:
    """Write `number` to a place that no other program writes."""

    place: str
    number: int = 1


@dataclass(frozen=True)
class Wait:
    """Go on once `ready` holds of memory, a dict of what was published. `right`: what must hold of it then."""

    ready: Callable[[dict[str, int]], bool]
    right: Callable[[dict[str, int]], bool] = lambda memory: True


Action = Publish | Wait
State = tuple[int, ...]


class Walk:
    """All states that can be reached. `stuck`: those in which nobody can go on and somebody has not ended; `wrong`:
    those after a wait that ended and should not have."""

    def __init__(self, programs: Sequence[Sequence[Action]], resident: int | None = None) -> None:
        self._programs = programs
        self._resident = len(programs) if resident is None else resident
        self.stuck: list[State] = []
        self.wrong: list[State] = []
        start = (0,) * len(programs)
        seen, pending = {start}, [start]
        while pending:
            state = pending.pop()
            following = list(self._steps(state))
            if not following and not self._ended(state):
                self.stuck.append(state)
            for after in following:
                if after not in seen:
                    seen.add(after)
                    pending.append(after)
        self.states = len(seen)

    def _ended(self, state: State) -> bool:
        return all(at == len(program) for at, program in zip(state, self._programs, strict=True))

    def _memory(self, state: State) -> dict[str, int]:
        """What lies at each place; and under the place's name and "#" how often it was written."""
        memory: dict[str, int] = {}
        for at, program in zip(state, self._programs, strict=True):
            for done in program[:at]:
                if isinstance(done, Publish):
                    memory[done.place] = done.number
                    memory[done.place + "#"] = memory.get(done.place + "#", 0) + 1
        return memory

    def _steps(self, state: State) -> Iterator[State]:
        memory = self._memory(state)
        running = [n for n, at in enumerate(state) if at < len(self._programs[n])][: self._resident]
        for number in running:
            action = self._programs[number][state[number]]
            if isinstance(action, Wait):
                if not action.ready(memory):
                    continue
                if not action.right(memory):
                    self.wrong.append(state)
            yield (*state[:number], state[number] + 1, *state[number + 1 :])


def dataflow(members: int, steps: int, products: int = 1, team: str = "") -> list[list[Action]]:
    """Each step of each product: wait until all members' words of the one before are there, publish."""

    def all_of(turn: int) -> Wait:
        return Wait(lambda memory: all(f"{team}{m}.{turn}" in memory for m in range(members)))

    turns = steps * products
    return [
        [act for turn in range(turns) for act in ([all_of(turn - 1)] if turn else []) + [Publish(f"{team}{me}.{turn}")]]
        for me in range(members)
    ]


def barrier(members: int, steps: int, tiles: int = 1, expected: Callable[[int], int] | None = None):
    """A counter that only goes up, over batch tiles too; the first step of a tile waits for nobody."""
    expected = expected or (lambda turn: members * turn)

    def arrived(turn: int) -> Wait:
        def count(memory: dict[str, int]) -> int:
            return sum(memory.get(f"{m}#", 0) for m in range(members))

        return Wait(
            lambda memory: count(memory) >= expected(turn),
            right=lambda memory: all(memory.get(f"{m}#", 0) >= turn for m in range(members)),
        )

    return [
        [
            act
            for turn in range(steps * tiles)
            for act in ([arrived(turn)] if turn % steps else []) + [Publish(str(me), turn)]
        ]
        for me in range(members)
    ]


def split_k(parts: int, rounds: int, slots: int = 2) -> list[list[Action]]:
    """Programs that share a sum: publish a part, wait for all parts of the round by their bit.

    Nothing else between two rounds: a program's operand may be made of its own units alone.
    """

    def parts_there(turn: int) -> Wait:
        def numbers(memory: dict[str, int]) -> list[int]:
            return [memory.get(f"{p}/{turn % slots}", SENTINEL) for p in range(parts)]

        return Wait(
            lambda memory: all(number % 2 == bit_of(turn, slots) for number in numbers(memory)),
            right=lambda memory: all(number // 2 == turn for number in numbers(memory)),
        )

    return [
        [
            act
            for turn in range(rounds)
            for act in (Publish(f"{me}/{turn % slots}", 2 * turn + bit_of(turn, slots)), parts_there(turn))
        ]
        for me in range(parts)
    ]
