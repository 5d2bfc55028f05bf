"""Which config runs: the one pinned by the caller, else the user's tuning result, else a shipped one, else the
heuristic's.

Downwards from `select`, which every layer asks, to the entry that is looked up and what is said where none is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from ..kernels.config import Config
from ..kernels.describe import least_grid
from ..kernels.executor import interpreting, substitute
from ..kernels.kept import Keep
from ..kernels.plan import Plan, Reason
from ..kernels.problem import Phase, Problem
from ..kernels.refused import FailedFirstUseError, RefusedError
from ..kernels.resources import H100, DeviceLimits, from_device, resident_programs
from . import current_mode, first_use, mode, on_miss, store
from .candidates import choose
from .faster import Asked, Comparison, Timed, compare, step_prediction
from .files import SHIPPED, user_cache
from .fused import cudnn_here
from .identity import (
    SHIPPED_MAY_DIFFER,
    Fingerprint,
    Key,
    LengthClass,
    effective_keep,
    fingerprint,
    key_of,
    length_class,
    problem_of,
    usual_keep,
)
from .pin import (  # noqa: F401
    _pinned,
    _slower_too,
    asks_for_the_faster,
    pin_of,
    pinned,
    pinned_config,
    remember_pin,
)
from .store import Entry, EntryError, Store, Timing
from .tried import failed_before, has_to_be_tried, told  # noqa: F401  the ops ask this module alone


def select(
    problem: Problem,
    device: torch.device,
    *,
    keep: Keep | None = None,
    length: int | None = None,
    may_tune: bool = False,
    refused_too: bool = False,
) -> Plan:
    """The path of a problem on a device. Without a GPU, in the interpreter, the imagined GPU is an H100.

    keep:      what the loop stores, or reads, for the backward pass; None: nothing forwards, "save" backwards.
    length:    steps of the sequence; None: many.
    may_tune:  the layer is about to run, so that mode "tune-on-miss" may tune it.
    refused_too:  also a config whose kernel is known to be wrong here.
    """
    if torch.version.hip and device.type == "cuda":
        return Plan(problem, "eager", reasons=(_ROCM,))
    if _refused and pinned_config() is None and (reason := _refused.get(_place(problem, None, device))):
        return Plan(problem, "eager", reasons=(reason,))
    limits = limits_of(device)
    if may_tune and current_mode() == "tune-on-miss" and pinned_config() is None:
        key = key_of(problem, length)
        on_miss.settle(key, device, lambda: lookup(key, usual_keep(problem), limits, store.generation).entry)
    plan = select_for(problem, limits, keep=keep, length=length)
    if plan.config is not None and pinned_config() is None and not refused_too:
        reason = _refusal(problem, plan.config, device, limits)
        if reason is not None:
            return Plan(problem, "eager", reasons=(reason,))
    return plan


def _refusal(problem: Problem, config: Config, device: torch.device, limits: DeviceLimits) -> Reason | None:
    """Why the kernel of a problem and config is not to be used here."""
    reason = _refused.get(_place(problem, config, device)) if _refused else None
    if reason is None and first_use.current() == "first" and not interpreting():
        why = failed_before(replace(problem, batch_size=1), config, limits, store.generation)
        reason = Reason(FailedFirstUseError.reason, why) if why else None
    return reason


def settings() -> tuple[Hashable, ...]:
    """What a plan depends on besides its problem and its GPU: other settings, perhaps another plan."""
    # As `pinned_config`, `asks_for_the_faster` and so on, without their frames: every call asks.
    return _pinned.get(), _slower_too.get(), mode._current.get(), store.generation, first_use._current.get()


_refused: dict[tuple[Any, ...], Reason] = {}


def _place(problem: Problem, config: Config | None, device: torch.device) -> tuple[Any, ...]:
    return device, substitute(), replace(problem, batch_size=0), config


def refuse(error: RefusedError, device: torch.device) -> bool:
    """Remember, where it lasts, that the problem's kernel of this config, or of any, does not run on this device,
    whatever its batch size: `select` says so from now on. False where the caller has pinned the config and should hear
    of it."""
    if pinned_config() is not None:
        return False
    if error.lasting:
        _refused[_place(error.problem, error.config, device)] = Reason(error.reason, str(error))
        store.changed()
    return True


def failed_here(problem: Problem, device: torch.device) -> bool:
    """Whether a kernel of this problem, of any config, has failed its first use on this device, in this process."""
    of_problem = _place(problem, None, device)[:-1]
    return any(
        place[:-1] == of_problem and reason.name == FailedFirstUseError.reason for place, reason in _refused.items()
    )


def limits_of(device: torch.device) -> DeviceLimits:
    """What the device has; in the interpreter an H100."""
    return H100 if interpreting() else _limits(device)


def select_for(problem: Problem, limits: DeviceLimits, *, keep: Keep | None = None, length: int | None = None) -> Plan:
    """The path of a problem on a GPU that need not be there. Nothing is tuned."""
    config = pinned_config()
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
    effective = effective_keep(problem, keep) if keep else usual_keep(problem)
    found = Found()
    if mode == "tune-on-miss" and on_miss.is_agreed(key):
        entry = on_miss.agreed(key)
        found = _usable(entry, "rank 0", effective, limits) if entry else Found(notes=("rank 0 has no tuning result",))
    elif mode != "off":
        found = lookup(key, effective, limits, generation)
    if found.config is not None:
        return Plan(problem, found.config.regime, found.config, origin=found.origin)
    return Plan(problem, choice.regime, choice, origin="heuristic")


def explained(plan: Plan, device: torch.device | DeviceLimits, *, length: int | None = None) -> Plan:
    """The plan with what a step should take, and notes why no tuning result is used, a sentence a cause.

    Reads every entry there is: for people who ask, not for every call.
    """
    if plan.config is None:
        return plan
    limits = device if isinstance(device, DeviceLimits) else limits_of(device)
    plan = replace(plan, step=step_prediction(plan.problem, plan.config, limits, usual_keep(plan.problem)))
    if plan.origin != "heuristic":
        return plan
    if current_mode() == "off":
        return replace(plan, notes=('autotune.mode is "off": no tuning result is looked for',))
    key = key_of(plan.problem, length)
    found = lookup(key, usual_keep(plan.problem), limits, store.generation)
    return replace(plan, notes=found.notes + near_misses(key, limits))


_ROCM = Reason("rocm_unverified", "the kernels compile for AMD GPUs, but nobody has run them on one")

_limits = cache(from_device)


TRAINING: tuple[Keep, ...] = ("save", "recompute")
PHASES: tuple[Phase, ...] = ("forward", "backward")


def faster_keep(problem: Problem, limits: DeviceLimits, *, length: int | None = None) -> Keep | None:
    """The `keep` whose forward and backward pass together took less time where this problem was tuned.

    None where tuning results are off, or not both phases were timed with both. Memory is not asked about.
    """
    if current_mode() == "off":
        return None
    keys = tuple(key_of(replace(problem, phase=phase), length) for phase in PHASES)
    return _faster(problem, keys, limits, store.generation)


@lru_cache(maxsize=1024)
def _faster(problem: Problem, keys: tuple[Key, ...], limits: DeviceLimits, generation: int) -> Keep | None:
    times: dict[Keep, float] = {}
    for keep in TRAINING:
        total = 0.0
        for phase, key in zip(PHASES, keys, strict=True):
            effective = effective_keep(replace(problem, phase=phase), keep)
            entry = lookup(key, effective, limits, generation).entry
            best = entry.best(effective) if entry is not None else None
            if best is None:
                return None
            total += best.p50_us
        times[keep] = total
    return min(times, key=times.__getitem__)


def compare_for(asked: Asked, device: torch.device) -> Comparison | None:
    """What a call is expected to take on the kernels and on torch's own op.

    None where nobody asks for the faster one: a config or the kernels are pinned, the kernels run on no such device, or
    mode "tune-on-miss" is to time both first.
    """
    if not asks_for_the_faster() or (torch.version.hip and device.type == "cuda"):
        return None
    return compare_on(asked, limits_of(device))


def compare_on(asked: Asked, limits: DeviceLimits) -> Comparison | None:
    """`compare_for` a GPU that need not be there."""
    mode, length = current_mode(), length_class(asked.length)
    plans = [select_for(problem, limits, keep=asked.keep, length=asked.length) for problem in asked.phases]
    configs = tuple(plan.config for plan in plans if plan.config is not None)
    if len(configs) < len(plans):
        return None
    timed = None
    # What torch's op was timed with is one dense layer; a single direction or both.
    if mode != "off" and not (asked.projected or asked.packed or asked.segments):
        timed = _timed(asked.phases, asked.keep, length, limits, mode, store.generation)
        if timed is None and mode == "tune-on-miss":
            return None
    return compare(asked, configs, limits, timed, cudnn_here())


@lru_cache(maxsize=4096)
def _timed(
    phases: tuple[Problem, ...], keep: Keep, length: LengthClass, limits: DeviceLimits, mode: str, generation: int
) -> Timed | None:
    """Measured times of a step of all phases, None where not both were timed in each."""
    kernels = fused = 0.0
    for problem in phases:
        key, effective = replace(key_of(problem), length=length), effective_keep(problem, keep)
        if mode == "tune-on-miss" and on_miss.is_agreed(key):
            entry = on_miss.agreed(key)
        else:
            entry = lookup(key, effective, limits, generation).entry
        ours, theirs = (entry.best(effective), entry.fused(effective)) if entry is not None else (None, None)
        if ours is None or theirs is None:
            return None
        kernels += ours.p50_us / ours.length
        fused += theirs.p50_us / theirs.length
    return Timed(kernels, fused)


class UnusableEntryWarning(UserWarning):
    """A tuning result was found and cannot be used; the heuristic's config runs in its place."""


