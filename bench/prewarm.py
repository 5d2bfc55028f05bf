"""Compile the kernels of many cases in parallel before any is timed: Triton keeps them on disk for the main process.

A kernel depends on neither T nor B, so a short sequence compiles the very kernels of a long one. One after the other,
the compiler would take most of the time that a GPU is lent for.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import replace

import torch

from .case import Case, Phase
from .floor import measure_floor
from .numbers import Numbers
from .providers import Holdfast

STEPS = 32
"""Long enough to count as a long sequence where a config is chosen (autotune.key)."""

MOST_PROCESSES = 8


def prewarm(cases: Sequence[Case], processes: int | None = None) -> int:
    """Run every distinct case once on a few steps, in processes of their own; how many ran.

    A case that fails here fails again, with its reason, where it is measured.
    """
    short = list(dict.fromkeys(replace(case, length=min(case.length, STEPS)) for case in cases))
    workers = processes or min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) // 2), len(short))
    ran = 0
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for done in pool.map(_runs, short):
                ran += done
    except BrokenExecutor:  # a process died: its kernels are compiled when they are measured
        pass
    return ran


def _runs(case: Case) -> bool:
    try:
        run_once(case, torch.device("cuda"))
    except Exception:
        return False
    return True


def run_once(case: Case, device: torch.device) -> None:
    """Both passes of a case through holdfast, and on a GPU the floors of its configs."""
    numbers = Numbers(case, device)
    phases: tuple[Phase, ...] = ("forward", "training")
    for phase in phases:
        prepared = Holdfast().prepare(numbers, phase)
        prepared.call(0)
        for plan in (prepared.plan, prepared.plan.backward if prepared.plan else None):
            if plan is not None and plan.config is not None and device.type == "cuda":
                measure_floor(plan.problem, plan.config, device, steps=2)
