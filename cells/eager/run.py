"""A call that no kernel runs, on the eager path that suits it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call.records import Call, Decision
from .fused import run_fused
from .path import eager_path
from .ragged import run_ragged
from .recurrence import run_recurrence


def follow(
    call: Call, decision: Decision, traces: list[dict[str, Tensor]] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a call on the eager path that was decided: (output, final states)."""
    if decision.path == "recurrence":
        return run_recurrence(call, decision, traces)
    if decision.path == "ragged":
        return run_ragged(call, decision)
    return run_fused(call, decision)


def run_eager(
    call: Call, *, trains: bool, autocast: torch.dtype | None, traces: list[dict[str, Tensor]] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a call on the eager path that suits it here and now."""
    return follow(call, Decision(eager_path(call), trains=trains, autocast=autocast), traces)
