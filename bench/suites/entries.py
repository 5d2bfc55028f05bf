"""What a suite asks for: cases, and who computes them; as they are, tiny for the interpreter, or with another cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..method.case import Case, Phase, gates
from ..providers.holdfast import Holdfast
from ..providers.loops import PlainLoop
from ..providers.provider import Provider


@dataclass(frozen=True)
class Entry:
    """A case, who computes it, and in which phases.

    baseline:  the provider whose time is divided by each row's for the ratio.
    """

    case: Case
    providers: tuple[Provider, ...]
    phases: tuple[Phase, ...] = ("forward", "training")
    baseline: str = "torch.nn"


@dataclass
class Options:
    """What the command line asks for.

    quick:      fewer cases and shorter timing.
    rehearse:   tiny cases through the interpreter on the CPU, no times.
    providers:  only providers whose name contains one of these; empty for all.
    seconds:    of timed calls for each provider of a case.
    minutes:    cases that have not begun by then are left out; None for no limit.
    cell:       this one in place of a suite's own, beside its plain loop.
    """

    out: Path
    quick: bool = False
    rehearse: bool = False
    providers: tuple[str, ...] = ()
    seconds: float | None = None
    minutes: float | None = None
    seed: int = 0
    cell: str | None = None

    @property
    def few(self) -> bool:
        """Whether a suite should offer its first cases alone."""
        return self.quick or self.rehearse


def by_worth(hidden: Sequence[int], batch: Sequence[int]) -> list[tuple[int, int]]:
    """Every (H, B), common sizes before odd ones; both are given in order of worth."""
    return sorted(itertools.product(hidden, batch), key=lambda s: hidden.index(s[0]) + batch.index(s[1]))


def tiny(case: Case) -> Case:
    """The same kind of case in a few programs, with an odd number of rows and three steps."""
    # One program holds no more than 64 units in 16 bits of 3 or 4 gates, or 128 of 2: these are cooperative.
    whole, odd = (80, 69) if gates(case.cell) > 2 else (144, 133)
    large = whole if case.hidden_size % 16 == 0 else odd
    return replace(
        case,
        hidden_size=large if case.hidden_size > 128 else 16,
        batch_size=min(case.batch_size, 3),
        length=min(case.length, 3 if case.sequences == "dense" else 8),
        input_size=0,
        heads=min(case.heads, 2),
    )


def rehearsal(entries: Iterable[Entry]) -> list[Entry]:
    """The entries with tiny cases, each kind of case once."""
    small = [replace(entry, case=tiny(entry.case)) for entry in entries]
    return list({entry.case: entry for entry in small}.values())


def of_cell(entries: Iterable[Entry], cell: str | None) -> list[Entry]:
    """The entries; for a cell, such as one of the user's own, their cases with it beside its plain loop, each once."""
    if cell is None:
        return list(entries)
    cases = dict.fromkeys(replace(entry.case, cell=cell) for entry in entries)
    return [Entry(case, (Holdfast(), PlainLoop()), baseline=PlainLoop.name) for case in cases]


def chosen(entries: Iterable[Entry], options: Options) -> list[Entry]:
    """The entries as the command line asks for them."""
    of_one = of_cell(entries, options.cell)
    return rehearsal(of_one) if options.rehearse else of_one
