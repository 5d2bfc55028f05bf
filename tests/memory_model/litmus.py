"""Published litmus tests with their published verdicts: the encoding is held to these before it is believed.

PTX ISA, chapter "Memory Consistency Model": MP, SB, CoRR, LB+deps, atomicity, reductions. Lustig et al., ASPLOS 2019:
SB with weak accesses, scopes, IRIW and cumulativity (WRC, ISA2). Verdict: whether the outcome is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import z3

from .axioms import Executions
from .program import Operation, Program, Thread, add, barrier, fence, load, store


@dataclass(frozen=True)
class Litmus:
    program: Program
    outcome: Callable[[Executions], list[z3.BoolRef]]
    allowed: bool


def apart(*threads: list[Operation]) -> Program:
    """Every thread in a CTA of its own."""
    return Program([Thread(cta, ops) for cta, ops in enumerate(threads)])


def together(*threads: list[Operation]) -> Program:
    return Program([Thread(0, ops) for ops in threads])


def reads(**expected: int) -> Callable[[Executions], list[z3.BoolRef]]:
    return lambda found: [found.values[name] == value for name, value in expected.items()]


def _message(write: list[Operation], read: list[Operation], place: Callable[..., Program] = apart) -> Program:
    return place([store("data", "x", 1), *write], [*read, load("r1", "x")])


def _fenced(strength: str, scope: str, place: Callable[..., Program] = apart) -> Program:
    return _message(
        [fence("f1", strength, scope), store("flag", "y", 1, "relaxed", scope)],
        [load("r0", "y", "relaxed", scope), fence("f2", strength, scope)],
        place,
    )


def _buffering(strength: str, scope: str, place: Callable[..., Program] = apart) -> Program:
    return place(
        [store("w1", "x", 1), fence("f1", strength, scope), load("r0", "y")],
        [store("w2", "y", 1), fence("f2", strength, scope), load("r1", "x")],
    )


def _independent(write: str, read: str, scope: str, between: tuple[str, str] | None = None) -> Program:
    def reader(first: str, second: str, names: tuple[str, str]) -> list[Operation]:
        middle = [fence(f"f{names[0]}", *between)] if between else []
        return [load(names[0], first, read, scope), *middle, load(names[1], second, read, scope)]

    return apart(
        [store("wx", "x", 1, write, scope)],
        reader("x", "y", ("a", "b")),
        reader("y", "x", ("c", "d")),
        [store("wy", "y", 1, write, scope)],
    )


_STALE = reads(r0=1, r1=0)
_BOTH_OLD = reads(r0=0, r1=0)
_SPLIT = reads(a=1, b=0, c=1, d=0)
_THROUGH = reads(r0=1, r1=1, r2=0)


def _corr(strength: str, scope: str) -> Program:
    return apart(
        [store("w", "x", 1, strength, scope)],
        [load("r0", "x", strength, scope), load("r1", "x", strength, scope)],
    )


def _written_after_a_message(strength: str) -> Program:
    """CoWW of two threads: weak writes, one before a message and one after it."""
    return apart(
        [store("w1", "x", 1), store("f", "y", 1, "release", "gpu")],
        [load("r0", "y", strength, "gpu"), store("w2", "x", 2)],
    )


def _copies(strength: str, scope: str, copy: bool) -> Program:
    """Load buffering; with copy each thread writes what it has read."""
    return apart(
        [load("r0", "x", strength, scope), store("wy", "y", (lambda read: read["r0"]) if copy else 1, strength, scope)],
        [load("r1", "y", strength, scope), store("wx", "x", (lambda read: read["r1"]) if copy else 1, strength, scope)],
    )


def _released_then_read(release: str, acquire: str) -> Program:
    """LB where each thread's write releases and its read acquires."""
    return apart(
        [load("r0", "x", acquire, "gpu"), store("wy", "y", 1, release, "gpu")],
        [load("r1", "y", acquire, "gpu"), store("wx", "x", 1, release, "gpu")],
    )


