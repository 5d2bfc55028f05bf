"""Compile the kernels of many problems in parallel processes, each kernel once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import triton

from ..kernels.config import Config
from ..kernels.describe import describe
from ..kernels.problem import Problem
from ..kernels.resources import resident_programs
from .offline import CompiledReport, compile_offline, weight_loads_in_loop
from .targets import REFERENCE_DEVICE


@dataclass(frozen=True)
class Request:
    """A kernel to compile: what `heuristic.choose` chose for a problem on a target's reference device.

    saves:  the gate values pass through memory between the two loops (see `kernels.describe.describe`).
    """

    problem: Problem
    config: Config
    target: str
    saves: bool = False

    def __str__(self) -> str:
        return f"{self.problem}, {self.config}, {self.target}{', saves' if self.saves else ''}"


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    report:                what the compiler says; None where it failed.
    weight_loads_in_loop:  loads of W_hh inside the kernel's loops.
    resident_programs:     programs that the reference device holds at once.
    error:                 why there is no report; names the request.
    """

    report: CompiledReport | None = None
    weight_loads_in_loop: int = 0
    resident_programs: int = 0
    error: str = ""


def programs(request: Request) -> int:
    """Programs of the launch that must be resident at once."""
    return _describe(request).grid


def compile_many(
    requests: Iterable[Request], advance: Callable[[int, int], None] | None = None
) -> dict[Request, Outcome]:
    """Compile every request; requests that need the same kernel share one compilation.

    advance:  called with (kernels compiled, kernels in all) after each.

    Uses one process per CPU core. A compiler that crashes costs the others nothing: they are compiled again, apart.
    """
    kernels: dict[str, list[Request]] = {}
    for request in requests:
        kernels.setdefault(_kernel_key(request), []).append(request)
    first = {key: same[0] for key, same in kernels.items()}
    outcomes: dict[str, Outcome] = {}

    def run(keys: list[str], workers: int) -> None:
        # Spawned: torch and LLVM are not safe to fork once their threads run.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(_compile, first[key]): key for key in keys}
            for future in as_completed(futures):
                key = futures[future]
                try:
                    outcomes[key] = future.result()
                except BrokenExecutor:
                    if workers > 1:
                        continue
                    outcomes[key] = Outcome(error=f"{first[key]}: the compiler's process died")
                if advance is not None:
                    advance(len(outcomes), len(first))

    if first:
        run(list(first), max(2, min(os.cpu_count() or 1, len(first))))
    for key in first.keys() - outcomes.keys():
        run([key], 1)
    return {request: outcomes[key] for key, same in kernels.items() for request in same}


def _describe(request: Request):  # type: ignore[no-untyped-def]
    return describe(request.problem, request.config, REFERENCE_DEVICE[request.target], saves=request.saves)


def _kernel_key(request: Request) -> str:
    spec = _describe(request)
    constexprs = {
        name: value.fn.__qualname__ if isinstance(value, triton.JITFunction) else value
        for name, value in spec.constexprs.items()
    }
    return repr(
        (
            request.target,
            spec.fn.fn.__qualname__,
            spec.signature,
            constexprs,
            spec.attrs,
            spec.num_warps,
            spec.num_stages,
            spec.options,
        )
    )


def _compile(request: Request) -> Outcome:
    spec = _describe(request)
    try:
        report = compile_offline(
            spec.fn,
            spec.signature,
            spec.constexprs,
            spec.attrs,
            request.target,
            num_warps=spec.num_warps,
            num_stages=spec.num_stages,
            **spec.options,
        )
        loads = weight_loads_in_loop(report, "w_hh")
    except Exception as error:  # whatever a compiler raises is the finding here
        return Outcome(error=f"{request}: {type(error).__name__}: {error}")
    resident = resident_programs(
        REFERENCE_DEVICE[request.target],
        registers=report.registers,
        num_warps=spec.num_warps,
        shared=report.shared_bytes,
    )
    return Outcome(report, loads, resident)