class Found(NamedTuple):
    """config and origin ("user cache", "shipped"), or neither; notes say what was there and not used."""

    config: Config | None = None
    origin: str = ""
    notes: tuple[str, ...] = ()
    entry: Entry | None = None


@lru_cache(maxsize=4096)
def lookup(key: Key, keep: Keep, limits: DeviceLimits, generation: int) -> Found:
    """The tuned config of a key, from the user's cache or from those shipped, or why there is none.

    generation:  `store.generation`; results are kept until it changes.

    Warns with UnusableEntryWarning of a file that should hold the result and cannot be used.
    """
    here = fingerprint(problem_of(key), limits)
    notes: tuple[str, ...] = ()
    for origin, place in stores():
        try:
            entry = _load(origin, place, key, here)
        except EntryError as error:
            notes += (f"{origin}: {error}",)
            warnings.warn(f"holdfast: {notes[-1]}; clear it with `holdfast tune --clear`", UnusableEntryWarning, 2)
            continue
        if entry is None:
            continue
        found = _usable(entry, origin, keep, limits)
        if found.config is not None:
            return found._replace(notes=notes)
        notes += found.notes
    return Found(notes=notes)


def stores() -> tuple[tuple[str, Store], ...]:
    """Where results are looked for, in this order."""
    return ("user cache", Store(user_cache())), ("shipped", Store(SHIPPED))


