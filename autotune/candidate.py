"""Run one candidate: inputs for its problem, its results against another config's, its times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.layer import Keep, LayerWeights, backward_layer, forward_layer
from ..kernels.plan import Reason
from ..kernels.problem import Problem
from ..kernels.resources import H100, from_device
from ..kernels.stall import StalledError, raise_if_stalled
from .heuristic import choose
from .job import Job, Result
from .timing import time_call

INPUT_SIZE = 16
"""Few inputs, so that the time loop is nearly all of the call; the projection's results are as large as ever."""

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
        if device.type == "cpu":
            return Result("right", f"{steps} steps in the interpreter, untimed")
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
    x, weights = _inputs(problem, length, device)
    if problem.phase == "forward":

        def forward() -> Sequence[torch.Tensor]:
            y, final, residuals = forward_layer(problem, config, x, weights, keep=keep)
            return y, *final, *residuals.kept, *(() if residuals.saved is None else (residuals.saved,))

        return forward

    before = replace(problem, phase="forward")
    choice = choose(before, H100 if device.type == "cpu" else from_device(device))
    if isinstance(choice, Reason):
        raise RuntimeError(f"no forward pass whose gradients it could compute: {choice}")
    y, final, residuals = forward_layer(before, choice, x, weights, keep=keep)
    generator = torch.Generator().manual_seed(1)
    dy, *d_final = (torch.randn(t.shape, generator=generator).to(t) for t in (y, *final))

    def backward() -> Sequence[torch.Tensor]:
        found = backward_layer(problem, config, x, weights, None, y, residuals, dy, d_final, needs_dx=False)
        return [*found.initial, *(g for w in found.weights for g in w if g is not None)]

    return backward


def _inputs(problem: Problem, length: int, device: torch.device) -> tuple[torch.Tensor, list[LayerWeights]]:
    """Numbers as a fresh torch.nn layer has them, the same for every candidate of a problem."""
    if problem.features:
        raise NotImplementedError(f"a loop with {', '.join(problem.features)} cannot be timed yet")
    generator = torch.Generator().manual_seed(0)
    bound = problem.hidden_size**-0.5

    def uniform(*shape: int) -> torch.Tensor:
        numbers = torch.rand(shape, generator=generator).mul_(2 * bound).sub_(bound)
        return numbers.to(device, problem.dtype)

    rows = find_cell(problem.cell).gates * problem.hidden_size
    x = torch.randn(length, problem.batch_size, INPUT_SIZE, generator=generator).to(device, problem.dtype)
    weights = [
        LayerWeights(uniform(rows, INPUT_SIZE), uniform(rows, problem.hidden_size), uniform(rows), uniform(rows))
        for _ in range(problem.directions)
    ]
    return x, weights
