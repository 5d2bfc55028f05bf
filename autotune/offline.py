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
        poll_round_trips=code.poll_round_trips,
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
    poll_round_trips: int
    matrix_instructions: Counter[str]
    """By family."""
    barriers: int


class _Dialect(NamedTuple):
    matrix: re.Pattern[str]
    label: re.Pattern[str]
    jump: re.Pattern[str]
    local_access: re.Pattern[str]


_SASS = _Dialect(
    matrix=re.compile(r"(?<![\w.])(\w+MMA)[.\s]"),  # not HFMA2.MMA, which is no matrix instruction
    label=re.compile(r"^\s*\.(L_x_\d+):"),
    jump=re.compile(r"\bBRA\b.*`\(\.(L_x_\d+)\)"),
    local_access=re.compile(r"\b(?:STL|LDL)\b"),
)
_AMDGCN = _Dialect(
    matrix=re.compile(r"\bv_s?mfmac?_"),
    label=re.compile(r"^\.?(LBB\w+):"),
    jump=re.compile(r"\bs_c?branch\w*\s+\.?(LBB\w+)"),
    local_access=re.compile(r"\bscratch_"),
)


def read_cubin(cubin: bytes) -> MachineCode:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool(knobs.nvidia.cuobjdump.path, "-res-usage", path)
        code = _tool(knobs.nvidia.nvdisasm.path, "-c", path)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    lines = code.splitlines()
    return MachineCode(
        registers,
        stack,
        _local_accesses_in_time_loop(lines, _SASS),
        max((round_trips(loop) for loop in innermost_loops(lines, _SASS)), default=0),
        Counter(_SASS.matrix.findall(code)),
        len(re.findall(r"\bBAR\.(?:SYNC|RED)\b", code)),
    )


def read_amdgcn(code: str) -> MachineCode:
    """From the assembly's own metadata. A scalar register spills into vector lanes, not to memory."""

    def metadata(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code).group(1))  # type: ignore[union-attr]

    spill = max(metadata("private_segment_fixed_size"), 4 * metadata("vgpr_spill_count"))
    in_loop = _local_accesses_in_time_loop(code.splitlines(), _AMDGCN)
    families = Counter("MFMA" for _ in _AMDGCN.matrix.finditer(code))
    return MachineCode(metadata("vgpr_count"), spill, in_loop, 0, families, len(re.findall(r"\bs_barrier\b", code)))


def _tool(path: str, flag: str, file: Path) -> str:
    return subprocess.run([path, flag, str(file)], check=True, capture_output=True, text=True).stdout


def _local_accesses_in_time_loop(lines: Sequence[str], dialect: _Dialect) -> int:
    """In the shortest loop with a matrix instruction; 0 where nothing loops."""
    with_matrix = [loop for loop in loops(lines, dialect) if any(map(dialect.matrix.search, loop))]
    return sum(bool(dialect.local_access.search(line)) for line in min(with_matrix, key=len, default=[]))


def loops(lines: Sequence[str], dialect: _Dialect = _SASS) -> Iterator[Sequence[str]]:
    """The stretches of code from a label to a jump back to it."""
    labels = {found[1]: number for number, line in enumerate(lines) if (found := dialect.label.search(line))}
    for end, line in enumerate(lines):
        found = dialect.jump.search(line)
        start = labels.get(found[1]) if found else None
        if start is not None and start < end:
            yield lines[start : end + 1]


def innermost_loops(lines: Sequence[str], dialect: _Dialect = _SASS) -> list[Sequence[str]]:
    """The loops that have no other inside."""
    return [loop for loop in loops(lines, dialect) if sum(1 for _ in loops(loop, dialect)) == 1]


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z0-9_.]+)\s+(?P<operands>[^;]*);")
_REGISTER = re.compile(r"\bR(\d+)\b")


def round_trips(lines: Sequence[str]) -> int:
    """How often SASS waits for volatile loads: it uses what one has brought, and only then goes on with another."""
    waiting: set[int] = set()
    trips, begins = 0, True
    for line in lines:
        found = _INSTRUCTION.search(line)
        if found is None:
            continue
        name, operands = found["name"], found["operands"].split(",")
        if name.startswith("LDG") and "STRONG" in name:
            trips, begins = trips + begins, False
            first = _REGISTER.search(operands[0])
            width = 4 if ".128" in name else 2 if ".64" in name else 1
            waiting.update(int(first[1]) + word for word in range(width) if first)
        else:
            sources = operands if name.startswith("ST") else operands[1:]
            used = waiting & {int(register) for source in sources for register in _REGISTER.findall(source)}
            waiting -= used
            begins = begins or bool(used)
    return trips
