"""The GPUs that kernels are compiled for without having one."""

from __future__ import annotations

import re

from triton.backends.compiler import GPUTarget

from ..kernels.resources import A100, B200, H100, MI300X

REFERENCE_DEVICE = {limits.target: limits for limits in (A100, H100, B200, MI300X)}
"""The GPU that an architecture's configs are chosen for where none is present."""

TARGETS = tuple(REFERENCE_DEVICE)
"""Ampere, Hopper, Blackwell (data centre) and CDNA 3: what the compile gate covers."""


def gpu_target(name: str) -> GPUTarget:
    """Triton's target of an architecture name: "sm_90", or AMD's "gfx942".

    Raises ValueError for any other form of name.
    """
    if match := re.fullmatch(r"sm_(\d+)", name):
        return GPUTarget("cuda", int(match.group(1)), 32)
    if re.fullmatch(r"gfx9\w+", name):  # CDNA: wavefronts of 64
        return GPUTarget("hip", name, 64)
    raise ValueError(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
