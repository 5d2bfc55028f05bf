"""Cells of the user's own in another process: it imports the modules that define them.

A jitted function cannot be sent there, and a spawned process knows holdfast's own cells alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from ..kernels.cell_spec import CELLS

KNOWN_THERE = {__package__.partition(".")[0], "__main__"}
"""First names of modules that need no import: multiprocessing itself imports the script that was run."""


def modules_of_own_cells() -> tuple[str, ...]:
    """The names of the modules outside holdfast that hold functions of a cell."""
    functions = [function for spec in CELLS.values() for function in (spec.gates_of, spec.update, spec.gradients)]
    modules = {function.fn.__module__ for function in functions}
    return tuple(sorted(name for name in modules if name.partition(".")[0] not in KNOWN_THERE))


def import_modules(names: Iterable[str]) -> None:
    """What such a process does first; `sys.path` comes with it."""
    for name in names:
        import_module(name)
