"""Which config runs: the one pinned by the caller, else the heuristic's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from ..kernels.config import Config
from ..kernels.executor import interpreting
from ..kernels.plan import Plan, Reason
from ..kernels.problem import Problem
from ..kernels.resources import H100, DeviceLimits, from_device
from .heuristic import choose

_pinned: ContextVar[Config | None] = ContextVar("holdfast_pinned_config", default=None)


@contextmanager
def pinned(config: Config) -> Iterator[None]:
    """Run every layer of this block with `config`, whatever the heuristic would say."""
    token = _pinned.set(config)
    try:
        yield
    finally:
        _pinned.reset(token)


def select(problem: Problem, device: torch.device) -> Plan:
    """The path of a problem on a device. Without a GPU, in the interpreter, the imagined GPU is an H100."""
    if torch.version.hip and device.type == "cuda":
        return Plan(problem, "eager", reasons=(_ROCM,))
    return select_for(problem, H100 if interpreting() else _limits(device))


def select_for(problem: Problem, limits: DeviceLimits) -> Plan:
    """The path of a problem on a GPU that need not be there."""
    config = _pinned.get()
    if config is not None:
        return Plan(problem, config.regime, config, origin="pinned")
    choice = choose(problem, limits)
    if isinstance(choice, Reason):
        return Plan(problem, "eager", reasons=(choice,))
    return Plan(problem, choice.regime, choice, origin="heuristic")


_ROCM = Reason("rocm_unverified", "the kernels compile for AMD GPUs, but nobody has run them on one")

_limits = lru_cache(maxsize=None)(from_device)
