"""What this machine can do at most, measured: copies, products, floors of loops; and the least that a call takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from ...cells.call.surroundings import precision
from ...kernels.plan import Plan
from .case import Case, Phase, input_flops, recurrent_flops
from .floor import Floor, measure_floor
from .measure import cpu_clock, host_clock_ns, synchronize
from .numbers import Numbers
from .results import Results


@dataclass(frozen=True)
class Rates:
    """copy: bytes a second, counting read and written; matrix: floating-point operations a second of a large GEMM."""

    copy: float
    matrix: float


@lru_cache(maxsize=16)
def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of several runs of a large copy and of a large square product on random numbers.

    Products of float32 are rounded to TF32 where torch's setting for RNNs allows it.
    """
    on_gpu = device.type == "cuda"
    source = torch.randn(2**28 if on_gpu else 2**24, device=device)
    target = torch.empty_like(source)
    size = 8192 if on_gpu else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    copied = _seconds(lambda: target.copy_(source), device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on_gpu and precision(dtype) == "tf32" else before)
    try:
        multiplied = _seconds(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.set_float32_matmul_precision(before)
    return Rates(2 * source.nbytes / copied, 2 * size**3 / multiplied)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The least of several runs: what is sought is the most that the machine can do."""
    now_ns = host_clock_ns(cpu_clock() if device.type == "cpu" else "wall")
    times = []
    for _ in range(9):
        synchronize(device)
        start = now_ns()
        run()
        synchronize(device)
        times.append(now_ns() - start)
    return min(times) / 1e9


def gemm_us(case: Case, phase: Phase, rates: Rates) -> float:
    """Microseconds of the GEMMs outside the time loop at the measured matrix rate.

    Training adds dx and dW_ih, each as large as the input projection, and dW_hh, as large as all products of the loop.
    """
    flops = input_flops(case)
    if phase == "training":
        flops = 3 * flops + recurrent_flops(case)
    return flops / rates.matrix * 1e6


def loop_us_at_matrix_rate(case: Case, phase: Phase, rates: Rates) -> float:
    """Microseconds of the loop's products at the measured matrix rate: the floor where no kernel runs."""
    return recurrent_flops(case) * (2 if phase == "training" else 1) / rates.matrix * 1e6


class Limits:
    """Rates and floors of one device, each measured when it is first needed and kept as rows of a suite's results."""

    def __init__(self, device: torch.device, results: Results) -> None:
        self.device, self.results = device, results
        self._rates: dict[torch.dtype, Rates] = {}
        self._floors: dict[object, Floor] = {}

    def floor_us(self, numbers: Numbers, phase: Phase, plan: Plan | None) -> float:
        """The least time of a call on this machine, in microseconds: GEMMs at the measured matrix rate and the loop.

        The loop is the measured floor of the config that holdfast chose, or, where no kernel runs, its products at the
        matrix rate. Products are counted for real steps only. NaN below a microsecond: such a call is all overhead.
        """
        case = numbers.case
        rates = self.rates(case)
        real = numbers.real_steps / (case.length * case.batch_size)
        gemms = real * gemm_us(case, phase, rates)
        if plan is None or plan.config is None or self.device.type != "cuda":
            floor = gemms + real * loop_us_at_matrix_rate(case, phase, rates)
            return floor if floor >= 1 else math.nan
        steps = [self.floor(p, case).step_us for p in (plan, plan.backward) if p is not None and p.config is not None]
        return gemms + case.layers * case.length * sum(steps)

    def rates(self, case: Case) -> Rates:
        """Copy bandwidth and matrix rate, measured when a dtype is first met, and kept as rows."""
        if case.dtype not in self._rates:
            found = self._rates[case.dtype] = measure_rates(self.device, case.dtype)
            base = {"phase": "forward", "dtype": case.dtype_name, "status": "ok"}
            self.results.add(
                [
                    {**base, "provider": "product", "rate": found.matrix},
                    {**base, "provider": "copy", "rate": found.copy},
                ]
            )
        return self._rates[case.dtype]

    def floor(self, plan: Plan, case: Case) -> Floor:
        """The floor of a plan's config on this GPU, measured when it is first met, and kept as rows."""
        assert plan.config is not None
        key = (plan.problem, plan.config)
        if key not in self._floors:
            found = self._floors[key] = measure_floor(plan.problem, plan.config, self.device)
            base = {"phase": plan.problem.phase, **case.columns(), "config": str(plan.config), "status": "ok"}
            parts = {"exchange only": found.exchange_us, "resident weights only": found.weights_us}
            self.results.add({"provider": name, "us_per_step": us, **base} for name, us in parts.items())
        return self._floors[key]
