"""Compile the kernels of many cases in parallel before any is timed: Triton keeps them on disk for the main process.

A kernel depends on neither T nor B, so a short sequence compiles the very kernels of a long one. One after the other,
the compiler would take most of the time that a GPU is lent for.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace

import torch

from ...autotune.pin import kernels_where_they_can
from ...autotune.processes import import_modules, modules_of_own_cells
from ..method.case import Case, Phase
from ..method.floor import measure_floor
from ..method.numbers import Numbers
from ..providers.holdfast import Holdfast

STEPS = 32
"""Long enough to count as a long sequence where a config is chosen (autotune.identity)."""

MOST_PROCESSES = 8


class Prewarm:
    """A pool of processes that run cases once, so that their kernels are compiled; without a GPU it does nothing."""

    def __init__(self, device: torch.device) -> None:
        workers = min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) // 2))
        context = multiprocessing.get_context("spawn")
        own_cells = (import_modules, (modules_of_own_cells(),))
        self._pool = ProcessPoolExecutor(workers, context, *own_cells) if device.type == "cuda" else None
        self._done: set[Case] = set()

    def __enter__(self) -> Prewarm:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, cases: Sequence[Case]) -> None:
        """Compile the kernels of these cases. A case that fails here fails again where it is measured."""
        new = [case for case in dict.fromkeys(map(kernels_alike, cases)) if case not in self._done]
        self._done.update(new)
        if self._pool is None:
            return
        try:
            list(self._pool.map(_runs, new))
        except BrokenExecutor:  # a process died: what is left is compiled when it is measured
            self._pool = None


def kernels_alike(case: Case) -> Case:
    """A quick case with the same kernels: few steps, and the batch in whole tiles of 16, at most four."""
    return replace(case, length=min(case.length, STEPS), batch_size=16 * min(4, -(-case.batch_size // 16)))


def _runs(case: Case) -> None:
    with suppress(Exception):
        run_once(case, torch.device("cuda"))


def run_once(case: Case, device: torch.device) -> None:
    """Both passes of a case through holdfast, and on a GPU the floors of its configs: all the kernels of a case."""
    numbers = Numbers(case, device)
    phases: tuple[Phase, ...] = ("forward", "training")
    for phase in phases:
        with kernels_where_they_can():  # so few steps would run on torch's own op
            prepared = Holdfast().prepare(numbers, phase)
            prepared.call(0)
        for plan in (prepared.plan, prepared.plan.backward if prepared.plan else None):
            if plan is not None and plan.config is not None and device.type == "cuda":
                measure_floor(plan.problem, plan.config, device, steps=2)
