"""What the executor reports of a kernel. Each error names the PTX line and the source line it was compiled from."""

from __future__ import annotations

from ..executor import DeadlockError
from ..interpreter import OutOfBoundsError, RaceError

__all__ = [
    "REPORTED",
    "AsynchronousError",
    "DeadlockError",
    "DivergenceError",
    "EndlessError",
    "MisalignedError",
    "OutOfBoundsError",
    "RaceError",
    "UnknownInstructionError",
]


class UnknownInstructionError(NotImplementedError):
    """An opcode that the executor has no definition of."""

    def __init__(self, opcode: str, line: int | None = None) -> None:
        super().__init__(f"the executor does not know {opcode}" + (f" (PTX line {line})" if line else ""))


class MisalignedError(ValueError):
    """An address that is no multiple of what is read or written there."""


class DivergenceError(RuntimeError):
    """An instruction of the whole warp, or of the whole program, that part of it executes."""


class AsynchronousError(RuntimeError):
    """Registers of a wgmma are touched before it was waited for, or without a fence after they were."""


class EndlessError(DeadlockError):
    """Programs run on and on: one by itself, or several that wait for each other and never come to an end."""


REPORTED = (
    AsynchronousError,
    DeadlockError,
    DivergenceError,
    EndlessError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
)
"""What a kernel does wrong, as opposed to what the executor lacks."""
