"""The plan for a problem on this machine, printed; where there is no GPU, what a well-known one would choose."""

from __future__ import annotations

import torch

from ..autotune.heuristic import choose
from ..autotune.select import select
from ..kernels.plan import Plan, Reason
from ..kernels.problem import Problem
from ..kernels.resources import H100, DeviceLimits


def print_plans(problem: Problem) -> None:
    """Print the plan of this machine's GPU, or say that there is none and print an H100's."""
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        print(select(problem, torch.device("cuda")))
        return
    print("This machine has no GPU that torch can use: every call runs eager, on torch's own op.")
    print(f"On an {H100.name} the choice would be:")
    print(heuristic_plan(problem, H100))


def heuristic_plan(problem: Problem, device: DeviceLimits) -> Plan:
    """What the heuristic chooses for a described device."""
    choice = choose(problem, device)
    if isinstance(choice, Reason):
        return Plan(problem, "eager", reasons=(choice,))
    return Plan(problem, choice.regime, choice, "heuristic")
