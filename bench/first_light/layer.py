"""One layer on a GPU, straight through the kernels with configs of the caller's choice, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ...autotune.candidates import search
from ...kernels import describe
from ...kernels.cell_spec import find_cell
from ...kernels.config import Config
from ...kernels.layer import LayerWeights, backward_layer, forward_layer
from ...kernels.problem import Phase, Problem
from ...kernels.resources import H100, DeviceLimits, from_device
from ..method.case import Case
from ..method.judge import Judge, Verdict
from ..method.numbers import Numbers, Results

PHASES: tuple[Phase, ...] = ("forward", "backward")
WAYS = ("spin", "portable", "barrier", "single_cta")
"""How h reaches the product: "dataflow" in PTX, "dataflow" in Triton's own words, "barrier", one program alone."""


@contextmanager
def portable_poll(wanted: bool) -> Iterator[None]:
    """ "dataflow" in Triton's own words, also where PTX could be had."""
    if not wanted:
        yield
        return
    with patch.object(describe, "exchange_of", lambda problem, config, platform: _portable(config)):
        yield


def _portable(config: Config) -> str:
    return "registers" if config.regime == "single_cta" else config.exchange


def limits_of(device: torch.device) -> DeviceLimits:
    return H100 if device.type == "cpu" else from_device(device)


@dataclass
class Way:
    """A way and the configs that go it, forwards and backwards."""

    name: str
    forward: Config
    backward: Config


def way_of(name: str, problem: Problem, limits: DeviceLimits) -> Way | None:
    """The first configs that the tuner would try; None where one program cannot hold the weights."""
    found = []
    for phase in PHASES:
        ranked, _ = search(replace(problem, phase=phase), limits)
        regime = "single_cta" if name == "single_cta" else "cooperative"
        exchange = "barrier" if name == "barrier" else "dataflow"
        fitting = [r.config for r in ranked if r.config.regime == regime]
        fitting = [c for c in fitting if regime == "single_cta" or c.exchange == exchange]
        if not fitting:
            return None
        found.append(fitting[0])
    return Way(name, *found)


class OneLayer:
    """The numbers of one layer, and the judge of what comes of them: torch.nn on the same device."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.numbers = case, Numbers(case, device)
        self._judge = Judge(self.numbers)
        tf32 = case.dtype == torch.float32
        self.problem = Problem(
            case.cell, case.dtype, case.hidden_size, case.batch_size, precision="tf32" if tf32 else "ieee"
        )
        named = self.numbers.weights[0]
        w_ih, w_hh, b_ih, b_hh = (named[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        self.weights = [LayerWeights(w_ih, w_hh, b_ih, b_hh)]

    def forward(self, way: Way) -> Tensor:
        return forward_layer(self.problem, way.forward, self.numbers.xs[0], self.weights, None)[0]

    def training(self, way: Way) -> Results:
        x, backward = self.numbers.xs[0], replace(self.problem, phase="backward")
        y, _, residuals = forward_layer(self.problem, way.forward, x, self.weights, None, keep="save")
        nothing = [None] * find_cell(self.case.cell).states
        found = backward_layer(backward, way.backward, x, self.weights, None, y, residuals, self.numbers.dy, nothing)
        (of_layer,) = found.weights
        assert found.x is not None
        gradients = {"x": found.x, "weight_ih_l0": of_layer.w_ih, "weight_hh_l0": of_layer.w_hh}
        gradients |= {"bias_ih_l0": of_layer.b_ih, "bias_hh_l0": of_layer.b_hh}
        return {"y": y} | {name: gradient for name, gradient in gradients.items() if gradient is not None}

    def judge(self, outputs: Results) -> Verdict:
        """The worst of y alone, or of all gradients too."""
        return self._judge(outputs, self.case.dtype, factor=1.0)


def kernel_us(run: Callable[[], object], phase: Phase, runs: int = 5) -> float:
    """Median microseconds of the time loop's own kernel, as CUPTI has them: no GEMM, no launch."""
    run()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(runs):
            run()
        torch.cuda.synchronize()
    events = seen.events() or []
    return median(e.device_time for e in events if e.device_type == DeviceType.CUDA and e.name == phase)


def call_us(run: Callable[[], object], runs: int = 7) -> float:
    """Median microseconds of a whole call by CUDA events, after two that warm up."""
    times = []
    for _ in range(runs + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return median(times[2:])
