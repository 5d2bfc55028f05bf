"""A tuning result from the user's cache or from those shipped, or why there is none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from ..kernels.config import Config
from ..kernels.describe import least_grid
from ..kernels.layer import Keep
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits, resident_programs
from .entry import Entry, EntryError, Timing
from .fingerprint import SHIPPED_MAY_DIFFER, Fingerprint, fingerprint
from .folders import SHIPPED, user_cache
from .key import Key, problem_of
from .store import Store

Field = str | int | tuple[str, ...]


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
    """The tuned config of a key.

    generation:  `store.generation`; results are kept until it changes.

    Warns with UnusableEntryWarning of a file that should hold the result and cannot be used.
    """
    here = fingerprint(problem_of(key), limits)
    notes = []
    for origin, store in stores():
        try:
            entry = _load(origin, store, key, here)
        except EntryError as error:
            notes.append(f"{origin}: {error}")
            warnings.warn(f"holdfast: {notes[-1]}; clear it with `holdfast tune --clear`", UnusableEntryWarning, 2)
            continue
        if entry is None:
            continue
        config, why = usable(entry, keep, limits)
        if config is not None:
            return Found(config, origin, tuple(notes), entry)
        notes.append(f"{origin}: {why}")
    return Found(notes=tuple(notes))


def stores() -> tuple[tuple[str, Store], ...]:
    """Where results are looked for, in this order."""
    return ("user cache", Store(user_cache())), ("shipped", Store(SHIPPED))


def _load(origin: str, store: Store, key: Key, here: Fingerprint) -> Entry | None:
    if origin == "user cache":
        return store.load(key, here)
    return store.load_any(key, here.gpu, lambda there: not set(_different(there, here)) - SHIPPED_MAY_DIFFER)


def usable(entry: Entry, keep: Keep, limits: DeviceLimits) -> tuple[Config | None, str]:
    """The entry's best config for this GPU, or why there is none."""
    best = entry.best(keep)
    if best is None:
        return None, f"the entry of {entry.key.name} has no complete timing with keep={keep!r}"
    why = cannot_run(problem_of(entry.key), best, limits)
    return (None, f"{best.config} {why}") if why else (best.config, "")


def cannot_run(problem: Problem, timing: Timing, limits: DeviceLimits) -> str | None:
    """Why a config cannot run on this GPU, from what its compiled kernel needed where it was tuned.

    A team that is not resident as a whole would wait for ever; `launch` looks once more at the kernel itself.
    """
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
    here = fingerprint(problem_of(key), limits)
    wanted = _fields(key, here)
    notes = []
    for origin, store in stores():
        may_differ = SHIPPED_MAY_DIFFER if origin == "shipped" else frozenset()
        distances = []
        for _, entry in store.entries():
            if isinstance(entry, EntryError):
                continue
            found = _fields(entry.key, entry.fingerprint)
            different = [name for name in wanted if found[name] != wanted[name] and name not in may_differ]
            distances.append((len(different), entry.key.cell != key.cell, different, found))
        if distances and (nearest := min(distances, key=lambda d: d[:2]))[0] > 0:
            _, _, different, found = nearest
            differences = ", ".join(f"{name} (there {found[name]}, here {wanted[name]})" for name in different)
            notes.append(f"{origin}: the nearest of {len(distances)} entries differs in {differences}")
    return tuple(notes)


def _fields(key: Key, where: Fingerprint) -> dict[str, Field]:
    return {**{name: tuple(v) if isinstance(v, list) else v for name, v in key.asdict().items()}, **where.asdict()}


def _different(one: Fingerprint, other: Fingerprint) -> Iterator[str]:
    theirs = other.asdict()
    return (name for name, value in one.asdict().items() if value != theirs[name])
