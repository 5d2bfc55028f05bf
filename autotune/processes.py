"""The processes that the tuner works with: some compile side by side, one runs candidates and can be killed.

All are spawned: torch, LLVM and CUDA are not safe to fork once their threads run. A spawned process knows holdfast's
own cells alone, and a jitted function cannot be sent there: it first imports the modules that define the user's.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from ..kernels.cell_spec import CELLS
from .measure import Job, Result, run

_T = TypeVar("_T", bound="_Closing")

TIMEOUT_S = 60.0
"""For one candidate, compilation included. A wait in a kernel ends by itself after about a second."""

KNOWN_THERE = {__package__.partition(".")[0], "__main__"}
"""First names of modules that need no import: multiprocessing itself imports the script that was run."""


def modules_of_own_cells() -> tuple[str, ...]:
    """The names of the modules that hold functions of a cell and that holdfast itself does not import."""
    functions = [function for spec in CELLS.values() for function in (spec.gates_of, spec.update, spec.gradients)]
    modules = {function.fn.__module__ for function in functions}
    unknown = (name for name in modules if name.partition(".")[0] not in KNOWN_THERE or ".catalogue." in name)
    return tuple(sorted(unknown))


def import_modules(names: Iterable[str]) -> None:
    """What such a process does first; `sys.path` comes with it."""
    for name in names:
        import_module(name)


class _Closing:
    """Closed at the end of a `with` block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Compilers(_Closing):
    """Processes that compile, one per CPU core. They take seconds to start: keep them over calls of `compile_many`."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or max(2, os.cpu_count() or 1)
        self._pool: ProcessPoolExecutor | None = None

    def pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            modules = modules_of_own_cells()
            self._pool = ProcessPoolExecutor(self._workers, context, import_modules, (modules,))
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class Child(_Closing):
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


class Children(_Closing):
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

    def close(self) -> None:
        for child in self._children:
            child.close()


def _serve(connection: Connection, own_cells: tuple[str, ...]) -> None:
    import_modules(own_cells)
    connection.send("ready")
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run(job))


@dataclass(frozen=True)
class Workers(_Closing):
    """The processes of a tuning run, each started when it is first needed. They take seconds: keep them over runs.

    compilers:  compile candidates.
    child:      compares and times them.
    children:   load candidates side by side before they are timed one by one; None: none do.
    """

    compilers: Compilers = field(default_factory=Compilers)
    child: Child = field(default_factory=Child)
    children: Children | None = None

    def close(self) -> None:
        self.compilers.close()
        self.child.close()
        if self.children is not None:
            self.children.close()
