"""A block of the kernels' inline assembly by itself, on the PTX executor: a warp, or a thread that others write for.

Memory is a dict from byte address to 32-bit word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from holdfast.kernels.ptx.machine import Behaviour, Kernel, Machine
from holdfast.kernels.ptx.program import Group

M32 = 0xFFFFFFFF


def float_of(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def bits_of(number: float) -> int:
    return int(np.float32(number).view(np.uint32))


def to_16_bits(bits: int, kind: str) -> int:
    """A float32 as bfloat16 or float16, to nearest even; every NaN becomes 0x7FFF, as PTX's cvt makes it."""
    number = np.uint32(bits).view(np.float32)
    if np.isnan(number):
        return 0x7FFF
    if kind == "bf16x2":
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    with np.errstate(over="ignore"):
        return int(number.astype(np.float16).view(np.uint16))


@dataclass
class Thread:
    """One thread: operands are the values of $0, $1, …

    writes:   (poll, address, word) that other programs make before this thread's poll of that number, counted from 1.
    ns:       what %globaltimer goes on by from poll to poll.
    """

    operands: Iterable[int]
    memory: dict[int, int] = field(default_factory=dict)
    writes: Iterable[tuple[int, int, int]] = ()
    ns: int = 100
    lane: int = 0
    program: int = 0

    def __post_init__(self) -> None:
        self.operands, self.writes = list(self.operands), list(self.writes)
        self.polls = 1
        self.loads: list[int] = []
        self.stores: list[tuple[int, int]] = []
        self.waited = 0
        """What %globaltimer said last."""

    def now(self) -> int:
        self.waited = self.polls * self.ns
        return self.waited

    def run(self, text: str) -> list[int]:
        """To the end of the block; the operands, $0 first."""
        run_warp(text, [self])
        return list(self.operands)


def run_warp(text: str, threads: list[Thread]) -> None:
    """All these threads at once, each in its lane; the memory is the first one's."""
    first = threads[0]
    kernel, pointers = _kernel_of(text)
    touched = {*first.memory, *(address for _, address, _ in first.writes)}
    # A pointer may be of what is only stored to; beside a mask of 0 it is of nothing.
    touched |= {first.operands[i] & ~3 for i in pointers} if not first.memory else set()
    machine = Machine(kernel, 1, [], _spans(touched, first.memory), Behaviour(raise_on_deadlock=False))
    machine.memory.free_running = True
    _script(machine, first)
    program = machine.programs[0]
    program.now = first.now
    if (slot := kernel.decoder.special.get("%ctaid.x")) is not None:
        program.registers[slot][:] = first.program
    slots = {i: slot for slot, name in enumerate(kernel.code.names) if (i := _number(name)) is not None}
    lanes = np.zeros((1, 32), bool)
    for thread in threads:
        lanes[0, thread.lane] = True
    for i, slot in slots.items():
        register = np.zeros_like(program.registers[slot])
        for thread in threads:
            register[0, thread.lane] = thread.operands[i] & np.iinfo(register.dtype).max
        program.registers[slot] = register
    machine.ready = [Group(program, 0, lanes)]
    machine.run()
    for thread in threads:
        for i, slot in slots.items():
            thread.operands[i] = int(program.registers[slot][0, thread.lane])
    first.memory |= dict(first.stores)


def _number(register: str) -> int | None:
    """Of the operand that a register stands for."""
    found = re.fullmatch(r"%o(\d+)", register)
    return int(found[1]) if found else None


def _script(machine: Machine, thread: Thread) -> None:
    """Let others write to memory while the thread polls, and note what it loads and stores."""
    memory, kernel = machine.memory, machine.kernel
    load, store = memory.load, memory.store

    def addresses(offsets: Any) -> list[int]:
        tensor = np.searchsorted(memory.bases, offsets, "right") - 1
        return (offsets - memory.shift[tensor]).tolist() if len(offsets) else []

    def noted_load(program: int, warps: Any, offsets: Any, size: int, strong: bool) -> Any:
        assert strong
        thread.loads += addresses(offsets)
        for write in [write for write in thread.writes if write[0] <= thread.polls]:
            thread.writes.remove(write)  # type: ignore[attr-defined]
            place = memory.locate(np.array([write[1]]), 4)
            memory.l2.view(np.uint32)[place // 4] = write[2]
        return load(program, warps, offsets, size, strong)

    def noted_store(program: int, warps: Any, offsets: Any, values: Any, strong: bool, lands: bool = False) -> None:
        assert strong
        thread.stores += zip(addresses(offsets), values.tolist(), strict=True)
        store(program, warps, offsets, values, strong, lands)

    memory.load, memory.store = noted_load, noted_store  # type: ignore[method-assign]
    # The jump back to the test ends a poll.
    steps = list(kernel.steps)
    for at, one in enumerate(kernel.code.instructions):
        if one.opcode == "bra" and one.guard is None and one.target < at:
            jump = steps[at]

            def counted(group: Group, jump: Any = jump) -> Any:
                thread.polls += 1
                return jump(group)

            steps[at] = counted
    machine.steps = steps


def _spans(addresses: set[int], memory: dict[int, int]) -> list[tuple[int, Any]]:
    """Words side by side as one tensor."""
    spans: list[tuple[int, list[int]]] = []
    for address in sorted(addresses):
        if not spans or spans[-1][0] + 4 * len(spans[-1][1]) != address:
            spans.append((address, []))
        spans[-1][1].append(memory.get(address, 0))
    return [(address, np.array(words, np.uint32).view(np.uint8)) for address, words in spans]


@cache
def _kernel_of(text: str) -> tuple[Kernel, list[int]]:
    """The block as a kernel, and which of its operands are addresses."""
    pointers = sorted({int(number) for number in re.findall(r"\[\$(\d+)", text)})
    operands = 1 + max(int(number) for number in re.findall(r"\$(\d+)", text))
    registers = [f".reg .b{64 if number in pointers else 32} %o{number};" for number in range(operands)]
    body = re.sub(r"\$(\d+)", r"%o\1", text)
    lines = [".visible .entry block(", ")", "{", *registers, body, "ret;", "}"]
    return Kernel("\n".join(lines), 1, 0), pointers
