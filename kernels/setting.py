"""A setting by name: for a thread or a `with` block, and an environment variable for the whole process.

A bad value in the environment is a ValueError where holdfast is imported, and a message where a command is run: the
package is imported before the command's first line, so the value is noted then and said by `check_environment`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")

VARIABLES = ("HOLDFAST_AUTOTUNE", "HOLDFAST_BACKEND", "HOLDFAST_CACHE", "HOLDFAST_FIRST_USE", "HOLDFAST_STALL_SECONDS")

_wrong: list[str] = []


def from_environment(variable: str, default: str, read: Callable[[str], T]) -> T:
    """What an environment variable says. Where `read` raises ValueError for it, what its default says, and
    `check_environment` raises."""
    try:
        return read(os.environ.get(variable, default))
    except ValueError as error:
        _wrong.append(str(error))
        return read(default)


def check_environment() -> None:
    """Raises ValueError where a variable of holdfast's has a value that it cannot have. Warns of a name that looks like
    one of holdfast's."""
    if _wrong:
        raise ValueError("; ".join(_wrong))
    for name in os.environ:
        if name.startswith("HOLDFAST_") and name not in VARIABLES:
            meant = get_close_matches(name, VARIABLES, n=1, cutoff=0.8)
            if meant:
                warnings.warn(f"environment variable {name} is not read: {meant[0]} is", stacklevel=2)


def check_when_imported() -> None:
    """`check_environment`, but where a command of holdfast's begins: `holdfast`, or `python -m holdfast...`. There
    argv[0] is "-m" as long as packages are imported."""
    script = Path(*sys.argv[:1]).name
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if script == "-m" else script
    if module.split(".")[0] != "holdfast":
        check_environment()


def one_of(names: Sequence[str], value: object, source: str) -> str:
    """`value`, which came from `source`. Raises ValueError where it is none of the names."""
    if value not in names:
        raise ValueError(f"{source} should be one of {', '.join(map(repr, names))}, got {value!r}")
    return str(value)


class Setting:
    """Base of `holdfast.backend`, `holdfast.first_use` and `holdfast.autotune.mode`.

    As a call it holds for the current thread or asyncio task from then on, as a `with` block until its end. Other
    threads start from the environment variable.

    title:     what messages call it.
    names:     what it may be; variable: the environment variable; default: where that is not set.

    Raises ValueError for any other name; for one in the environment see `from_environment`.
    """

    title: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    _current: ClassVar[ContextVar[str]]

    def __init_subclass__(cls, *, title: str, names: tuple[str, ...], variable: str, default: str) -> None:
        cls.title, cls.names = title, names
        start = from_environment(
            variable, default, lambda name: one_of(names, name, f"environment variable {variable}")
        )
        cls._current = ContextVar(f"holdfast.{title}", default=start)

    def __init__(self, name: str) -> None:
        self.name = one_of(self.names, name, self.title)
        self._previous = self._current.get()
        self._current.set(self.name)

    def __enter__(self) -> Any:
        self._current.set(self.name)
        return self

    def __exit__(self, *exception: object) -> None:
        self._current.set(self._previous)

    def __repr__(self) -> str:
        return f"holdfast.{self.title}({self.name!r})"

    @classmethod
    def current(cls) -> str:
        """The choice in force here."""
        return cls._current.get()
