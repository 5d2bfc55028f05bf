"""Who runs a launch: the GPU, or whatever a `with` block has put in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import triton


class DeadlockError(RuntimeError):
    """Every program that has not ended waits for memory that nobody will write; or a wait has no end."""


class Executor(Protocol):
    """Stands in for the GPU: runs every program of a grid to its end before `run` returns."""

    arch: tuple[str, int | str]
    """What the kernels are compiled for, as `DeviceLimits.arch`; ("interpreter", 0) where they are not."""

    spin_limit: int
    """Polls a program may spend on one wait."""

    resident_programs: int
    """Programs that it holds at once."""

    def run(self, kernel: triton.JITFunction, grid: int, arguments: Mapping[str, object], **options: object) -> None:
        """arguments: of the kernel, compile-time ones included. options: of the compiler and the launch."""


_substitute: ContextVar[Executor | None] = ContextVar("holdfast_executor", default=None)


def substitute() -> Executor | None:
    """The executor in force in place of the GPU, or None."""
    return _substitute.get()


def interpreting() -> bool:
    """Whether CPU tensors may run through the kernels here (see `interpreter.interpret`)."""
    return substitute() is not None


@contextmanager
def executing_on(executor: Executor) -> Iterator[None]:
    """Send the launches of this block to `executor`."""
    token = _substitute.set(executor)
    try:
        yield
    finally:
        _substitute.reset(token)
