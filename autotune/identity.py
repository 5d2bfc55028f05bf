"""What counts as the same problem, and where a result about it holds.

A `Key` names the problem, with batch and length in coarse classes; a `Fingerprint` names GPU, software and source.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import triton

from ..kernels.cell_spec import find_cell
from ..kernels.layer import Keep, keeps_values
from ..kernels.problem import Phase, Precision, Problem
from ..kernels.resources import DeviceLimits
from .source import source_digest

LengthClass = Literal["short", "long"]

SHORT = 32
"""Sequences of fewer steps are short: there the launch and the first read of W_hh weigh as much as the steps."""

SMALLEST_BATCH = 16
"""Batches up to this are one class: no tile has fewer rows."""


@dataclass(frozen=True)
class Key:
    """What a config is tuned for. Lengths and batch sizes of one class share one result; the dtype is its name."""

    cell: str
    phase: Phase
    dtype: str
    precision: Precision
    hidden_size: int
    directions: int
    features: tuple[str, ...]
    batch: int
    length: LengthClass

    def asdict(self) -> dict[str, Any]:
        return asdict(self) | {"features": list(self.features)}

    @property
    def name(self) -> str:
        """Readable, short, and another for every other key: the digest covers what the words leave out."""
        text = f"{self.cell}-{self.phase}-{self.dtype}-h{self.hidden_size}-b{self.batch}-{self.length}"
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in text) + f"-{_digest(self.asdict(), 8)}"


def key_of(problem: Problem, length: int | None = None) -> Key:
    """The key of a problem; without a length, that of long sequences."""
    return Key(
        problem.cell,
        problem.phase,
        str(problem.dtype).removeprefix("torch."),
        problem.precision,
        problem.hidden_size,
        problem.directions,
        problem.features,
        batch_class(problem.batch_size),
        length_class(length),
    )


def batch_class(batch_size: int) -> int:
    """The largest batch of the class: 16, 32, 64, ... A result is tuned for that batch."""
    # int: torch.jit.trace has tensors for sizes.
    return max(SMALLEST_BATCH, 1 << (int(batch_size) - 1).bit_length()) if batch_size > 0 else SMALLEST_BATCH


def length_class(length: int | None) -> LengthClass:
    return "short" if length is not None and length < SHORT else "long"


def problem_of(key: Key) -> Problem:
    """The problem that stands for a class: its largest batch."""
    return Problem(
        key.cell,
        getattr(torch, key.dtype),
        key.hidden_size,
        key.batch,
        key.directions,
        key.precision,
        key.phase,
        key.features,
    )


def keeps(problem: Problem) -> tuple[Keep, ...]:
    """The ways to keep values for the backward pass that make a difference to this loop, the usual one first."""
    save: tuple[Keep, ...] = ("save",) if keeps_values(problem, "save") else ()
    # A cell with two products keeps its values whatever is asked for.
    recompute: tuple[Keep, ...] = () if keeps_values(problem, "recompute") else ("recompute",)
    if problem.phase == "backward":
        return save + recompute
    return ("nothing", *save, *(recompute if find_cell(problem.cell).states > 1 else ()))


def usual_keep(problem: Problem) -> Keep:
    """What is tuned first, and looked for where nobody says otherwise: nothing forwards, "save" backwards."""
    return keeps(problem)[0]


def effective_keep(problem: Problem, keep: Keep) -> Keep:
    """The one of `keeps(problem)` that does the same as `keep`: an RNN has nothing to save beyond its outputs."""
    options = keeps(problem)
    if keep in options:
        return keep
    if keep == "recompute" and keeps_values(problem, keep):
        return "save"
    return "recompute" if problem.phase == "backward" else "nothing"


@dataclass(frozen=True)
class Fingerprint:
    """gpu:               name, as the driver reports it.
    arch:              "sm_90", "gfx942".
    num_sms:           SMs that the process may use.
    shared_per_block:  bytes of shared memory that a program may have.
    driver:            of the GPU; "none" where there is none.
    cuda:              that torch was built for; "none" for a CPU build.
    torch, triton:     versions.
    source:            digest of the kernels, see `source.source_digest`.
    """

    gpu: str
    arch: str
    num_sms: int
    shared_per_block: int
    driver: str
    cuda: str
    torch: str
    triton: str
    source: str

    def asdict(self) -> dict[str, str | int]:
        return asdict(self)

    @property
    def digest(self) -> str:
        return _digest(self.asdict(), 12)


SHIPPED_MAY_DIFFER = frozenset({"driver", "cuda", "torch"})
"""Fields in which a shipped result may differ: they change launches, not the kernel that Triton compiles."""


def fingerprint(problem: Problem, limits: DeviceLimits) -> Fingerprint:
    """The fingerprint of a problem's kernels on a GPU with this machine's software."""
    return Fingerprint(
        limits.name,
        limits.target,
        limits.num_sms,
        limits.shared_per_block,
        driver_version(),
        torch.version.cuda or "none",
        torch.__version__,
        triton.__version__,
        _source(replace(problem, hidden_size=64, batch_size=1)),  # no code depends on these two
    )


_source = lru_cache(maxsize=1024)(source_digest)


@cache
def driver_version() -> str:
    """NVIDIA's kernel driver, "580.82.07"; "none" without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "none"
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else "unknown"


def _digest(fields: dict[str, Any], digits: int) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:digits]
