"""Whether torch's own fused op should be faster than the kernels: both predicted for a whole call, host included.

A call that somebody waits for takes what the host does before the launch, and then what the GPU does. Where the tuner
has timed both, that is taken for the GPU's part; else the models of `cost` and `fused`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ..kernels.config import Config
from ..kernels.kept import Keep
from ..kernels.plan import Prediction, Provenance, Reason
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .constants import Constant, assumed_to_be, weakest
from .cost import Estimate, estimate
from .cudnn import Stack
from .fused import CUDNN, predicted_loop
from .identity import effective_keep


@dataclass(frozen=True)
class Host:
    """Microseconds that the host takes before the GPU has all it needs: a layer on the kernels, a call of torch's op.

    segments_us:  more, where lengths or resets have to be cut into a packed batch first.
    """

    kernels_forward_us: Constant
    kernels_training_us: Constant
    fused_forward_us: Constant
    fused_training_us: Constant
    segments_us: Constant


def _measured(value: float, source: str) -> Constant:
    return Constant(value, "us", "measured", source)


# All four from one process, in turns, the least of 12 rounds of 50 calls, processor time, 21 November 2026, with other
# work on both cores. With the machine to itself torch.nn's calls took 53 and 171.
_TINY = "one thread of an AMD EPYC, LSTM H=16 B=1 T=2"
HOST = Host(
    kernels_forward_us=_measured(80.0, f"{_TINY}: Triton's launcher on a driver that launches nothing"),
    kernels_training_us=_measured(327.0, f"{_TINY}: the same, with the backward pass"),
    fused_forward_us=_measured(71.0, f"{_TINY}: torch.nn's call on the CPU; what cuDNN does itself is left out"),
    fused_training_us=_measured(247.0, f"{_TINY}: the same, with the backward pass"),
    segments_us=assumed_to_be(300.0, "us", "some thirty small ops, and two sizes read from the GPU"),
)


class Comparison(NamedTuple):
    """A whole call, on the kernels and on torch's own op."""

    kernels: Prediction
    fused: Prediction

    @property
    def fused_is_faster(self) -> bool:
        return self.fused.us < self.kernels.us

    def __str__(self) -> str:
        return f"kernels {self.kernels}, torch's own op {self.fused}"


class Asked(NamedTuple):
    """A call that either could run.

    problem:    of a layer, forwards; length: its steps; inputs: of the first of its layers.
    trains:     a backward pass may follow; keep: what the kernels keep for it.
    projected:  proj_size > 0; packed: x is a PackedSequence.
    segments:   torch's op would run on segments, cut at lengths or resets.
    """

    problem: Problem
    length: int
    inputs: int
    layers: int = 1
    trains: bool = False
    keep: Keep = "nothing"
    projected: bool = False
    packed: bool = False
    segments: bool = False

    @property
    def stack(self) -> Stack:
        """All layers, as torch's op would have them."""
        p, packed = self.problem, self.packed or self.segments
        sizes = (p.hidden_size, p.batch_size, self.length, self.inputs, self.layers, p.directions)
        return Stack(p.cell, p.dtype, *sizes, self.projected, packed, p.precision == "tf32")

    @property
    def phases(self) -> tuple[Problem, ...]:
        return (self.problem, replace(self.problem, phase="backward")) if self.trains else (self.problem,)


class Timed(NamedTuple):
    """Microseconds a step of a layer, of all phases of a call, where the tuner has timed both."""

    kernels: float
    fused: float


@lru_cache(maxsize=4096)
def compare(
    asked: Asked, configs: tuple[Config, ...], limits: DeviceLimits, timed: Timed | None = None, cudnn: int = CUDNN
) -> Comparison:
    """Both predictions.

    configs:  one for each of the call's phases.
    timed:    what the tuner has measured in place of the models.
    """
    stack, layers = asked.stack, asked.layers
    if timed is not None:
        steps = asked.length * layers
        kernels = Prediction(steps * timed.kernels, "measured")
        fused = Prediction(steps * timed.fused, "measured")
    else:
        phases = zip(asked.phases, configs, strict=True)
        parts = [_estimate(problem, config, limits, asked.keep) for problem, config in phases]
        us = layers * sum(part.total_us(asked.length) for part in parts)
        kernels = Prediction(us, weakest(part.provenance for part in parts))
        fused = predicted_loop(stack, limits, trains=asked.trains, cudnn=cudnn)
    ours = HOST.kernels_training_us if asked.trains else HOST.kernels_forward_us
    theirs = HOST.fused_training_us if asked.trains else HOST.fused_forward_us
    cut = (HOST.segments_us,) if asked.segments else ()
    return Comparison(_with_host(kernels, layers, ours), _with_host(fused, 1, theirs, *cut))


def _estimate(problem: Problem, config: Config, limits: DeviceLimits, keep: Keep) -> Estimate:
    return estimate(problem, config, limits, keep=effective_keep(problem, keep))


def _with_host(gpu: Prediction, times: int, *host: Constant) -> Prediction:
    provenances: list[Provenance] = [gpu.provenance, *(constant.provenance for constant in host)]
    return Prediction(gpu.us + times * sum(constant.value for constant in host), weakest(provenances))


def slower(comparison: Comparison, *, batch_size: int, length: int) -> Reason:
    """Why torch's own op runs where the kernels could."""
    ours, theirs = comparison
    return Reason(
        "slower_than_fused",
        f"{length} steps of a batch of {batch_size} should take {ours} on the kernels and {theirs} on torch's own op; "
        'holdfast.backend("triton") takes the kernels all the same',
    )


LONGEST = 65536


def first_length(asked: Asked, configs: tuple[Config, ...], limits: DeviceLimits) -> int | None:
    """The fewest steps from which on the kernels should be faster; None where they are slower at `LONGEST` still."""

    def slower_at(length: int) -> bool:
        return compare(asked._replace(length=length), configs, limits).fused_is_faster

    if slower_at(LONGEST):
        return None
    low, high = 0, LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if slower_at(middle) else (low, middle)
    return high


def step_prediction(problem: Problem, config: Config, limits: DeviceLimits, keep: Keep = "nothing") -> Prediction:
    """Microseconds of one step of a loop."""
    cost = _estimate(problem, config, limits, keep)
    return Prediction(cost.step_us, cost.provenance)
