"""--load FILE and --cell NAME: cells of the user's own on the command line. Importing this loads nothing heavy."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from traceback import extract_tb

from ..failing import fail


class CellError(ValueError):
    """There is no such cell or file of cells; the message says what was expected."""


def load_cells(path: Path) -> list[str]:
    """Import a file as Python's own import would, its folder on `sys.path`, where processes of the tuner find it too.

    Returns the names of the cells that it defined, in its order. Raises CellError where it cannot be imported, where
    another module has its name, and where it defines none.
    """
    from ...cells.eager.reference import REFERENCES

    if path.suffix != ".py" or not path.is_file():
        raise CellError(f"--load should name a Python file that is there, got {path}")
    path, known = path.resolve(), set(REFERENCES)
    sys.path.insert(0, str(path.parent))
    try:
        module = import_module(path.stem)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise CellError(f"--load {path}: {line_in(path, error)}{type(error).__name__}: {error}") from error
    found = [name for name in REFERENCES if name not in known]
    if getattr(module, "__file__", None) is None or Path(str(module.__file__)).resolve() != path:
        raise CellError(f"--load {path}: Python knows another module {path.stem!r} already; give the file another name")
    if not found:
        raise CellError(f"--load {path}: the file defines no new cell; it should call holdfast.define_cell")
    return found


def known_cell(name: str) -> str:
    """The name of a cell, built in or loaded.

    Raises CellError, which lists the known ones, and for a cell that no kernel can run.
    """
    from ...cells.call.eligibility import MOST_GATES
    from ...cells.eager.reference import reference_of

    try:
        gates = reference_of(name).gates
    except ValueError as error:
        raise CellError(f"--cell: {error}") from error
    if gates > MOST_GATES:
        raise CellError(f"the kernels take at most {MOST_GATES} gates and {name} has {gates}: it runs in plain steps")
    return name


def loaded_cells(load: Path | None, cell: str | None) -> list[str]:
    """What the two options of a command ask for: the cell, else all that the file defines; ends the command where
    there is no such thing."""
    try:
        found = [] if load is None else load_cells(load)
        return [known_cell(name) for name in (found if cell is None else [cell])]
    except CellError as error:
        fail(str(error), "Choose a cell that is known, or name the file that defines yours with --load.")


def line_in(path: Path, error: BaseException) -> str:
    """The last line of the file that an error passed through, as "line 3: "; "" where it passed through none."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path.resolve())]
    return f"line {lines[-1]}: " if lines else ""
