"""A setting by name: for a thread or a `with` block, and an environment variable for the whole process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, ClassVar


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

    Raises ValueError for any other name, when holdfast is imported for one in the environment.
    """

    title: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    _current: ClassVar[ContextVar[str]]

    def __init_subclass__(cls, *, title: str, names: tuple[str, ...], variable: str, default: str) -> None:
        cls.title, cls.names = title, names
        start = one_of(names, os.environ.get(variable, default), f"environment variable {variable}")
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
