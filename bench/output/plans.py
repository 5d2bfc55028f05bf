"""Plans in print: the whole plan of a problem, and in a few words which path a module takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch
from rich.console import Console

from ...cells.base import RecurrentBase
from ...kernels.plan import Plan
from ...kernels.problem import Problem
from .tables import print_table


def print_plans(problem: Problem, length: int) -> None:
    """Print the plan of this machine's GPU for so many steps, or say that there is none and print an H100's."""
    # Here, because they need Triton: `holdfast info` prints paths on machines that lack it.
    from ...autotune.faster import Asked
    from ...autotune.measure import torch_has
    from ...autotune.select import compare_for, compare_on, explained, select, select_for
    from ...kernels.resources import H100

    asked = Asked(problem, length, problem.hidden_size)
    if torch.cuda.is_available():
        device = torch.device("cuda")
        print(torch.cuda.get_device_name())
        plan = explained(select(problem, device, length=length), device, length=length)
        comparison = compare_for(asked, device) if torch_has(problem) else None
    else:
        print("This machine has no GPU that torch can use: every call runs eager, on torch's own op.")
        print(f"On an {H100.name} the choice would be:")
        plan = explained(select_for(problem, H100, length=length), H100, length=length)
        comparison = compare_on(asked, H100) if torch_has(problem) else None
    print(plan if plan.config is None else replace(plan, call=comparison))
    if comparison is not None and comparison.fused_is_faster:
        print(f"  so {length} steps run on torch's own op, unless somebody asks for a kernel")


def print_paths(modules: Mapping[str, RecurrentBase], batch_size: int, console: Console | None = None) -> None:
    """Print the path of each module in training and in inference, and below them why no kernel runs."""
    console = console or Console()
    plans = {name: both_plans(module, batch_size) for name, module in modules.items()}
    rows = [
        {"module": name, "training": in_words(training), "inference": in_words(inference)}
        for name, (training, inference) in plans.items()
    ]
    print_table(pd.DataFrame(rows), console)
    reasons = {reason.name: reason for both in plans.values() for plan in both for reason in plan.reasons}
    for reason in reasons.values():
        console.print(f"  {reason}", markup=False)


def both_plans(module: RecurrentBase, batch_size: int) -> tuple[Plan, Plan]:
    """What `explain` says of a batch of this size: in training, and under `no_grad`."""
    weight = module.flat_weights()[0]
    x = torch.zeros(1, batch_size, module.input_size, device=weight.device, dtype=weight.dtype)
    training = module.explain(x)
    with torch.no_grad():
        return training, module.explain(x)


def in_words(plan: Plan) -> str:
    """The regime with its config, or with the names of the reasons against a kernel."""
    if plan.config is None:
        return f"{plan.regime} ({', '.join(reason.name for reason in plan.reasons)})"
    return f"{plan.regime} ({plan.config}; {plan.origin})"
