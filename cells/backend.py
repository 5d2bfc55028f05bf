"""Which path the modules may take: the setting, its scope and the environment variable behind it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

BACKENDS = ("auto", "triton", "eager")
ENVIRONMENT_VARIABLE = "HOLDFAST_BACKEND"


def _valid(name: object, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} should be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return str(name)


_from_environment = _valid(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), f"environment variable {ENVIRONMENT_VARIABLE}")
_current: ContextVar[str] = ContextVar("holdfast.backend", default=_from_environment)


class backend:  # noqa: N801  used as a function: `holdfast.backend("eager")`, `with holdfast.backend("eager"): ...`
    """Choose how holdfast's modules compute, until further notice or for a `with` block.

    "auto":    a kernel where one can run and should be faster, torch's own fused op elsewhere. The default.
    "triton":  a kernel, or RuntimeError with every reason why none can run.
    "eager":   always torch's own fused op.

    A plain call holds for the current thread or asyncio task from then on; a `with` block puts the previous
    choice back and may be nested. Other threads are not touched: they start from the environment variable
    HOLDFAST_BACKEND, or "auto". Under `torch.compile` the choice is read once, when a call is traced.

    Raises ValueError for any other name.
    """

    def __init__(self, name: str) -> None:
        self.name = _valid(name, "backend")
        self._previous = _current.get()
        _current.set(self.name)

    def __enter__(self) -> backend:
        _current.set(self.name)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.set(self._previous)

    def __repr__(self) -> str:
        return f"holdfast.backend({self.name!r})"


def constant_when_traced(function: F) -> F:
    """Make Dynamo call `function` while tracing and keep the result: it cannot trace ContextVar.get.

    torch.compiler.assume_constant_result does the same, but imports all of Dynamo (seconds) to set this attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def current_backend() -> str:
    """The choice in force here: "auto", "triton" or "eager"."""
    return _current.get()
