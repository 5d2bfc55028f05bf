"""Compile a kernel for a GPU that is not there, and read what it costs from the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..kernels.layouts import check_layouts
from ..kernels.resources import A100, B200, H100, MI300X
from .sass import Step, count, decode, step_of, time_loop

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
    step:                 what one step of the time loop takes, see `sass.Step`; None on AMD.
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
    step: Step | None
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

    Raises what Triton raises where the kernel does not compile, and LayoutError where a launch would.
    """
    types = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    source = ASTSource(fn=fn, signature=types, constexprs=dict(constexprs), attrs=dict(attrs or {}))
    start = time.perf_counter()
    compiled = triton.compile(
        source, target=gpu_target(target), options={"num_warps": num_warps, "num_stages": num_stages, **options}
    )
    seconds = time.perf_counter() - start
    check_layouts(compiled.asm["ttgir"])
    code = read_cubin(compiled.asm["cubin"]) if "cubin" in compiled.asm else read_amdgcn(compiled.asm["amdgcn"])
    return CompiledReport(
        target=target,
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        spills_in_loop=code.spills_in_loop,
        step=code.step,
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=code.matrix_instructions.total(),
        matrix_family="+".join(sorted(code.matrix_instructions)),
        barriers=code.barriers,
        seconds=seconds,
        ttgir=compiled.asm["ttgir"],
        arguments=run_time_arguments(types),
    )


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


class MachineCode(NamedTuple):
    """As the fields of `CompiledReport`."""

    registers: int
    spill_bytes: int
    spills_in_loop: int
    step: Step | None
    matrix_instructions: Counter[str]
    """By family."""
    barriers: int


def read_cubin(cubin: bytes) -> MachineCode:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool(knobs.nvidia.cuobjdump.path, "-res-usage", path)
        code = decode(_tool(knobs.nvidia.nvdisasm.path, "-c", "-hex", path))
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    families = Counter(i.name.split(".")[0] for i in code.instructions if i.is_matrix)
    in_loop = sum(code.instructions[at].is_local for at in time_loop(code) or ())
    return MachineCode(registers, stack, in_loop, step_of(code), families, count(code.instructions).barriers)


_AMD_MATRIX = re.compile(r"\bv_s?mfmac?_")
_AMD_LABEL = re.compile(r"^\.?(LBB\w+):")
_AMD_JUMP = re.compile(r"\bs_c?branch\w*\s+\.?(LBB\w+)")


def read_amdgcn(code: str) -> MachineCode:
    """From the assembly's own metadata. A scalar register spills into vector lanes, not to memory."""

    def metadata(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code).group(1))  # type: ignore[union-attr]

    spill = max(metadata("private_segment_fixed_size"), 4 * metadata("vgpr_spill_count"))
    with_matrix = [loop for loop in _amd_loops(code.splitlines()) if any(map(_AMD_MATRIX.search, loop))]
    in_loop = sum("scratch_" in line for line in min(with_matrix, key=len, default=[]))
    families = Counter("MFMA" for _ in _AMD_MATRIX.finditer(code))
    return MachineCode(metadata("vgpr_count"), spill, in_loop, None, families, len(re.findall(r"\bs_barrier\b", code)))


def _amd_loops(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """The stretches of code from a label to a jump back to it."""
    labels = {found[1]: number for number, line in enumerate(lines) if (found := _AMD_LABEL.search(line))}
    for end, line in enumerate(lines):
        found = _AMD_JUMP.search(line)
        start = labels.get(found[1]) if found else None
        if start is not None and start < end:
            yield lines[start : end + 1]


def _tool(path: str, *arguments: object) -> str:
    return subprocess.run([path, *map(str, arguments)], check=True, capture_output=True, text=True).stdout
