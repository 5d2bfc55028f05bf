"""A suite's cases with a cell by name, such as one of the user's own, beside its plain loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..loops import PlainLoop
from ..providers import Holdfast
from ..session import Entry


def of_cell(entries: Iterable[Entry], cell: str | None) -> list[Entry]:
    """The entries; for a cell, their cases with it, each once."""
    if cell is None:
        return list(entries)
    cases = dict.fromkeys(replace(entry.case, cell=cell) for entry in entries)
    return [Entry(case, (Holdfast(), PlainLoop()), baseline=PlainLoop.name) for case in cases]
