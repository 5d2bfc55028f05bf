"""Whether a kernel may serve a call: the first time it has run beside torch's own op (`cells.ops.trial`), and what came
of it is remembered here, for the process and in the user's cache.

A file for each problem and fingerprint, as the tuner's results, in a folder of its own beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..kernels import executor
from ..kernels.config import Config
from ..kernels.kept import Keep
from ..kernels.problem import Problem
from ..kernels.refused import FailedFirstUseError, NotTriedError
from ..kernels.resources import DeviceLimits
from . import first_use
from .files import gpu_folder, locked, replace_file, user_cache
from .identity import Fingerprint, Key, fingerprint, key_of
from .pin import pinned_config
from .store import EntryError, changed, fingerprint_from, from_fields, key_from, read_sealed, sealed

SCHEMA = 1


class FirstUseWarning(UserWarning):
    """A kernel failed beside torch's own op, which runs in its place."""


class Question(NamedTuple):
    """problem:  its batch size does not count.
    kind:     names of what is there, for what Triton compiles a kernel of its own for.
    """

    problem: Problem
    config: Config
    keep: Keep
    kind: tuple[str, ...]


class Outcome(NamedTuple):
    """why:      the kernel is not to be used, "" for a kernel that is right.
    details:  what a report says of it.
    lasting:  True where another process would find the same.
    """

    why: str
    details: dict[str, Any]
    lasting: bool = True


@dataclass(frozen=True)
class Tried:
    """A kernel that has run beside torch's own op; when: UTC, ISO 8601; the rest as in `Question` and `Outcome`."""

    config: Config
    keep: Keep
    kind: tuple[str, ...]
    why: str
    when: str


_lock = threading.RLock()


def _in_a_child() -> None:
    """A fork has none of the threads that may hold the lock."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_in_a_child)

_settled: dict[Hashable, str] = {}
"""Why not, "" for right, of what this process has asked for."""
_warned: set[Hashable] = set()


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is captured here."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def has_to_be_tried() -> bool:
    """Whether a kernel that is about to run here has to have been tried."""
    setting = first_use._current.get()
    return setting == "always" or (setting == "first" and not executor.interpreting())


def settle(question: Question, device: torch.device, limits: DeviceLimits, run: Callable[[], Outcome]) -> None:
    """Return where the kernel may be used, after `run` if nothing is known of it.

    Raises FailedFirstUseError where it may not, NotTriedError where that cannot be found out now, and what `run`
    raises.
    """
    if not has_to_be_tried():
        return
    question = question._replace(problem=replace(question.problem, batch_size=1))
    interpreted = executor.interpreting()
    # A config that somebody has pinned says nothing of those that others run with.
    remembers = not interpreted and pinned_config() is None
    with _lock:
        place = device, interpreted, question
        why = _settled.get(place)
        if why is None:
            why = _settled[place] = _found(question, device, limits, run, remembers=remembers)
    if why:
        raise FailedFirstUseError(why, question.problem, question.config)


def _found(
    question: Question, device: torch.device, limits: DeviceLimits, run: Callable[[], Outcome], *, remembers: bool
) -> str:
    if remembers and first_use._current.get() == "first":
        known = [t for t in tried(question.problem, limits) if (t.config, t.keep, t.kind) == question[1:]]
        if known:
            _warn(question.problem, known[-1].why)
            return known[-1].why
    if capturing(device):
        raise NotTriedError(
            "no call has tried this kernel, and none can while a CUDA graph is captured: make the same call once "
            "before the capture, with a backward pass if that is captured too",
            question.problem,
        )
    why, details, lasting = run()
    if why:
        why += _reported(question, limits, why, details)
    if remembers and lasting:
        _remember(question, limits, why)
    _warn(question.problem, why)
    return why


def _warn(problem: Problem, why: str) -> None:
    if why and (problem, why) not in _warned:
        _warned.add((problem, why))
        warnings.warn(
            f"holdfast: a kernel failed its first use and torch's own op runs in its place. {why}", FirstUseWarning, 2
        )


def tried(problem: Problem, limits: DeviceLimits) -> tuple[Tried, ...]:
    """What the user's cache remembers of a problem's kernels on this GPU with this software, the oldest first.

    What is there and cannot be used is a miss, with a warning.
    """
    key, here = _identity(problem, limits)
    path = _path(key, here)
    try:
        return _read(path, key, here) if path.exists() else ()
    except (EntryError, OSError) as error:
        warnings.warn(f"holdfast: {error}; its kernels run beside torch's own op once more", FirstUseWarning, 2)
        return ()


@lru_cache(maxsize=4096)
def failed_before(problem: Problem, config: Config, limits: DeviceLimits, generation: int) -> str:
    """Why a kernel of this problem and config was found to be wrong by a process before, "" where none was.

    problem:  with a batch size of 1; generation: `store.generation`, which a cleared cache raises.
    """
    why = next((t.why for t in reversed(tried(problem, limits)) if t.why and t.config == config), "")
    _warn(problem, why)
    return why


def told(problem: Problem, config: Config | None, limits: DeviceLimits) -> str:
    """What `explain` says of a kernel that would run."""
    if not has_to_be_tried():
        return "off" if first_use._current.get() == "off" else "not in the interpreter"
    if first_use._current.get() == "always" or executor.interpreting():
        return "once in every process"
    known = [t for t in tried(problem, limits) if t.config == config]
    return f"right on {known[-1].when}" if known else "to come, with the first call"


def clear() -> int:
    """Forget what the user's cache remembers. Returns how many files were removed; reports stay."""
    files = sorted(_folder().glob("*/*.json"))
    files = [path for path in files if path.parent.name != REPORTS]
    for path in files:
        path.unlink(missing_ok=True)
    _settled.clear()
    changed()
    return len(files)


