"""Runs the PTX of the kernels' inline assembly on a CPU: a warp in lockstep where nothing jumps, or a single thread.

It knows the opcodes that the blocks use and no other. Memory is a dict from byte address to 32-bit word.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

M32, M64 = 0xFFFFFFFF, (1 << 64) - 1


def halves(word: int) -> tuple[int, int]:
    """Low and high 16 bits."""
    return word & 0xFFFF, word >> 16


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(number: float) -> int:
    return struct.unpack("<I", struct.pack("<f", number))[0]


def to_16_bits(bits: int, kind: str) -> int:
    """A float32 as bfloat16 or float16, to nearest even; every NaN becomes 0x7FFF, as PTX's cvt makes it."""
    number = float_of(bits)
    if number != number:
        return 0x7FFF
    if kind == "bf16x2":
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    try:
        return struct.unpack("<H", struct.pack("<e", number))[0]
    except OverflowError:
        return 0x7C00 if number > 0 else 0xFC00


def _pairs(f: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def both(a: int, b: int) -> int:
        low, high = (f(x, y) for x, y in zip(halves(a), halves(b), strict=True))
        return high << 16 | low

    return both


_TWO: dict[str, Callable[[int, int], int]] = {
    "add.u32": lambda a, b: a + b & M32,
    "add.u64": lambda a, b: a + b & M64,
    "sub.u32": lambda a, b: a - b & M32,
    "shl.b32": lambda a, b: a << b & M32,
    "shl.b64": lambda a, b: a << b & M64,
    "div.u32": lambda a, b: a // b,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "and.pred": lambda a, b: int(a and b),
    "or.pred": lambda a, b: int(a or b),
    "max.u32": max,
    "min.u32": min,
    "max.u16x2": _pairs(max),
    "min.u16x2": _pairs(min),
    "setp.eq.u32": lambda a, b: int(a == b),
    "setp.eq.s32": lambda a, b: int(a == b),
    "setp.ne.u32": lambda a, b: int(a != b),
    "setp.ge.u32": lambda a, b: int(a >= b),
    "setp.lt.u64": lambda a, b: int(a < b),
    "cvt.rn.bf16x2.f32": lambda high, low: to_16_bits(high, "bf16x2") << 16 | to_16_bits(low, "bf16x2"),
    "cvt.rn.f16x2.f32": lambda high, low: to_16_bits(high, "f16x2") << 16 | to_16_bits(low, "f16x2"),
}
_ONE = ("mov.b32", "mov.u32", "mov.b64", "mov.u64", "mov.pred", "cvt.u64.u32", "cvt.u16.u32")


@dataclass
class Thread:
    """operands: what $0, $1, ... hold; the results are among them afterwards.

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
        self.registers = {f"${number}": value for number, value in enumerate(self.operands)}
        self.registers |= {"%globaltimer": 0, "%laneid": self.lane, "%ctaid.x": self.program}
        self.writes = list(self.writes)
        self.polls = 0
        self.loads: list[int] = []
        self.stores: list[tuple[int, int]] = []

    def value(self, name: str) -> int:
        return self.registers[name] if name[0] in "$%" or name[0].isalpha() else int(name, 0) & M64

    def address(self, text: str) -> int:
        register, _, offset = text.strip("[]").partition("+")
        return self.value(register) + int(offset or 0)

    def execute(self, operation: str, operands: list[str]) -> None:
        target = operands[0]
        if operation.startswith("ld.relaxed."):
            self._load(re.findall(r"\$?\w+", target), self.address(operands[1]))
        elif operation.startswith("st.relaxed."):
            address, value = self.address(target), self.value(operands[1])
            self.stores.append((address, value))
            self.memory[address] = value & (0xFFFF if operation.endswith("b16") else M32)
        elif operation in _ONE:
            self.registers[target] = self.value(operands[1]) & (0xFFFF if operation == "cvt.u16.u32" else M64)
        elif operation == "selp.b32":
            self.registers[target] = self.value(operands[1] if self.value(operands[3]) else operands[2])
        else:
            self.registers[target] = _TWO[operation](*(self.value(operand) for operand in operands[1:]))

    def _load(self, targets: list[str], address: int) -> None:
        self.loads.append(address)
        for write in [write for write in self.writes if write[0] <= self.polls]:
            self.writes.remove(write)  # type: ignore[attr-defined]
            self.memory[write[1]] = write[2]
        assert address % (4 * len(targets)) == 0, "misaligned"
        for number, target in enumerate(targets):
            assert address + 4 * number in self.memory, f"{address + 4 * number} is in no tensor"
            self.registers[target] = self.memory[address + 4 * number]

    def run(self, text: str) -> list[int]:
        """To the end of the block; the operands, $0 first."""
        code, labels = _parsed(text)
        at = turns = 0
        while at < len(code):
            turns += 1
            assert turns < 10**6, "runs for ever"
            guard, operation, operands = code[at]
            at += 1
            if guard and bool(self.value(guard.lstrip("!"))) == guard.startswith("!"):
                continue
            if operation == "bra":
                at = labels[operands[0]]
                if operands[0] == "AGAIN":
                    self.polls += 1
                    self.registers["%globaltimer"] += self.ns
            else:
                # The fall-through to AGAIN is a poll too.
                self.execute(operation, operands)
        return [self.registers[name] for name in sorted((n for n in self.registers if n[0] == "$"), key=_number)]


def run_warp(text: str, threads: list[Thread]) -> None:
    """A block without jumps, all lanes an instruction after the other, so that they can hand values over."""
    for guard, operation, operands in _parsed(text)[0]:
        assert not guard
        if operation == "shfl.sync.bfly.b32":
            values = [thread.value(operands[1]) for thread in threads]
            for lane, thread in enumerate(threads):
                thread.registers[operands[0]] = values[lane ^ int(operands[2])]
        else:
            for thread in threads:
                thread.execute(operation, operands)


def _number(name: str) -> int:
    return int(name[1:])


def _parsed(text: str) -> tuple[list[tuple[str, str, list[str]]], dict[str, int]]:
    """(guard, operation, operands) of each instruction, and where the labels stand."""
    code: list[tuple[str, str, list[str]]] = []
    labels: dict[str, int] = {}
    for line in re.split(r"\n|(?<=;)\s+", text):
        line = line.strip().rstrip(";")
        if line in ("", "{", "}") or line.startswith(".reg"):
            continue
        if line.endswith(":"):
            labels[line[:-1]] = len(code)
            continue
        guard, operation, rest = re.fullmatch(r"(?:@(!?\w+)\s+)?(\S+)\s*(.*)", line).groups()  # type: ignore[union-attr]
        code.append((guard or "", operation, re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)))
    return code, labels
