"""What was decided for a problem, and why: the object that `module.explain()` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .config import Config, Regime
from .problem import Problem, sizes_of

Provenance = Literal["measured", "published", "assumed"]
"""Where a number comes from: this project has measured it, others have published it, or nobody has."""


class Prediction(NamedTuple):
    """us: microseconds; provenance: the weakest of what they were worked out from."""

    us: float
    provenance: Provenance

    def __str__(self) -> str:
        return f"{self.us:,.2f} us ({self.provenance})" if self.us < 100 else f"{self.us:,.0f} us ({self.provenance})"


@dataclass(frozen=True)
class Reason:
    """Why a kernel is not used: a stable name for programs, a sentence for people."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


_OPS = {"fused": "torch's own fused op", "recurrence": "the recurrence step by step in plain torch ops"}


@dataclass(frozen=True)
class Plan:
    """The path a call takes.

    regime:      "single_cta", "cooperative" or "eager".
    config:      the tiling, None where eager.
    origin:      where the config comes from: "pinned", "user cache", "shipped" or "heuristic"; "" where eager.
    reasons:     why no kernel runs; empty where one does.
    notes:       why no tuning result is used where there is one that is nearly right; only `explain` looks for them.
    op:          of an eager call: torch's "fused" op, or the plain "recurrence" where that op would refuse.
    layout:      how the fused op takes lengths and resets or a PackedSequence: "null steps", "hold steps", "packing",
                 ...; "" where there are none, and only `explain` of a module looks at them.
    backward:    of a call that a backward pass may follow: the plan of that.
    step:        what one step should take, and a whole call: on the kernels and on torch's own op; only `explain` says
                 so, and `call` where torch's op could run it too.
    first_use:   whether the kernel has run beside torch's own op; only `explain` of a module asks.
    keep:        what is kept for it ("save" or "recompute", see a module's `keep`), and how many bytes.
    """

    problem: Problem
    regime: Regime
    config: Config | None = None
    origin: str = ""
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    op: Literal["", "fused", "recurrence"] = ""
    layout: str = ""
    backward: Plan | None = None
    keep: Literal["", "nothing", "save", "recompute"] = ""
    kept_bytes: int = 0
    step: Prediction | None = None
    first_use: str = ""
    call: tuple[Prediction, Prediction] | None = None

    def __str__(self) -> str:
        p = self.problem
        arrows = "both directions" if p.directions == 2 else "one direction"
        lines = [
            f"{p.cell} {str(p.dtype).removeprefix('torch.')} {sizes_of(p)} batch={p.batch_size}, {arrows}",
            f"  regime: {self.regime}",
        ]
        if self.config is not None:
            lines.append(f"  config: {self.config} ({self.origin})")
            lines += [f"  predicted: {self.step} a step"] if self.step is not None else []
            lines += [f"  first use beside torch's op: {self.first_use}"] if self.first_use else []
            lines += [f"  note: {note}" for note in self.notes]
        if self.backward is not None:
            lines += [
                f"  backward: {self.backward.regime}, {self.backward.config} ({self.backward.origin})",
                *([f"  predicted: backward: {self.backward.step} a step"] if self.backward.step is not None else []),
                *([f"  first use beside torch's op: backward: {use}"] if (use := self.backward.first_use) else []),
                *(f"  note: backward: {note}" for note in self.backward.notes),
                f"  keep: {self.keep}, {self.kept_bytes / 2**20:.1f} MiB",
                "  double backward: eager, the plain recurrence",
            ]
        if self.call is not None:
            lines.append(f"  whole call: {self.call[0]} on the kernels, {self.call[1]} on torch's own op")
        if self.op:
            lines.append(f"  op: {_OPS[self.op]}" + (f", laid out as {self.layout}" if self.layout else ""))
        lines += [f"  reason: {reason}" for reason in self.reasons]
        return "\n".join(lines)
