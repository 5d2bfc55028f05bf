"""What a layer keeps between its forward and its backward pass: the rule behind `module.keep = None`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .call import Call
from .eligibility import needs_grad

if TYPE_CHECKING:
    from ..kernels.layer import Keep
    from ..kernels.problem import Problem
    from .base import RecurrentBase

KEEP = ("save", "recompute")

SAVE_AT_MOST = 2**30
"""Bytes of gate values that a call may keep before `module.keep = None` means "recompute"."""


def keep_of(module: RecurrentBase, call: Call) -> Keep:
    """What this call keeps: nothing where no backward pass can follow, else as `module.keep` says."""
    if not needs_grad(module, call):
        return "nothing"
    if module.keep is not None:
        return module.keep
    if torch.compiler.is_compiling():
        return "save"  # to look at the sizes would compile anew for others
    from ..autotune.select import faster_keep, limits_of
    from .planning import problem_of

    problem = problem_of(module, call)
    if kept_bytes(problem, module, call, "save") > SAVE_AT_MOST:
        return "recompute"
    length = None if call.batch_sizes is not None else call.x.shape[1 if module.batch_first else 0]
    return faster_keep(problem, limits_of(call.x.device), length=length) or "save"


def kept_bytes(problem: Problem, module: RecurrentBase, call: Call, keep: Keep) -> int:
    """Bytes that all layers together keep for the backward pass, besides their inputs and outputs."""
    from ..kernels.cell_spec import find_cell
    from ..kernels.describe import saved_tiles
    from ..kernels.layer import keeps_values

    spec = find_cell(problem.cell)
    each = 0 if keep == "nothing" else spec.states - 1
    each += saved_tiles(problem) if keeps_values(problem, keep) else 0
    if keep != "nothing":
        each += (spec.inner is not None) + ("recurrent_dropout" in problem.features)
    units = module.num_layers * problem.directions * module.hidden_size
    rows = call.x.numel() // max(1, call.x.shape[-1])
    return rows * units * each * problem.dtype.itemsize
