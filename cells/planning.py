"""From a checked call to a Plan: the problem, the reasons against a kernel, the config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..kernels.plan import Plan
from ..kernels.problem import Precision, Problem
from .backend import current_backend
from .call import Call
from .eligibility import MOMENT, PROBLEM, eligible, in_reach_of_kernels, kernel_dtype, reasons

if TYPE_CHECKING:
    from .base import RecurrentBase


def precision(dtype: torch.dtype) -> Precision:
    """What torch allows an RNN's float32 products to be rounded to.

    `cudnn.rnn.fp32_precision` answers for the older `cudnn.allow_tf32` as well, and reading it never warns or
    raises, which reading `allow_tf32` does once the two ways have been mixed.
    """
    allowed = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if dtype is torch.float32 and allowed == "tf32" else "ieee"


def problem_of(module: RecurrentBase, call: Call) -> Problem:
    dtype = kernel_dtype(call)
    return Problem(
        cell=module.mode.lower(),
        dtype=dtype,
        hidden_size=module.hidden_size,
        batch_size=call.batch_size(module.batch_first),
        directions=2 if module.bidirectional else 1,
        precision=precision(dtype),
    )


def full_plan(module: RecurrentBase, call: Call) -> Plan:
    """The path of this call with every reason that stands against a kernel."""
    about_problem = reasons(module, call, PROBLEM)
    moment = reasons(module, call, MOMENT)
    if about_problem:
        return Plan(problem_of(module, call), "eager", reasons=about_problem + moment)
    plan = _select(module, call)
    if moment:
        return Plan(plan.problem, "eager", reasons=plan.reasons + moment)
    return plan


def _select(module: RecurrentBase, call: Call) -> Plan:
    """The plan of a call whose problem has no reason against it: what this device has for that problem."""
    from ..autotune.select import select

    return select(problem_of(module, call), call.x.device)


def kernel_plan(module: RecurrentBase, call: Call) -> Plan | None:
    """The plan of a call that runs on a kernel, None for one that runs eager.

    Raises RuntimeError where holdfast.backend is "triton" and no kernel can run.
    """
    if not in_reach_of_kernels(call.x) and current_backend() != "triton":
        return None
    if eligible(module, call):
        plan = _select(module, call)
        if plan.regime != "eager":
            return plan
    # An empty batch is no fallback: there is nothing that a kernel could have computed.
    if current_backend() == "triton" and call.batch_size(module.batch_first) > 0:
        raise RuntimeError(refusal(type(module).__name__, full_plan(module, call)))
    return None


def refusal(name: str, plan: Plan) -> str:
    """The message of a call that holdfast.backend("triton") does not let fall back."""
    why = "\n".join(f"  {reason}" for reason in plan.reasons)
    return (
        f'{name}: holdfast.backend is "triton", but this call cannot run on a kernel:\n{why}\n'
        'Change what the reasons name, or allow torch\'s own op with holdfast.backend("auto"); '
        "explain(x, hx) returns these reasons without running anything."
    )
