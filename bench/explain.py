"""The plan for a problem on this machine, printed; where there is no GPU, what a well-known one would choose."""

from __future__ import annotations

import torch

from ..autotune.select import explained, select, select_for
from ..kernels.problem import Problem
from ..kernels.resources import H100


def print_plans(problem: Problem) -> None:
    """Print the plan of this machine's GPU, or say that there is none and print an H100's."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        print(torch.cuda.get_device_name())
        print(explained(select(problem, device), device))
        return
    print("This machine has no GPU that torch can use: every call runs eager, on torch's own op.")
    print(f"On an {H100.name} the choice would be:")
    print(explained(select_for(problem, H100), H100))
