"""Which config runs: the one pinned by the caller, else the user's tuning result, else a shipped one, else the
heuristic's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache, lru_cache

import torch

from ..kernels.config import Config
from ..kernels.executor import interpreting
from ..kernels.layer import Keep
from ..kernels.plan import Plan, Reason
from ..kernels.problem import Problem
from ..kernels.resources import H100, DeviceLimits, from_device
from . import on_miss, store
from .heuristic import choose
from .key import LengthClass, key_of, length_class
from .lookup import Found, lookup, near_misses
from .modes import current_mode
from .space import effective_keep

_pinned: ContextVar[Config | None] = ContextVar("holdfast_pinned_config", default=None)


@contextmanager
def pinned(config: Config) -> Iterator[None]:
    """Run every layer of this block with `config`, whatever has been tuned and whatever the heuristic would say."""
    token = _pinned.set(config)
    try:
        yield
    finally:
        _pinned.reset(token)


def select(
    problem: Problem,
    device: torch.device,
    *,
    keep: Keep | None = None,
    length: int | None = None,
    may_tune: bool = False,
) -> Plan:
    """The path of a problem on a device. Without a GPU, in the interpreter, the imagined GPU is an H100.

    keep:      what the loop stores, or reads, for the backward pass; None: nothing forwards, "save" backwards.
    length:    steps of the sequence; None: many.
    may_tune:  the layer is about to run, so that mode "tune-on-miss" may tune it.
    """
    if torch.version.hip and device.type == "cuda":
        return Plan(problem, "eager", reasons=(_ROCM,))
    limits = limits_of(device)
    if may_tune and current_mode() == "tune-on-miss" and _pinned.get() is None:
        on_miss.settle(key_of(problem, length), device, limits)
    return select_for(problem, limits, keep=keep, length=length)


def limits_of(device: torch.device) -> DeviceLimits:
    """What the device has; in the interpreter an H100."""
    return H100 if interpreting() else _limits(device)


def select_for(problem: Problem, limits: DeviceLimits, *, keep: Keep | None = None, length: int | None = None) -> Plan:
    """The path of a problem on a GPU that need not be there. Nothing is tuned."""
    config = _pinned.get()
    if config is not None:
        return Plan(problem, config.regime, config, origin="pinned")
    return _plan(problem, limits, keep, length_class(length), current_mode(), store.generation)


@lru_cache(maxsize=4096)
def _plan(
    problem: Problem, limits: DeviceLimits, keep: Keep | None, length: LengthClass, mode: str, generation: int
) -> Plan:
    # Only what the heuristic can run has a kernel at all: modules ask once for all batch sizes and lengths.
    choice = choose(problem, limits)
    if isinstance(choice, Reason):
        return Plan(problem, "eager", reasons=(choice,))
    # A key has no exact batch size, so that a new one costs a look into memory and not into a file.
    key = replace(key_of(problem), length=length)
    effective = effective_keep(problem, keep) if keep else _usual_keep(problem)
    found = Found()
    if mode == "tune-on-miss" and on_miss.is_agreed(key):
        found = on_miss.agreed(key, effective, limits)
    elif mode != "off":
        found = lookup(key, effective, limits, generation)
    if found.config is not None:
        return Plan(problem, found.config.regime, found.config, origin=found.origin)
    return Plan(problem, choice.regime, choice, origin="heuristic")


def explained(plan: Plan, device: torch.device | DeviceLimits, *, length: int | None = None) -> Plan:
    """The plan with notes why no tuning result is used, a sentence a cause.

    Reads every entry there is: for people who ask, not for every call.
    """
    if plan.origin != "heuristic":
        return plan
    if current_mode() == "off":
        return replace(plan, notes=('autotune.mode is "off": no tuning result is looked for',))
    limits = device if isinstance(device, DeviceLimits) else H100 if interpreting() else _limits(device)
    key = key_of(plan.problem, length)
    found = lookup(key, _usual_keep(plan.problem), limits, store.generation)
    return replace(plan, notes=found.notes + near_misses(key, limits))


def _usual_keep(problem: Problem) -> Keep:
    return effective_keep(problem, "nothing" if problem.phase == "forward" else "save")


_ROCM = Reason("rocm_unverified", "the kernels compile for AMD GPUs, but nobody has run them on one")

_limits = cache(from_device)
