"""The best config of a regime that the module itself would not choose, by the heuristic's estimate."""

from __future__ import annotations

import torch

from ..autotune.candidates import candidates
from ..autotune.constraints import CONSTRAINTS, refusal
from ..autotune.cost import estimate
from ..kernels.config import Config
from ..kernels.executor import interpreting
from ..kernels.problem import Problem
from ..kernels.resources import H100, from_device


def best_config(problem: Problem, regime: str | None, device: torch.device) -> Config | None:
    """The feasible config of this regime with the least estimated step; None where none fits the GPU.

    In the interpreter the GPU is an H100, as in `autotune.select`.
    """
    limits = H100 if interpreting() else from_device(device)
    feasible = [
        config
        for config in candidates(problem, limits)
        if config.regime == regime and refusal(problem, config, limits, CONSTRAINTS) is None
    ]
    return min(feasible, key=lambda config: estimate(problem, config, limits).step_us, default=None)
