"""What a kernel costs, read from its machine code by the disassemblers in Triton's wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from triton import knobs


class MachineCode(NamedTuple):
    """As the fields of `offline.CompiledReport`."""

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
