"""Mode "tune-on-miss": a layer that nobody has tuned is tuned when it first runs, in a process of its own.

Under torch.distributed rank 0 does so for all. That process is this module, too; people call `holdfast tune`:

python -m holdfast.autotune.on_miss '{"cell": "lstm", ...}' 60 cuda:0     the fields of a Key, seconds, device
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from ..kernels.resources import from_device
from . import store
from .files import user_cache
from .identity import Key, problem_of
from .measure import MeasurementRefusedError, require_gpu
from .store import Entry, Store, from_json, key_from, to_json

BUDGET_S = 60.0
"""Wall-clock seconds that a miss may take."""

WAIT = timedelta(minutes=10)
"""For rank 0, which may be busy with other layers; then the waiting rank goes on without an answer."""

_lock = threading.RLock()
_settled: set[Key] = set()
_agreed: dict[Key, Entry | None] = {}


def settle(key: Key, device: torch.device, find: Callable[[], Entry | None]) -> None:
    """Tune a key that has no result, once a process; under torch.distributed learn what rank 0 has.

    find:  this machine's result for the key, None where there is none that it can use.

    Nothing happens while a CUDA graph is captured: a later call will do it.
    """
    if key in _settled or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return
    with _lock:
        if key in _settled:
            return
        if in_a_job():
            answer = agree(f"autotune/{key.name}", lambda: _as_text(_own(key, device, find)))
            _agreed[key] = from_json(answer, "rank 0's tuning result") if answer else None
        else:
            _own(key, device, find)
        _settled.add(key)
        store.changed()


def is_agreed(key: Key) -> bool:
    """Whether the ranks of this job have one answer for a key."""
    return key in _agreed


def agreed(key: Key) -> Entry | None:
    """Rank 0's answer: its result, or none and then the heuristic's config for all."""
    return _agreed[key]


def in_a_job() -> bool:
    """Whether this process is one of several that torch.distributed holds together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agree(name: str, find: Callable[[], str], wait: timedelta = WAIT) -> str:
    """What `find` returns on rank 0, on every rank; only rank 0 calls it.

    Through the key-value store that the job was set up with, and not by a collective: ranks that meet their layers in
    another order, or a layer that others never meet, do not block each other, and no stream of communication is
    disturbed.

    name:  of the question; a job answers each once.

    Raises what `find` raises on rank 0; the others then, and where rank 0 does not answer in time, get "".
    """
    answers = dist.distributed_c10d._get_default_store()
    name = f"holdfast/{name}"
    if dist.get_rank() == 0:
        answer = ""
        try:
            answer = find()
        finally:
            answers.set(name, answer)
        return answer
    try:
        answers.wait([name], wait)
    except RuntimeError:  # DistStoreError, a RuntimeError, where the time is up
        return ""
    return answers.get(name).decode()


def _own(key: Key, device: torch.device, find: Callable[[], Entry | None]) -> Entry | None:
    """This machine's result, tuned now if there is none."""
    found = find()
    if found is None:
        problem = _tune(key, device)
        if problem:
            warnings.warn(f"holdfast: {key.name} runs untuned: {problem}", stacklevel=2)
        store.changed()
        found = find()
    return found


def _tune(key: Key, device: torch.device) -> str:
    """Tune in a process of its own, which no guard in the user's script and no open CUDA context can disturb.

    Returns what went wrong, "" where nothing did.
    """
    try:
        require_gpu(device)
    except MeasurementRefusedError as error:
        return str(error)
    index = torch.cuda.current_device() if device.index is None else device.index
    command = [sys.executable, "-m", __name__, json.dumps(key.asdict()), str(BUDGET_S), f"cuda:{index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5 * BUDGET_S, check=False)
    except subprocess.TimeoutExpired:
        return f"tuning did not end within {5 * BUDGET_S:.0f} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def _as_text(entry: Entry | None) -> str:
    return to_json(entry) if entry else ""


def main(fields: str, budget: str, device_name: str) -> None:
    """What that process does: tune a key into the user's cache. Where nothing can be timed it ends with the reason."""
    from .processes import Children, Workers
    from .tune import Setup, tune

    key = key_from(json.loads(fields))
    device = torch.device(device_name)
    try:
        require_gpu(device)
    except MeasurementRefusedError as error:
        sys.exit(str(error))
    setup = Setup(from_device(device), device, Store(user_cache()))
    with Workers(children=Children()) as workers:
        tune(problem_of(key), setup, length=key.length, budget_s=float(budget), workers=workers)


if __name__ == "__main__":
    main(*sys.argv[1:])
