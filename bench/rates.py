"""What this machine can do at most: copy bandwidth and matrix rate, measured; and the floor of a whole call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..cells.call.surroundings import precision
from .case import Case, Phase, input_flops, recurrent_flops
from .measure import cpu_clock, host_clock_ns, synchronize


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
