"""The memory consistency model of PTX in z3: the executions that it allows of a `Program`.

Source: NVIDIA, Parallel Thread Execution ISA, chapter "Memory Consistency Model" (sections: morally strong operations,
release and acquire patterns, ordering of memory operations, axioms, reductions do not form acquire patterns). Where its
prose leaves a choice the formal model of its authors decides (Lustig, Sahasrabuddhe and Giroux, ASPLOS 2019); where
that is stricter than the prose, the prose: what is proved here holds of more executions.

All accesses of a word are of one size (a mixed-size race has no meaning in the model; `kernels/ptx` reports those) and
go through the generic proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import z3

from .program import Operation, Program

_INCLUDES = {"cta": lambda a, b: a == b, "gpu": lambda a, b: True, "sys": lambda a, b: True}


class Executions:
    """The allowed executions of a program; `solver` holds the axioms."""

    def __init__(self, program: Program) -> None:
        self.solver = z3.Solver()
        self._initial = {
            where: Operation(f"initial {where}", writes=True, location=where) for where in program.locations
        }
        self._cta: dict[Operation, int] = {}
        self._order: dict[Operation, tuple[int, int]] = {}
        for number, thread in enumerate(program.threads):
            for index, op in enumerate(thread.operations):
                self._cta[op] = thread.cta
                self._order[op] = (number, index)
        self.operations = [*self._initial.values(), *self._order]
        self._reads = [op for op in self.operations if op.reads]
        self._writes = [op for op in self.operations if op.writes]
        self._by_name = {op.name: op for op in self.operations}
        assert len(self._by_name) == len(self.operations), "two operations of one name"

        self._communicate(program)
        self._base = self._base_causality()
        self._cause = {
            (x, y): z3.Or(
                self._base[x, y],
                *(z3.And(self._observed[x, z], self._base[z, y]) for z in self._reads if x.writes and z is not y),
            )
            for x, y in product(self.operations, repeat=2)
        }
        self._axioms()

    @property
    def values(self) -> Mapping[str, z3.ArithRef]:
        """What every read returns, by name."""
        return self._values

    def last(self, location: str, value: int) -> z3.BoolRef:
        """That no write of the location comes, in coherence order, after one of this value."""
        there = [w for w in self._writes if w.location == location]
        return z3.Or(
            *(
                z3.And(
                    self._written[w] == value, *(z3.Not(self._before(w, other)) for other in there if other is not w)
                )
                for w in there
            )
        )

    def allow(self, *outcome: z3.BoolRef) -> bool:
        """Whether an execution with this outcome exists."""
        self.solver.push()
        self.solver.add(*outcome)
        found = self.solver.check()
        self.solver.pop()
        assert found != z3.unknown
        return found == z3.sat

    # Relations known before the program runs.

    def _program_order(self, x: Operation, y: Operation) -> bool:
        if x in self._initial.values():
            # The kernel's start synchronizes with all its threads.
            return y not in self._initial.values()
        if y in self._initial.values():
            return False
        return self._order[x][0] == self._order[y][0] and self._order[x][1] < self._order[y][1]

    def _same_location(self, x: Operation, y: Operation) -> bool:
        return x.location is not None and x.location == y.location

    def _morally_strong(self, x: Operation, y: Operation) -> bool:
        if x.location is not None and y.location is not None and x.location != y.location:
            return False
        if self._program_order(x, y) or self._program_order(y, x):
            return True
        if not (x.strong and y.strong):
            return False
        ctas = self._cta[x], self._cta[y]
        return _INCLUDES[x.scope](*ctas) and _INCLUDES[y.scope](*ctas)

    def _release_patterns(self) -> Iterable[tuple[Operation, Operation]]:
        """(first operation, the write that others see)."""
        for first in self.operations:
            if first.releases and first.writes:
                yield first, first
            for write in self._writes:
                strong_after = first.releases and write.strong and self._program_order(first, write)
                if strong_after and (first.fence or self._same_location(first, write)):
                    yield first, write

    def _acquire_patterns(self) -> Iterable[tuple[Operation, Operation]]:
        """(the read that sees, last operation)."""
        for last in self.operations:
            if last.acquires and last.reads and not last.reduction:
                yield last, last
            for read in self._reads:
                strong_before = last.acquires and read.strong and self._program_order(read, last)
                if strong_before and not read.reduction and (last.fence or self._same_location(read, last)):
                    yield read, last

    # Relations of an execution.

    def _communicate(self, program: Program) -> None:
        """Who reads from whom, the values, coherence, observation and Fence-SC order."""
        self._source = {read: z3.Int(f"source of {read.name}") for read in self._reads}
        index = {write: number for number, write in enumerate(self._writes)}
        self._values = {read.name: z3.Int(f"value of {read.name}") for read in self._reads}
        asked: dict[Operation, set[str]] = {}
        self._written: dict[Operation, Any] = {}
        for write in self._writes:
            if write in self._initial.values():
                self._written[write] = program.initial.get(write.location or "", 0)
            elif callable(write.value):
                read = _Asked(self._values)
                self._written[write] = write.value(read)
                asked[write] = read.names
            else:
                self._written[write] = write.value

        def reads_from(read: Operation, write: Operation) -> z3.BoolRef:
            return self._source[read] == index[write]

        self._reads_from: Callable[[Operation, Operation], z3.BoolRef] = reads_from
        for read in self._reads:
            there = [w for w in self._writes if w.location == read.location and w is not read]
            self.solver.add(z3.Or(*(reads_from(read, w) for w in there)))
            for write in there:
                self.solver.add(z3.Implies(reads_from(read, write), self._values[read.name] == self._written[write]))

        self._coherence = {
            (a, b): z3.Bool(f"{a.name} before {b.name}")
            for a, b in product(self._writes, repeat=2)
            if a is not b and self._same_location(a, b)
        }
        for (a, b), before in self._coherence.items():
            self.solver.add(z3.Not(z3.And(before, self._coherence[b, a])))
            for c in self._writes:
                if (b, c) in self._coherence and c is not a:
                    self.solver.add(z3.Implies(z3.And(before, self._coherence[b, c]), self._coherence[a, c]))

        # W to R directly, or through atomics each of which has read from the one before.
        observed = {
            (w, r): reads_from(r, w)
            if w is not r and self._same_location(w, r) and self._morally_strong(w, r)
            else False
            for w, r in product(self._writes, self._reads)
        }
        for z in [op for op in self.operations if op.reads and op.writes]:
            observed = {(w, r): _or(seen, _and(observed[w, z], observed[z, r])) for (w, r), seen in observed.items()}
        self._observed = {
            (x, y): observed.get((x, y), z3.BoolVal(False)) for x, y in product(self.operations, repeat=2)
        }

        # Nothing out of thin air: what an operation depends on has its value before it.
        birth = {op: z3.Int(f"birth of {op.name}") for op in self.operations}
        for read, write in product(self._reads, self._writes):
            if read is not write and self._same_location(read, write):
                self.solver.add(z3.Implies(reads_from(read, write), birth[write] < birth[read]))
        for op in self._order:
            for name in asked.get(op, set()) | set(op.after):
                if name != op.name:
                    assert self._program_order(self._by_name[name], op), f"{op.name} depends on {name}, which is later"
                    self.solver.add(birth[self._by_name[name]] < birth[op])

    def _before(self, a: Operation, b: Operation) -> z3.BoolRef:
        return self._coherence[a, b]

    def _from_read(self, read: Operation, write: Operation) -> z3.BoolRef:
        """That `read` has read what comes before `write`."""
        earlier = [w for w in self._writes if w is not write and w is not read and self._same_location(w, write)]
        return z3.Or(*(z3.And(self._reads_from(read, w), self._before(w, write)) for w in earlier))

    def _base_causality(self) -> dict[tuple[Operation, Operation], Any]:
        fences = [op for op in self.operations if op.fence and op.strength == "sc"]
        self._fence_order = {op: z3.Int(f"order of {op.name}") for op in fences}
        if len(fences) > 1:
            self.solver.add(z3.Distinct(*self._fence_order.values()))
        related: dict[tuple[Operation, Operation], Any] = {
            (x, y): self._program_order(x, y) for x, y in product(self.operations, repeat=2)
        }
        for a, b in product(fences, repeat=2):
            if a is not b and self._morally_strong(a, b):
                related[a, b] = _or(related[a, b], self._fence_order[a] < self._fence_order[b])
        for x, y in product(self._order, repeat=2):
            if x.barrier and y.barrier and self._cta[x] == self._cta[y]:
                (name, kind, phase), (other, of, at) = x.barrier, y.barrier
                if (name, phase) == (other, at) and (kind, of) == ("arrive", "wait"):
                    related[x, y] = True
        for (first, write), (read, last) in product(self._release_patterns(), self._acquire_patterns()):
            if write is not read and first is not last and self._morally_strong(first, last):
                related[first, last] = _or(related[first, last], self._observed[write, read])
        for z in self.operations:  # Warshall
            related = {(x, y): _or(now, _and(related[x, z], related[z, y])) for (x, y), now in related.items()}
        return {pair: z3.BoolVal(value) if isinstance(value, bool) else value for pair, value in related.items()}

    def _axioms(self) -> None:
        add = self.solver.add
        for op in self.operations:
            add(z3.Not(self._base[op, op]))
        # Coherence; and related where morally strong or one after the other.
        for a, b in self._coherence:
            add(z3.Implies(self._cause[a, b], self._before(a, b)))
            if self._morally_strong(a, b):
                add(z3.Or(self._before(a, b), self._before(b, a)))
        # Fence-SC.
        for a, b in product(self._fence_order, repeat=2):
            if a is not b and self._morally_strong(a, b):
                add(z3.Implies(self._base[a, b], self._fence_order[a] < self._fence_order[b]))
        # Atomicity.
        for atomic, write in product([op for op in self._reads if op.writes], self._writes):
            if write is not atomic and self._same_location(atomic, write) and self._morally_strong(atomic, write):
                add(z3.Not(z3.And(self._from_read(atomic, write), self._before(write, atomic))))
        # SC per location, as an order in which both relations go up.
        place = {op: z3.Int(f"place of {op.name}") for op in self.operations}
        memory = [op for op in self.operations if op.location is not None]
        for x, y in product(memory, repeat=2):
            if x is y or not self._same_location(x, y):
                continue
            if self._program_order(x, y):
                add(place[x] < place[y])
            if not self._morally_strong(x, y):
                continue
            for seen in self._communications(x, y):
                add(z3.Implies(seen, place[x] < place[y]))
        # Causality.
        for read, write in product(self._reads, self._writes):
            if read is write or not self._same_location(read, write):
                continue
            add(z3.Implies(self._cause[read, write], z3.Not(self._reads_from(read, write))))
            add(z3.Implies(self._cause[write, read], z3.Not(self._from_read(read, write))))

    def _communications(self, x: Operation, y: Operation) -> Iterable[z3.BoolRef]:
        if x.writes and y.reads:
            yield self._reads_from(y, x)
        if x.writes and y.writes:
            yield self._before(x, y)
        if x.reads and y.writes:
            yield self._from_read(x, y)


class _Asked:
    """Values by name, and which were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return self._values[name]


def _or(a: Any, b: Any) -> Any:
    if a is True or b is True:
        return True
    if a is False:
        return b
    return a if b is False else z3.Or(a, b)


def _and(a: Any, b: Any) -> Any:
    if a is False or b is False:
        return False
    if a is True:
        return b
    return a if b is True else z3.And(a, b)
