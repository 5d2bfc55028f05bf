"""Compile the kernels of many problems in parallel processes, each kernel once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Future, as_completed
from concurrent.futures import TimeoutError as FuturesTimeoutError
from dataclasses import dataclass

from ..kernels.config import Config
from ..kernels.describe import KernelDescription, describe
from ..kernels.kept import Keep
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits, resident_programs
from .offline import REFERENCE_DEVICE, CompiledReport, compile_offline
from .processes import Compilers
from .ttgir import weight_loads_in_loop


@dataclass(frozen=True)
class Request:
    """A kernel to compile.

    keep:    what passes through memory between the two loops (see `kernels.describe.describe`).
    device:  the GPU to compile for, whose target must be `target`; None: the target's reference device.
    """

    problem: Problem
    config: Config
    target: str
    keep: Keep = "nothing"
    device: DeviceLimits | None = None

    @property
    def limits(self) -> DeviceLimits:
        return self.device or REFERENCE_DEVICE[self.target]

    def __str__(self) -> str:
        return f"{self.problem}, {self.config}, {self.target}{'' if self.keep == 'nothing' else f', keep={self.keep}'}"


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
    requests: Iterable[Request],
    advance: Callable[[int, int], None] | None = None,
    *,
    compilers: Compilers | None = None,
    deadline: float | None = None,
) -> dict[Request, Outcome]:
    """Compile every request; requests that need the same kernel share one compilation.

    advance:    called with (kernels compiled, kernels in all) after each.
    compilers:  processes to use; without, some are started and ended.
    deadline:   of `time.monotonic()`; what has not been begun by then is not compiled, and its error says so.

    A compiler that crashes costs the others nothing: they are compiled again, apart.
    """
    kernels: dict[str, list[Request]] = {}
    for request in requests:
        kernels.setdefault(_kernel_key(request), []).append(request)
    first = {key: same[0] for key, same in kernels.items()}
    outcomes: dict[str, Outcome] = {}

    def run(keys: list[str], compilers: Compilers) -> None:
        pool = compilers.pool()
        futures = {pool.submit(_compile, first[key]): key for key in keys}
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            for future in as_completed(futures, left):
                collect(future, futures[future])
        except FuturesTimeoutError:
            for future in futures:
                future.cancel()
            for future, key in futures.items():  # those that run go on to their end
                if key not in outcomes:
                    collect(future, key)

    def collect(future: Future[Outcome], key: str) -> None:
        try:
            outcomes[key] = future.result()
        except CancelledError:
            outcomes[key] = Outcome(error=f"{first[key]}: {OUT_OF_TIME}")
        except BrokenExecutor:
            return
        if advance is not None:
            advance(len(outcomes), len(first))

    if first:
        own = compilers or Compilers(max(2, min(os.cpu_count() or 1, len(first))))
        try:
            run(list(first), own)
        finally:
            if compilers is None or len(outcomes) < len(first):
                own.close()
    for key in [key for key in first if key not in outcomes]:
        with Compilers(1) as apart:
            run([key], apart)
        outcomes.setdefault(key, Outcome(error=f"{first[key]}: the compiler's process died"))
    return {request: outcomes[key] for key, same in kernels.items() for request in same}


OUT_OF_TIME = "not compiled, the time was up"


def _describe(request: Request) -> KernelDescription:
    return describe(request.problem, request.config, request.limits, keep=request.keep)


def _kernel_key(request: Request) -> str:
    spec = _describe(request)
    # A cell's repr tells functions of one name in different files apart.
    options = (spec.num_warps, spec.num_stages, spec.options)
    return repr((request.target, spec.fn.fn.__qualname__, spec.signature, spec.constexprs, spec.attrs, options))


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
        loads = weight_loads_in_loop(report, "layer.w_hh")
    except Exception as error:  # whatever a compiler raises is the finding here
        return Outcome(error=f"{request}: {type(error).__name__}: {error}")
    resident = resident_programs(
        request.limits,
        registers=report.registers,
        num_warps=spec.num_warps,
        shared=report.shared_bytes,
    )
    return Outcome(report, loads, resident)
