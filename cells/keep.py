"""What a layer keeps between its forward and its backward pass: the rule behind `module.keep = None`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .call import Call

if TYPE_CHECKING:
    from ..kernels.layer import Keep
    from ..kernels.problem import Problem

KEEP = ("save", "recompute")

SAVE_AT_MOST = 2**30
"""Bytes of gate values that a call may keep before `module.keep = None` means "recompute"."""


def default_keep(problem: Problem, call: Call) -> Keep:
    """What a call keeps whose backward pass may follow, where the user did not say."""
    from ..autotune.keep import faster_keep
    from ..autotune.select import limits_of

    if kept_bytes(problem, call, "save") > SAVE_AT_MOST:
        return "recompute"
    return faster_keep(problem, limits_of(call.x.device), length=call.steps) or "save"


def kept_bytes(problem: Problem, call: Call, keep: Keep) -> int:
    """Bytes that all layers together keep for the backward pass, besides their inputs and outputs."""
    from ..kernels.cell_spec import find_cell
    from ..kernels.describe import saved_tiles
    from ..kernels.layer import keeps_values

    spec = find_cell(problem.cell)
    each = 0 if keep == "nothing" else spec.states - 1
    each += saved_tiles(problem) if keeps_values(problem, keep) else 0
    if keep != "nothing":
        each += (spec.inner is not None) + ("recurrent_dropout" in problem.features)
    units = call.layers.num_layers * problem.directions * problem.hidden_size
    rows = call.x.numel() // max(1, call.x.shape[-1])
    return rows * units * each * problem.dtype.itemsize
