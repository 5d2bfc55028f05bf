"""From a checked call to a Plan: the problem, the reasons against a kernel, the config."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..kernels.plan import Plan
from ..kernels.problem import Phase, Precision, Problem
from .backend import constant_when_traced, current_backend
from .call import Call
from .eligibility import MOMENT, PROBLEM, eligible, in_reach_of_kernels, kernel_dtype, needs_grad, reasons
from .keep import keep_of, kept_bytes
from .noise import has_noise
from .unfused import needs_unfused

if TYPE_CHECKING:
    from .base import RecurrentBase


@constant_when_traced
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
        cell=module.cell,
        dtype=dtype,
        hidden_size=module.hidden_size,
        batch_size=call.batch_size(module.batch_first),
        directions=2 if module.bidirectional else 1,
        precision=precision(dtype),
        features=features(module, call),
    )


def features(module: RecurrentBase, call: Call) -> tuple[str, ...]:
    """What the loop does besides, in the words of `kernels.problem.FEATURES`."""
    if not (call.ragged or call.batch_sizes is not None or has_noise(module)):
        return ()
    asked = {
        "lengths": call.lengths is not None or call.batch_sizes is not None,
        "packed": call.batch_sizes is not None,
        "recurrent_dropout": module.training and module.recurrent_dropout > 0,
        "reset_state": bool(call.reset_states),
        "resets": call.resets is not None,
        "zoneout": any(module.zoneout_rates),
    }
    return tuple(name for name, wanted in asked.items() if wanted)


def full_plan(module: RecurrentBase, call: Call) -> Plan:
    """The path of this call with every reason that stands against a kernel."""
    problem = problem_of(module, call)
    found = reasons(module, call, PROBLEM)
    plans = [] if found else _plans(problem, call.x.device, needs_grad(module, call))
    found += tuple(dict.fromkeys(reason for plan in plans for reason in plan.reasons))
    found += reasons(module, call, MOMENT)
    if found:
        return Plan(problem, "eager", reasons=found, op="recurrence" if needs_unfused(module, call) else "fused")
    from ..autotune.select import explained

    forward, *backward = (explained(plan, call.x.device) for plan in plans)
    if not backward:
        return forward
    keep = keep_of(module, call)
    return replace(forward, backward=backward[0], keep=keep, kept_bytes=kept_bytes(problem, module, call, keep))


def _plans(problem: Problem, device: torch.device, trains: bool) -> list[Plan]:
    """What this device has for each phase of a problem that nothing else stands against."""
    from ..autotune.select import select

    phases: tuple[Phase, ...] = ("forward", "backward") if trains else ("forward",)
    return [select(replace(problem, phase=phase), device) for phase in phases]


@constant_when_traced
def _has_kernels(
    cell: str,
    dtype: torch.dtype,
    hidden_size: int,
    directions: int,
    precision: Precision,
    features: tuple[str, ...],
    device: torch.device,
    trains: bool,
) -> bool:
    """Whether this device has every kernel for a problem. No answer depends on the batch size (nor on T)."""
    problem = Problem(cell, dtype, hidden_size, 1, directions, precision, features=features)
    return all(plan.regime != "eager" for plan in _plans(problem, device, trains))


def takes_kernels(module: RecurrentBase, call: Call) -> bool:
    """Whether a call runs on the kernels.

    Raises RuntimeError where holdfast.backend is "triton" and no kernel can run.
    """
    if not in_reach_of_kernels(call.x) and current_backend() != "triton":
        return False
    if eligible(module, call):
        dtype = kernel_dtype(call)
        directions = 2 if module.bidirectional else 1
        problem = (module.cell, dtype, module.hidden_size, directions, precision(dtype), features(module, call))
        if _has_kernels(*problem, call.x.device, needs_grad(module, call)):
            return True
    # An empty batch is no fallback: there is nothing that a kernel could have computed.
    if current_backend() == "triton" and call.batch_size(module.batch_first) > 0:
        raise RuntimeError(refusal(type(module).__name__, full_plan(module, call)))
    return False


def refusal(name: str, plan: Plan) -> str:
    """The message of a call that holdfast.backend("triton") does not let fall back."""
    why = "\n".join(f"  {reason}" for reason in plan.reasons)
    return (
        f'{name}: holdfast.backend is "triton", but this call cannot run on a kernel:\n{why}\n'
        'Change what the reasons name, or allow torch\'s own op with holdfast.backend("auto"); '
        "explain(x, hx) returns these reasons without running anything."
    )
