"""One candidate that a child process runs: what goes there and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..kernels.config import Config
from ..kernels.layer import Keep
from ..kernels.problem import Problem
from .timing import Quantiles


@dataclass(frozen=True)
class Job:
    """config, keep:  what to run.

    reference:   a config whose results these are compared with.
    length:      steps of the sequence that is timed.
    device:      "cuda:0"; "cpu" runs the candidate in the interpreter, where nothing is timed.
    untimed:     end after the comparison; the kernels then lie in Triton's disk cache.
    best_us:     the best median so far with a warm L2; what is far from it is given up early.
    """

    problem: Problem
    config: Config
    keep: Keep
    reference: Config
    length: int
    device: str
    best_us: float | None = None
    untimed: bool = False


Status = Literal["timed", "stopped", "right", "not run", "wrong", "failed", "killed"]


@dataclass(frozen=True)
class Result:
    """timed:    both times are there.
    stopped:  given up early: it cannot win; the warm time is that of a few calls.
    right:    it ran with the reference's results; no time was asked for, or it ran in the interpreter.
    not run:  a rehearsal would take too long.
    wrong:    its results are not the reference's; no time.
    failed:   it raised, or its process died.
    killed:   it took longer than it may, and its process was ended.
    """

    status: Status
    why: str = ""
    warm: Quantiles | None = None
    cold: Quantiles | None = None
