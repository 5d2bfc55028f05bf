"""Run candidates in a child process that can be killed: one that waits for ever costs its time-out and no more."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch

from .job import Job, Result
from .own_cells import import_modules, modules_of_own_cells

TIMEOUT_S = 60.0
"""For one candidate, compilation included. A wait in a kernel ends by itself after about a second."""


class MeasurementRefusedError(RuntimeError):
    """Nothing can be timed here."""


def require_gpu(device: torch.device) -> None:
    """Raise MeasurementRefusedError where there is no GPU to time on."""
    if device.type != "cuda" or not torch.cuda.is_available():
        raise MeasurementRefusedError(
            f"no kernel can be timed on {device}: torch sees no NVIDIA GPU here. "
            "`holdfast tune --rehearse` does everything but the timing, without one."
        )
    if torch.version.hip:
        raise MeasurementRefusedError("no kernel has run on an AMD GPU yet: the modules run torch's own op there.")


class Child:
    """A process that runs jobs one after the other and is replaced when it dies or is killed."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._process: Any = None
        self._connection: Connection | None = None

    def run(self, job: Job, timeout_s: float | None = None) -> Result:
        """The result of a job within `timeout_s` seconds (default: those of the constructor)."""
        connection = self._start()
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            connection.send(job)
            if not connection.poll(limit):
                self.close()
                return Result("killed", f"no result within {limit:.3g} s")
            return connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            status = self._process.exitcode
            self.close()
            return Result("failed", f"its process died with status {status}")

    def _start(self) -> Connection:
        if self._connection is None:
            # Spawned: a forked process cannot use CUDA.
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, modules_of_own_cells()), daemon=True, name="holdfast tuner"
            )
            self._process.start()
            theirs.close()
            if not self._connection.poll(120):  # torch and Triton take seconds to import
                self.close()
                raise RuntimeError(
                    "the tuner's child process did not start within 120 s; is the machine out of memory?"
                )
            try:
                self._connection.recv()
            except EOFError:
                self.close()
                raise RuntimeError(
                    "the tuner's child process ended before it had started: see its error above"
                ) from None
        return self._connection

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Children:
    """Several processes that run jobs side by side, for their compilations alone.

    A launch compiles in its own process, one kernel after the other; run here before, it finds them in Triton's disk
    cache. Results are left aside: what runs beside others may wait longer than it would alone.
    """

    def __init__(self, count: int | None = None) -> None:
        self._children = [Child() for _ in range(count or max(1, min(8, (os.cpu_count() or 1) // 2)))]

    def run_all(self, jobs: Sequence[Job], deadline: float, advance: Callable[[int], None] = lambda _: None) -> None:
        """Run every job that can begin before `deadline` (of `time.monotonic()`)."""
        free: SimpleQueue[Child] = SimpleQueue()
        for child in self._children:
            free.put(child)

        def run(job: Job) -> None:
            left = deadline - time.monotonic()
            if left > 0:
                child = free.get()
                try:
                    child.run(job, min(child.timeout_s, max(1.0, left)))
                finally:
                    free.put(child)

        with ThreadPoolExecutor(len(self._children)) as pool:
            for done, _ in enumerate(pool.map(run, jobs), start=1):
                advance(done)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *exception: object) -> None:
        for child in self._children:
            child.close()


def _serve(connection: Connection, own_cells: tuple[str, ...]) -> None:
    from .candidate import run

    import_modules(own_cells)
    connection.send("ready")
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run(job))