def _chain(last_write: str, last_read: str) -> Program:
    """WRC: what T1 has seen, T2 sees after T1's release."""
    return apart(
        [store("w", "x", 1, "relaxed", "gpu")],
        [load("r0", "x", "relaxed", "gpu"), store("flag", "y", 1, last_write, "gpu")],
        [load("r1", "y", last_read, "gpu"), load("r2", "x", "relaxed", "gpu")],
    )


def _relay(middle: str) -> Program:
    """ISA2: two messages, one after the other."""
    return apart(
        [store("w", "x", 1), store("f", "y", 1, "release", "gpu")],
        [load("r0", "y", "acquire", "gpu"), store("g", "z", 1, middle, "gpu")],
        [load("r1", "z", "acquire", "gpu"), load("r2", "x")],
    )


def _through_atomic(scope: str) -> Program:
    """A release seen through another thread's atomic."""
    return apart(
        [store("w", "x", 1), store("f", "y", 1, "release", "gpu")],
        [add("r0", "y", 1, "relaxed", scope)],
        [load("r1", "y", "acquire", "gpu"), load("r2", "x")],
    )


def _incremented(one: str, other: str) -> Program:
    return apart([add("a", "x", 1, "relaxed", one)], [add("b", "x", 1, "relaxed", other)])


def _barrier(phase: int) -> Program:
    arrive, wait = barrier("b1")
    other = barrier("b2", phase)
    return together([store("w", "x", 1), arrive, wait], [*other, load("r1", "x")])


