"""Compile a kernel for a GPU that is not there, and read what it costs from the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import triton
from triton import knobs
from triton.compiler import ASTSource

from .targets import gpu_target
from .ttgir import loads_in_loop

ArgumentType: TypeAlias = "str | tuple[ArgumentType, ...]"
"""A Triton type, "*bf16", "i32", "fp32", or a tuple of them for a tuple argument."""


@dataclass(frozen=True)
class CompiledReport:
    """What one compiled kernel needs, per thread or per program, as its compiler and disassembler say.

    target:               architecture name, e.g. "sm_90".
    registers:            32-bit registers per thread (AMD: vector registers per lane, accumulation registers included).
    spill_bytes:          local memory per thread in bytes: the stack (CUDA) or scratch (AMD). 0 means nothing spills.
    spills_in_loop:       local loads and stores in the time loop's code, counted where they stand. A value put aside
                          before the loop costs a step nothing: spill_bytes may be above 0 where this is 0.
    shared_bytes:         shared memory (AMD: LDS) of one program, in bytes.
    matrix_instructions:  matrix-unit instructions in the code, counted where they stand, not as often as they run.
    matrix_family:        their names: "HMMA" (Ampere), "HGMMA" (Hopper's wgmma), "UTCHMMA" (tcgen05), "MFMA" (AMD).
    barriers:             block-wide barriers in the code (BAR.SYNC, BAR.RED, s_barrier).
    seconds:              wall time of the compilation; near 0 where Triton's disk cache had it.
    ttgir:                the kernel in Triton's GPU dialect.
    arguments:            names of the kernel's run-time arguments, in order; a tuple's once for each element.
    """

    target: str
    registers: int
    spill_bytes: int
    spills_in_loop: int
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
    if "cubin" in compiled.asm:
        registers, spill, in_loop, families, barriers = _read_cubin(compiled.asm["cubin"])
    else:
        registers, spill, in_loop, families, barriers = _read_amdgcn(compiled.asm["amdgcn"])
    return CompiledReport(
        target=target,
        registers=registers,
        spill_bytes=spill,
        spills_in_loop=in_loop,
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=families.total(),
        matrix_family="+".join(sorted(families)),
        barriers=barriers,
        seconds=seconds,
        ttgir=compiled.asm["ttgir"],
        arguments=tuple(name for name, kind in types.items() for leaf in _leaves(kind) if leaf != "constexpr"),
    )


def weight_loads_in_loop(report: CompiledReport, argument: str) -> int:
    """Number of loads in the kernel's loops whose address derives from the argument of this name, e.g. "w_hh".

    0 proves that the weights are resident: see `ttgir.loads_in_loop` for what counts. Raises ValueError where the
    kernel has no such argument at run time, or never loads through it.
    """
    positions = [position for position, name in enumerate(report.arguments) if name == argument]
    if not positions:
        raise ValueError(f"the kernel has no argument {argument!r}; it has {', '.join(report.arguments)}")
    return loads_in_loop(report.ttgir, positions)


def _leaves(kind: ArgumentType) -> Iterator[str]:
    if isinstance(kind, str):
        yield kind
    else:
        for element in kind:
            yield from _leaves(element)


def _read_cubin(cubin: bytes) -> tuple[int, int, int, Counter[str], int]:
    """(registers, stack bytes, local accesses in the time loop, matrix instructions by family, barriers) by the
    disassemblers in Triton's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool(knobs.nvidia.cuobjdump.path, "-res-usage", path)
        code = _tool(knobs.nvidia.nvdisasm.path, "-c", path)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    families = Counter(_MATRIX.findall(code))
    in_loop = accesses_in_time_loop(
        code, matrix=_MATRIX, label=r"^\s*\.(L_x_\d+):", jump=r"\bBRA\b.*`\(\.(L_x_\d+)\)", access=r"\b(?:STL|LDL)\b"
    )
    return registers, stack, in_loop, families, len(re.findall(r"\bBAR\.(?:SYNC|RED)\b", code))


def _tool(path: str, flag: str, file: Path) -> str:
    return subprocess.run([path, flag, str(file)], check=True, capture_output=True, text=True).stdout


_MATRIX = re.compile(r"(?<![\w.])(\w+MMA)[.\s]")  # not HFMA2.MMA, which is no matrix instruction


def accesses_in_time_loop(code: str, *, matrix: re.Pattern[str], label: str, jump: str, access: str) -> int:
    """Lines matching `access` in the time loop: of the code between a label and a jump back to it, the shortest stretch
    with a matrix instruction. 0 where nothing loops."""
    lines = code.splitlines()
    labels = {found[1]: number for number, line in enumerate(lines) if (found := re.search(label, line))}
    jumps = ((number, labels.get(found[1])) for number, line in enumerate(lines) if (found := re.search(jump, line)))
    loops = [lines[start : end + 1] for end, start in jumps if start is not None and start < end]
    with_matrix = [loop for loop in loops if any(matrix.search(line) for line in loop)]
    time_loop = min(with_matrix, key=len, default=[])
    return sum(bool(re.search(access, line)) for line in time_loop)


def _read_amdgcn(code: str) -> tuple[int, int, int, Counter[str], int]:
    """As `_read_cubin`, from the assembly's own metadata. A scalar register spills into vector lanes, not to memory."""

    def metadata(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code).group(1))  # type: ignore[union-attr]

    spill = max(metadata("private_segment_fixed_size"), 4 * metadata("vgpr_spill_count"))
    mfma = re.compile(r"\bv_s?mfmac?_")
    in_loop = accesses_in_time_loop(
        code, matrix=mfma, label=r"^\.?(LBB\w+):", jump=r"\bs_c?branch\w*\s+\.?(LBB\w+)", access=r"\bscratch_"
    )
    families = Counter("MFMA" for _ in mfma.finditer(code))
    return metadata("vgpr_count"), spill, in_loop, families, len(re.findall(r"\bs_barrier\b", code))
