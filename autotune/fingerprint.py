"""Where a tuning result holds: this GPU, this driver and toolchain, this source."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
import triton

from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .source import source_digest


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
        return hashlib.sha256(json.dumps(self.asdict(), sort_keys=True).encode()).hexdigest()[:12]


SHIPPED_MAY_DIFFER = frozenset({"driver", "cuda", "torch"})
"""Fields in which a shipped result may differ: they change launches, not the kernel that Triton compiles."""


def fingerprint(problem: Problem, limits: DeviceLimits) -> Fingerprint:
    """The fingerprint of a problem's kernels on a GPU with this machine's software."""
    loop = (problem.cell, problem.phase, problem.dtype, problem.precision, problem.directions, problem.features)
    return Fingerprint(
        limits.name,
        limits.target,
        limits.num_sms,
        limits.shared_per_block,
        driver_version(),
        torch.version.cuda or "none",
        torch.__version__,
        triton.__version__,
        _source(*loop),
    )


@lru_cache(maxsize=1024)
def _source(cell, phase, dtype, precision, directions, features):  # type: ignore[no-untyped-def]
    return source_digest(Problem(cell, dtype, 64, 1, directions, precision, phase, features))


@cache
def driver_version() -> str:
    """NVIDIA's kernel driver, "580.82.07"; "none" without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "none"
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else "unknown"
