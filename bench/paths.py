"""Which path a module takes while it trains and while it infers, in a few words."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from rich.console import Console

from ..cells.base import RecurrentBase
from ..kernels.plan import Plan
from .tables import print_table


def print_paths(modules: Mapping[str, RecurrentBase], batch_size: int, console: Console | None = None) -> None:
    """Print the path of each module in training and in inference, and below them why no kernel runs."""
    import pandas as pd

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
