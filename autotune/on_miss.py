"""Mode "tune-on-miss": a layer that nobody has tuned is tuned when it first runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import warnings

import torch

from ..kernels.layer import Keep
from ..kernels.resources import DeviceLimits
from . import store
from .agreement import agree, in_a_job
from .entry import Entry, from_json, to_json
from .key import Key, problem_of
from .lookup import Found, lookup, usable
from .measure import MeasurementRefusedError, require_gpu
from .space import keeps

BUDGET_S = 60.0
"""Wall-clock seconds that a miss may take."""

_lock = threading.RLock()
_settled: set[Key] = set()
_agreed: dict[Key, Entry | None] = {}


def settle(key: Key, device: torch.device, limits: DeviceLimits) -> None:
    """Tune a key that has no result, once a process; under torch.distributed learn what rank 0 has.

    Nothing happens while a CUDA graph is captured: a later call will do it.
    """
    if key in _settled or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return
    with _lock:
        if key in _settled:
            return
        if in_a_job():
            answer = agree(f"autotune/{key.name}", lambda: _as_text(_own(key, device, limits)))
            _agreed[key] = from_json(answer, "rank 0's tuning result") if answer else None
        else:
            _own(key, device, limits)
        _settled.add(key)
        store.changed()


def is_agreed(key: Key) -> bool:
    """Whether the ranks of this job have one answer for a key."""
    return key in _agreed


def agreed(key: Key, keep: Keep, limits: DeviceLimits) -> Found:
    """Rank 0's answer: its result, or none and then the heuristic's config for all."""
    entry = _agreed[key]
    if entry is None:
        return Found(notes=("rank 0 has no tuning result",))
    config, why = usable(entry, keep, limits)
    return Found(config, "rank 0", ()) if config else Found(notes=(f"rank 0: {why}",))


def _own(key: Key, device: torch.device, limits: DeviceLimits) -> Entry | None:
    """This machine's result, tuned now if there is none."""
    keep = keeps(problem_of(key))[0]
    found = lookup(key, keep, limits, store.generation)
    if found.config is None:
        problem = _tune(key, device)
        if problem:
            warnings.warn(f"holdfast: {key.name} runs untuned: {problem}", stacklevel=2)
        store.changed()
        found = lookup(key, keep, limits, store.generation)
    return found.entry


def _tune(key: Key, device: torch.device) -> str:
    """Tune in a process of its own, which no guard in the user's script and no open CUDA context can disturb.

    Returns what went wrong, "" where nothing did.
    """
    try:
        require_gpu(device)
    except MeasurementRefusedError as error:
        return str(error)
    index = torch.cuda.current_device() if device.index is None else device.index
    command = [
        sys.executable,
        "-m",
        "holdfast.autotune.tune_key",
        json.dumps(key.asdict()),
        str(BUDGET_S),
        f"cuda:{index}",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5 * BUDGET_S, check=False)
    except subprocess.TimeoutExpired:
        return f"tuning did not end within {5 * BUDGET_S:.0f} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def _as_text(entry: Entry | None) -> str:
    return to_json(entry) if entry else ""
