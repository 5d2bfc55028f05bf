"""Compile a kernel for a GPU that is not there, and read what it costs from the machine code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import triton
from triton.compiler import ASTSource

from .machine_code import read_amdgcn, read_cubin
from .targets import gpu_target
from .ttgir import loads_in_loop

ArgumentType: TypeAlias = "str | tuple[ArgumentType, ...]"
"""A Triton type, "*bf16", "i32", "fp32", or a tuple of them, named or not, for a tuple argument."""


@dataclass(frozen=True)
class CompiledReport:
    """What one compiled kernel needs, per thread or per program, as its compiler and disassembler say.

    target:               architecture name, e.g. "sm_90".
    registers:            32-bit registers per thread (AMD: vector registers per lane, accumulation registers included).
    spill_bytes:          local memory per thread in bytes: the stack (CUDA) or scratch (AMD). 0 means nothing spills.
    spills_in_loop:       local loads and stores in the time loop's code, counted where they stand. A value put aside
                          before the loop costs a step nothing: spill_bytes may be above 0 where this is 0.
    poll_round_trips:     how often a poll of the team's memory waits for it: 1 where all its loads are on their way
                          before the first is used. ptxas decides that, and no source shows it. 0: no poll, or AMD.
    shared_bytes:         shared memory (AMD: LDS) of one program, in bytes.
    matrix_instructions:  matrix-unit instructions in the code, counted where they stand, not as often as they run.
    matrix_family:        their names: "HMMA" (Ampere), "HGMMA" (Hopper's wgmma), "UTCHMMA" (tcgen05), "MFMA" (AMD).
    barriers:             block-wide barriers in the code (BAR.SYNC, BAR.RED, s_barrier).
    seconds:              wall time of the compilation; near 0 where Triton's disk cache had it.
    ttgir:                the kernel in Triton's GPU dialect.
    arguments:            names of the kernel's run-time arguments, as `run_time_arguments` has them.
    """

    target: str
    registers: int
    spill_bytes: int
    spills_in_loop: int
    poll_round_trips: int
    shared_bytes: int
    matrix_instructions: int
    matrix_family: str
    barriers: int
    seconds: float
    ttgir: str = field(repr=False)
    arguments: tuple[str, ...] = field(repr=False)


def compile_offline(
    fn: triton.JITFunction,
    signature: Mapping[str, ArgumentType],
    constexprs: Mapping[str, object],
    attrs: Mapping[tuple[int, ...], list[list[object]]] | None,
    target: str,
    *,
    num_warps: int,
    num_stages: int,
    **options: object,
) -> CompiledReport:
    """Compile `fn` for `target` on any machine.

    signature:   parameter -> type; constexpr parameters may be left out.
    constexprs:  parameter -> value; a value may be a JITFunction.
    attrs:       {(parameter index,): attributes}, e.g. {(0,): [["tt.divisibility", 16]]}; constexprs count too, and
                 an element of a tuple argument is (parameter index, element index).
    target:      "sm_80", "sm_90", "sm_100", "gfx942", or another name of that form.
    options:     further options of the backend, as at a launch, e.g. maxnreg=255 (CUDA only).

    Raises what Triton raises where the kernel does not compile.
    """
    types = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    source = ASTSource(fn=fn, signature=types, constexprs=dict(constexprs), attrs=dict(attrs or {}))
    start = time.perf_counter()
    compiled = triton.compile(
        source, target=gpu_target(target), options={"num_warps": num_warps, "num_stages": num_stages, **options}
    )
    seconds = time.perf_counter() - start
    code = read_cubin(compiled.asm["cubin"]) if "cubin" in compiled.asm else read_amdgcn(compiled.asm["amdgcn"])
    return CompiledReport(
        target=target,
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        spills_in_loop=code.spills_in_loop,
        poll_round_trips=code.poll_round_trips,
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=code.matrix_instructions.total(),
        matrix_family="+".join(sorted(code.matrix_instructions)),
        barriers=code.barriers,
        seconds=seconds,
        ttgir=compiled.asm["ttgir"],
        arguments=run_time_arguments(types),
    )


def weight_loads_in_loop(report: CompiledReport, argument: str) -> int:
    """Number of loads in the kernel's loops whose address derives from the argument of this name, "layer.w_hh".

    0 proves that the weights are resident: see `ttgir.loads_in_loop` for what counts. Raises ValueError where the
    kernel has no such argument at run time, or never loads through it.
    """
    positions = [position for position, name in enumerate(report.arguments) if name == argument]
    if not positions:
        raise ValueError(f"the kernel has no argument {argument!r}; it has {', '.join(report.arguments)}")
    return loads_in_loop(report.ttgir, positions)


def run_time_arguments(signature: Mapping[str, ArgumentType]) -> tuple[str, ...]:
    """Names of what a kernel is handed at run time, in order: "gx.time" for a NamedTuple's field, a tuple's own name
    once for each element."""
    found = (leaf for name, kind in signature.items() for leaf in _leaves(name, kind))
    return tuple(name for name, kind in found if kind != "constexpr")


def _leaves(name: str, kind: ArgumentType) -> Iterator[tuple[str, str]]:
    if isinstance(kind, str):
        yield name, kind
        return
    fields = getattr(kind, "_fields", None)
    for index, element in enumerate(kind):
        yield from _leaves(f"{name}.{fields[index]}" if fields else name, element)
