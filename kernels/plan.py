"""What was decided for a problem, and why: the object that `module.explain()` returns."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Config, Regime
from .problem import Problem


@dataclass(frozen=True)
class Reason:
    """Why a kernel is not used: a stable name for programs, a sentence for people."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True)
class Plan:
    """The path a call takes.

    regime:   "single_cta", "cooperative" or "eager".
    config:   the tiling, None where eager.
    origin:   where the config comes from ("heuristic", later "pinned", "user cache", "shipped"); "" where eager.
    reasons:  why no kernel runs; empty where one does.
    """

    problem: Problem
    regime: Regime
    config: Config | None = None
    origin: str = ""
    reasons: tuple[Reason, ...] = ()

    def __str__(self) -> str:
        p = self.problem
        arrows = "both directions" if p.directions == 2 else "one direction"
        lines = [
            f"{p.cell} {str(p.dtype).removeprefix('torch.')} hidden_size={p.hidden_size} "
            f"batch={p.batch_size}, {arrows}",
            f"  regime: {self.regime}",
        ]
        if self.config is not None:
            lines.append(f"  config: {self.config} ({self.origin})")
        lines += [f"  reason: {reason}" for reason in self.reasons]
        return "\n".join(lines)