REPORTS = "reports"


def _folder() -> Path:
    return user_cache() / "first_use"


def _identity(problem: Problem, limits: DeviceLimits) -> tuple[Key, Fingerprint]:
    one = replace(problem, batch_size=1)
    return key_of(one), fingerprint(one, limits)


def _path(key: Key, here: Fingerprint) -> Path:
    return _folder() / gpu_folder(here.gpu) / f"{key.name}-{here.digest}.json"


def _read(path: Path, key: Key, here: Fingerprint) -> tuple[Tried, ...]:
    content = read_sealed(path, SCHEMA)
    try:
        if (key_from(content["key"]), fingerprint_from(content["fingerprint"])) != (key, here):
            raise EntryError(f"{path}: holds another problem or comes from another machine")
        return tuple(from_fields(Tried, row) for row in content["tried"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EntryError(f"{path}: written by another version of holdfast ({error})") from error


def _remember(question: Question, limits: DeviceLimits, why: str) -> None:
    """Add an outcome to the user's cache. Where that cannot be written to, the next process tries again."""
    key, here = _identity(question.problem, limits)
    path, new = _path(key, here), Tried(question.config, question.keep, question.kind, why, _now())
    try:
        with locked(path):
            try:
                before = _read(path, key, here) if path.exists() else ()
            except EntryError:
                before = ()
            rows = [t for t in before if t != replace(new, why=t.why, when=t.when)] + [new]
            content = {"key": key.asdict(), "fingerprint": here.asdict(), "tried": [asdict(t) for t in rows]}
            replace_file(path, sealed(content, SCHEMA))
    except (OSError, TimeoutError):
        return


def _reported(question: Question, limits: DeviceLimits, why: str, details: dict[str, Any]) -> str:
    """Write the report of a failure. Returns where it is, or why it is not, as the end of `why`."""
    from .. import __version__

    key, here = _identity(question.problem, limits)
    content = {
        "holdfast": __version__,
        "when": _now(),
        "why": why,
        "key": key.asdict(),
        "fingerprint": here.asdict(),
        "config": question.config.asdict(),
        "keep": question.keep,
        "kind": question.kind,
        "details": details,
        "note": "All numbers were drawn at random: none comes from the user's model or data.",
    }
    name = hashlib.sha256(repr(question[1:]).encode()).hexdigest()[:8]
    path = _folder() / REPORTS / f"{key.name}-{here.digest}-{name}.json"
    try:
        replace_file(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        return f" (no report: {error})"
    return f" (please send {path} to holdfast's maintainers)"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