def _load(origin: str, place: Store, key: Key, here: Fingerprint) -> Entry | None:
    if origin == "user cache":
        return place.load(key, here)
    wanted = here.asdict()
    return place.load_any(key, here.gpu, lambda there: not _differences(wanted, there.asdict(), SHIPPED_MAY_DIFFER))


def _usable(entry: Entry, origin: str, keep: Keep, limits: DeviceLimits) -> Found:
    """The entry's best config for this GPU, or why there is none."""
    best = entry.best(keep)
    if best is None:
        return Found(notes=(f"{origin}: the entry of {entry.key.name} has no complete timing with keep={keep!r}",))
    why = cannot_run(problem_of(entry.key), best, limits)
    return Found(notes=(f"{origin}: {best.config} {why}",)) if why else Found(best.config, origin, (), entry)


def cannot_run(problem: Problem, timing: Timing, limits: DeviceLimits) -> str | None:
    """Why a config cannot run on this GPU, from what its compiled kernel needed where it was tuned.

    A team that is not resident as a whole would wait for ever; `launch` looks once more at the kernel itself.
    """
    assert timing.config is not None
    if timing.shared > limits.shared_per_block:
        return f"needs {timing.shared} bytes of shared memory, {limits.name} gives {limits.shared_per_block}"
    need = least_grid(problem, timing.config)
    resident = resident_programs(
        limits, registers=timing.registers, num_warps=timing.config.num_warps, shared=timing.shared
    )
    if resident < need:
        return f"needs {need} programs resident at once, {limits.name} holds {resident}"
    return None


def near_misses(key: Key, limits: DeviceLimits) -> tuple[str, ...]:
    """For each store that has entries but not this one: the nearest, and every field in which it differs."""
    wanted = _fields(key, fingerprint(problem_of(key), limits))
    notes = []
    for origin, place in stores():
        may_differ = SHIPPED_MAY_DIFFER if origin == "shipped" else frozenset()
        entries = []
        for _, entry in place.entries():
            if not isinstance(entry, EntryError):
                found = _fields(entry.key, entry.fingerprint)
                entries.append((_differences(wanted, found, may_differ), entry.key.cell != key.cell, found))
        if not entries:
            continue
        different, _, found = min(entries, key=lambda e: (len(e[0]), e[1]))
        if different:
            words = ", ".join(f"{name} (there {found[name]}, here {wanted[name]})" for name in different)
            notes.append(f"{origin}: the nearest of {len(entries)} entries differs in {words}")
    return tuple(notes)


def _fields(key: Key, where: Fingerprint) -> dict[str, Any]:
    return key.asdict() | {"features": key.features, "num_heads": key.num_heads} | where.asdict()


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], may_differ: frozenset[str]) -> list[str]:
    return [name for name, value in wanted.items() if found[name] != value and name not in may_differ]
