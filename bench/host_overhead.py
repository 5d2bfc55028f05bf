"""What a call of the kernel path costs the host: everything but the launch, on the CPU, at sizes next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import triton

from ..cells.backend import backend
from ..kernels.executor import executing_on
from .case import Phase
from .numbers import Numbers
from .providers import HOLDFAST, Prepared, Unavailable, module_calls


class NoLaunch:
    """An executor that runs nothing: what a GPU would take is left out of the time."""

    spin_limit = 1
    resident_programs = 132

    def run(self, kernel: triton.JITFunction, grid: int, arguments: Mapping[str, object]) -> None:
        pass


class HostSide:
    """Checks, plan, allocations, op dispatch, autograd and the small GEMMs of holdfast's kernel path.

    Nothing is computed in the loop, so what is left in the results means nothing. They are checked by a run of the same
    case in the interpreter instead.
    """

    name = "holdfast kernel path, no launch"
    is_peer = False

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        if find_spec("greenlet") is None:  # a machine with a GPU may lack it
            raise Unavailable("the interpreter, which checks the results, needs greenlet: pip install greenlet")
        from ..kernels.interpreter import interpret

        case, cpu = numbers.case, numbers.device
        if cpu.type != "cpu":
            numbers = Numbers(case, type(cpu)("cpu"), copies=len(numbers.xs))
        calls = module_calls(numbers, [numbers.module(HOLDFAST[case.cell], case.dtype)], case.dtype)
        prepared = calls.prepared(phase, algorithm="launches replaced by nothing", numbers=numbers)
        run = prepared.call
        nothing = NoLaunch()
        launched = False

        def call(number: int) -> None:
            nonlocal launched
            if not launched:
                launched = True
                with interpret(), backend("triton"):
                    run(number)
                return
            with executing_on(nothing):
                run(number)

        prepared.call = call
        return prepared
