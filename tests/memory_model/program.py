"""Programs of a dozen memory operations, as a memory model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Value = int | Callable[[Mapping[str, Any]], Any]
"""What is written: a number, or a function of what the operations before it have read, by name."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of one thread.

    name:      in the program; a read's value goes by it.
    reads, writes:  both for an atomic read-modify-write.
    location:  of a word that is always accessed whole; None of a fence or a barrier.
    strength:  "weak", "relaxed", "acquire", "release", "acq_rel", "sc" (fences alone).
    scope:     "cta", "gpu" or "sys"; "" of a weak one.
    value:     what is written.
    after:     names of reads that it depends on beyond those that `value` asks for: the branch that it lies behind.
    reduction: an atomic that returns nothing (`red`), which forms no acquire pattern.
    barrier:   name of the CTA's barrier and its phase, of "arrive" and "wait".
    """

    name: str
    reads: bool = False
    writes: bool = False
    location: str | None = None
    strength: str = "weak"
    scope: str = ""
    value: Value = 0
    after: tuple[str, ...] = ()
    reduction: bool = False
    barrier: tuple[str, str, int] | None = None

    @property
    def fence(self) -> bool:
        return self.location is None and self.barrier is None

    @property
    def strong(self) -> bool:
        return self.strength != "weak"

    @property
    def releases(self) -> bool:
        return self.strength in ("release", "acq_rel", "sc") and (self.writes or self.fence)

    @property
    def acquires(self) -> bool:
        return self.strength in ("acquire", "acq_rel", "sc") and (self.reads or self.fence)


def load(name: str, location: str, strength: str = "weak", scope: str = "", after: tuple[str, ...] = ()) -> Operation:
    return Operation(name, reads=True, location=location, strength=strength, scope=scope, after=after)


def store(
    name: str, location: str, value: Value, strength: str = "weak", scope: str = "", after: tuple[str, ...] = ()
) -> Operation:
    return Operation(name, writes=True, location=location, strength=strength, scope=scope, value=value, after=after)


def volatile(name: str, location: str, after: tuple[str, ...] = ()) -> Operation:
    """`ld.volatile`: to the model a relaxed load of system scope (PTX ISA, `ld`)."""
    return load(name, location, "relaxed", "sys", after)


def add(
    name: str, location: str, amount: int, strength: str = "relaxed", scope: str = "gpu", reduction: bool = False
) -> Operation:
    """`atom.add`, or with reduction `red.add`."""
    return Operation(
        name,
        reads=True,
        writes=True,
        location=location,
        strength=strength,
        scope=scope,
        value=lambda read: read[name] + amount,
        reduction=reduction,
    )


def fence(name: str, strength: str, scope: str) -> Operation:
    return Operation(name, strength=strength, scope=scope)


def barrier(name: str, phase: int = 0, of: str = "bar") -> tuple[Operation, Operation]:
    """`bar.sync`, the phase-th of its CTA: to arrive, then to wait."""
    return (
        Operation(f"{name}.arrive", barrier=(of, "arrive", phase)),
        Operation(f"{name}.wait", barrier=(of, "wait", phase)),
    )


@dataclass(frozen=True)
class Thread:
    """A thread's operations in program order; threads of one `cta` may use its barriers and the scope "cta"."""

    cta: int
    operations: Sequence[Operation]


@dataclass(frozen=True)
class Program:
    """Threads of one GPU, and what memory holds before (0 where nothing is said)."""

    threads: Sequence[Thread]
    initial: Mapping[str, int] = field(default_factory=dict)

    @property
    def locations(self) -> list[str]:
        named = {op.location for thread in self.threads for op in thread.operations if op.location is not None}
        return sorted(named)
