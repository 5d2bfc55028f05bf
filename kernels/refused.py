"""What a kernel raises that turns out, when it is about to run, to be none for this GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .config import Config
    from .problem import Problem


class RefusedError(RuntimeError):
    """The kernel of `problem` does not run; the modules compute with torch's op in its place.

    config:   of the kernel: another one may run; None where none does.
    reason:   what `explain` calls it.
    lasting:  whether it holds for every later call too.
    """

    reason: ClassVar[str]
    lasting: ClassVar[bool] = True

    def __init__(self, message: str, problem: Problem, config: Config | None = None) -> None:
        super().__init__(message)
        self.problem = problem
        self.config = config


class FailedFirstUseError(RefusedError):
    """Beside torch's own op the kernel computed something else, twice not the same, or not at all."""

    reason = "failed_first_use"


class NotTriedError(RefusedError):
    """The kernel has never run beside torch's own op, and now, while a CUDA graph is captured, it cannot."""

    reason = "not_tried"
    lasting = False