LITMUS = {
    "MP fence.acq_rel.sys": Litmus(_fenced("acq_rel", "sys"), _STALE, False),
    "MP fence.sc.gpu": Litmus(_fenced("sc", "gpu"), _STALE, False),
    "MP fence.acq_rel.cta in one CTA": Litmus(_fenced("acq_rel", "cta", together), _STALE, False),
    "MP fence.acq_rel.cta in two": Litmus(_fenced("acq_rel", "cta"), _STALE, True),
    "MP no fence": Litmus(
        _message([store("flag", "y", 1, "relaxed", "sys")], [load("r0", "y", "relaxed", "sys")]), _STALE, True
    ),
    "MP release, acquire": Litmus(
        _message([store("flag", "y", 1, "release", "gpu")], [load("r0", "y", "acquire", "gpu")]), _STALE, False
    ),
    "MP release, relaxed": Litmus(
        _message([store("flag", "y", 1, "release", "gpu")], [load("r0", "y", "relaxed", "gpu")]), _STALE, True
    ),
    "MP relaxed, acquire": Litmus(
        _message([store("flag", "y", 1, "relaxed", "gpu")], [load("r0", "y", "acquire", "gpu")]), _STALE, True
    ),
    "MP weak flag between fences": Litmus(
        _message(
            [fence("f1", "acq_rel", "gpu"), store("flag", "y", 1)],
            [load("r0", "y", "relaxed", "gpu"), fence("f2", "acq_rel", "gpu")],
        ),
        _STALE,
        True,
    ),
    "MP red": Litmus(
        apart(
            [store("w", "x", 42), store("flag", "y", 1, "release", "gpu")],
            [add("r0", "y", 1, "relaxed", "sys", reduction=True), fence("f", "acquire", "gpu"), load("r1", "x")],
        ),
        lambda found: [found.values["r1"] == 0, found.last("y", 2), found.values["r0"] == 1],
        True,
    ),
    "MP atom": Litmus(
        apart(
            [store("w", "x", 42), store("flag", "y", 1, "release", "gpu")],
            [add("r0", "y", 1, "relaxed", "sys"), fence("f", "acquire", "gpu"), load("r1", "x")],
        ),
        lambda found: [found.values["r1"] == 0, found.last("y", 2), found.values["r0"] == 1],
        False,
    ),
    "MP bar.sync": Litmus(_barrier(0), reads(r1=0), False),
    "MP another bar.sync": Litmus(_barrier(1), reads(r1=0), True),
    "SB fence.sc.sys": Litmus(_buffering("sc", "sys"), _BOTH_OLD, False),
    "SB fence.sc.gpu": Litmus(_buffering("sc", "gpu"), _BOTH_OLD, False),
    "SB fence.sc.cta in one CTA": Litmus(_buffering("sc", "cta", together), _BOTH_OLD, False),
    "SB fence.sc.cta in two": Litmus(_buffering("sc", "cta"), _BOTH_OLD, True),
    "SB fence.acq_rel.sys": Litmus(_buffering("acq_rel", "sys"), _BOTH_OLD, True),
    "CoRR relaxed.sys": Litmus(_corr("relaxed", "sys"), _STALE, False),
    "CoRR relaxed.gpu": Litmus(_corr("relaxed", "gpu"), _STALE, False),
    "CoRR relaxed.cta in two CTAs": Litmus(_corr("relaxed", "cta"), _STALE, True),
    "CoRR weak": Litmus(_corr("weak", ""), _STALE, True),
    "CoRW": Litmus(
        apart(
            [load("r0", "x", "relaxed", "gpu"), store("w1", "x", 1, "relaxed", "gpu")],
            [store("w2", "x", 2, "relaxed", "gpu")],
        ),
        lambda found: [found.values["r0"] == 2, found.last("x", 2)],
        False,
    ),
    "CoWR": Litmus(
        apart(
            [store("w1", "x", 1, "relaxed", "gpu"), load("r0", "x", "relaxed", "gpu")],
            [store("w2", "x", 2, "relaxed", "gpu")],
        ),
        lambda found: [found.values["r0"] == 2, found.last("x", 1)],
        False,
    ),
    "CoWW": Litmus(together([store("w1", "x", 1), store("w2", "x", 2)]), lambda found: [found.last("x", 1)], False),
    "CoWW across a message": Litmus(
        _written_after_a_message("acquire"), lambda found: [found.values["r0"] == 1, found.last("x", 1)], False
    ),
    "CoWW across a relaxed one": Litmus(
        _written_after_a_message("relaxed"), lambda found: [found.values["r0"] == 1, found.last("x", 1)], True
    ),
    "CoWR own": Litmus(together([store("w1", "x", 1), load("r0", "x")]), reads(r0=0), False),
    "LB relaxed": Litmus(_copies("relaxed", "gpu", copy=False), reads(r0=1, r1=1), True),
    "LB+deps": Litmus(_copies("weak", "", copy=True), reads(r0=7, r1=7), False),
    "LB+deps relaxed": Litmus(_copies("relaxed", "gpu", copy=True), reads(r0=1, r1=1), False),
    "LB release, acquire": Litmus(_released_then_read("release", "acquire"), reads(r0=1, r1=1), False),
    "LB release, relaxed": Litmus(_released_then_read("release", "relaxed"), reads(r0=1, r1=1), True),
    "IRIW relaxed": Litmus(_independent("relaxed", "relaxed", "sys"), _SPLIT, True),
    "IRIW release, acquire": Litmus(_independent("release", "acquire", "sys"), _SPLIT, True),
    "IRIW fence.acq_rel": Litmus(_independent("relaxed", "relaxed", "sys", ("acq_rel", "sys")), _SPLIT, True),
    "IRIW fence.sc": Litmus(_independent("relaxed", "relaxed", "sys", ("sc", "sys")), _SPLIT, False),
    "IRIW fence.sc, accesses of CTA scope": Litmus(
        _independent("relaxed", "relaxed", "cta", ("sc", "sys")), _SPLIT, True
    ),
    "WRC release, acquire": Litmus(_chain("release", "acquire"), _THROUGH, False),
    "WRC relaxed": Litmus(_chain("relaxed", "acquire"), _THROUGH, True),
    "ISA2": Litmus(_relay("release"), _THROUGH, False),
    "ISA2 relaxed in the middle": Litmus(_relay("relaxed"), _THROUGH, True),
    "MP through an atomic": Litmus(_through_atomic("gpu"), reads(r0=1, r1=2, r2=0), False),
    "MP through an atomic of CTA scope": Litmus(_through_atomic("cta"), reads(r0=1, r1=2, r2=0), True),
    "two increments": Litmus(_incremented("sys", "sys"), reads(a=0, b=0), False),
    "two increments, one of CTA scope": Litmus(_incremented("cta", "gpu"), reads(a=0, b=0), True),
}
