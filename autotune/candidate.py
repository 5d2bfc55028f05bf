"""Run one candidate: inputs for its problem, its results against another config's, its times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache

import torch

from ..kernels.config import Config
from ..kernels.layer import Keep, backward_layer, forward_layer
from ..kernels.plan import Reason
from ..kernels.problem import Problem
from ..kernels.resources import H100, from_device
from ..kernels.stall import StalledError, raise_if_stalled
from .heuristic import choose
from .inputs import inputs
from .job import Job, Result
from .timing import time_call

COMPARED_STEPS = 8
"""Results are compared over a few steps: rounding grows with every further one, mistakes show at once."""


def run(job: Job) -> Result:
    """Compare, then time. Never raises: what a candidate does wrong is its result."""
    try:
        return _run(job)
    except StalledError as error:
        return Result("failed", f"stalled: {error}")
    except Exception as error:  # whatever a compiler or a launch raises is the finding here
        return Result("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _run(job: Job) -> Result:
    device = torch.device(job.device)
    with _interpreted(device):
        steps = min(COMPARED_STEPS, job.length)
        expected = _results(job.problem, job.reference, job.keep, steps, device)
        found = _results(job.problem, job.config, job.keep, steps, device)
        why = difference(found, expected, job.problem)
        if why:
            return Result("wrong", why)
        if job.untimed or device.type == "cpu":
            return Result("right", f"{steps} steps in the interpreter, untimed" if device.type == "cpu" else "")
        call = _call(job.problem, job.config, job.keep, job.length, device)
        call()
        torch.cuda.synchronize(device)
        raise_if_stalled(device)
        warm = time_call(call, device, "warm", job.best_us)
        cold = None if warm.stopped else time_call(call, device, "cold")
        raise_if_stalled(device)
    return Result("stopped" if warm.stopped else "timed", "", warm, cold)


def _interpreted(device: torch.device) -> AbstractContextManager[object]:
    if device.type != "cpu":
        return nullcontext()
    from ..kernels.interpreter import interpret

    return interpret()


@lru_cache(maxsize=4)
def _results(
    problem: Problem, config: Config, keep: Keep, length: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    results = _call(problem, config, keep, length, device)()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    raise_if_stalled(device)
    return tuple(results)


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], problem: Problem) -> str | None:
    """Why two configs' results are not the same function; None where rounding explains every difference.

    Allowed is 8 times the rounding error of the products' dtype, of the largest number in the tensor: sums in another
    order differ by a unit or two in the last place, a wrong index by the number itself.
    """
    rounding = torch.finfo(torch.float16 if problem.precision == "tf32" else problem.dtype).eps
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        a, b = one.double(), other.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return f"result {index} is not finite where the reference is"
        error = (a - b).nan_to_num().abs().max().item() if a.numel() else 0.0
        allowed = 8 * rounding * max(b.nan_to_num().abs().max().item() if b.numel() else 0.0, 1e-3)
        if error > allowed:
            return f"result {index} differs by {error:.2g} from {allowed:.2g} that rounding explains"
    return None


def _call(
    problem: Problem, config: Config, keep: Keep, length: int, device: torch.device
) -> Callable[[], Sequence[torch.Tensor]]:
    """The layer with a config, as a function that returns y and final states, or all gradients."""
    given = inputs(problem, length, device)
    x, weights, extras = given.x, given.weights, given.extras
    if problem.phase == "forward":

        def forward() -> Sequence[torch.Tensor]:
            y, final, _ = forward_layer(problem, config, x, weights, keep=keep, extras=extras)
            return y, *final

        return forward

    before = replace(problem, phase="forward")
    choice = choose(before, H100 if device.type == "cpu" else from_device(device))
    if isinstance(choice, Reason):
        raise RuntimeError(f"no forward pass whose gradients it could compute: {choice}")
    y, final, residuals = forward_layer(before, choice, x, weights, keep=keep, extras=extras)
    generator = torch.Generator().manual_seed(1)
    dy, *d_final = (torch.randn(t.shape, generator=generator).to(t) for t in (y, *final))

    def backward() -> Sequence[torch.Tensor]:
        found = backward_layer(
            problem, config, x, weights, None, y, residuals, dy, d_final, needs_dx=False, extras=extras
        )
        return [*found.initial, *found.reset_state, *(g for w in found.weights for g in w if g is not None)]

    return backward
