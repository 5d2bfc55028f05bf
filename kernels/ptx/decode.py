"""From an instruction to a function of the group that executes it: everything that can be looked up is looked up once.

A function returns None, or a `Signal` for the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np

from . import bits
from .errors import UnknownInstructionError
from .instructions import COLLECTIVE, LANEWISE
from .operation import REGISTER, Operation
from .parse import Code, Immediate, Instruction, Negated, Operand, Register, Symbol, Vector, parts_of
from .program import Group, Lanes
from .shared import BASE


class Signal(Enum):
    TURN = "others may go on"
    SLEEP = "it polls what nobody has changed"
    BARRIER = "it waits for the program's other warps"
    END = "it has ended"


Step = Callable[[Group], Signal | None]
SCOPES = ("cta", "cluster", "gpu", "sys")


def dtype_of(kind: str) -> Any:
    """NumPy's type of a register declared with this type."""
    return REGISTER["pred" if kind == "pred" else kind[1:]]


class Decoder:
    """constants: arrays that a program's registers begin with after the declared ones."""

    def __init__(self, code: Code, warps: int) -> None:
        self.code, self.warps = code, warps
        self.dtypes = [dtype_of(kind) for kind in code.registers]
        self.constants: list[Any] = []
        self._known: dict[tuple[int, Any], int] = {}
        self.special: dict[str, int] = {}
        """Slots of %tid.x and the like, and of parameters, which each program or launch fills in."""

    def steps(self) -> list[Step]:
        from .access import ACCESS
        from .tensor import TENSOR, watched

        found: list[Step] = []
        watch = watched(self)
        for instruction in self.code.instructions:
            base = instruction.opcode.split(".")[0]
            try:
                if base in CONTROL:
                    step = CONTROL[base](self, instruction)
                elif base in ACCESS:
                    step = ACCESS[base](self, instruction)
                elif base in TENSOR:
                    step = TENSOR[base](self, instruction)
                else:
                    step = _lanewise(self, instruction)
            except UnknownInstructionError as error:
                raise UnknownInstructionError(instruction.opcode, instruction.line) from error
            found.append(watch(instruction, step))
        return found

    def constant(self, value: int, dtype: Any) -> int:
        key = value, dtype
        if key not in self._known:
            self._known[key] = self._slot_of(
                np.full(
                    (self.warps, 32),
                    bool(value) if dtype is np.bool_ else value & (1 << 8 * dtype().itemsize) - 1,
                    dtype,
                )
            )
        return self._known[key]

    def named(self, name: str, dtype: Any) -> int:
        """The slot of a special register or a parameter."""
        if name not in self.special:
            self.special[name] = self._slot_of(np.zeros((self.warps, 32), dtype))
        return self.special[name]

    def _slot_of(self, array: Any) -> int:
        self.constants.append(array)
        return len(self.dtypes) + len(self.constants) - 1

    def source(self, operand: Operand, dtype: Any) -> int:
        """The slot that holds an operand."""
        if isinstance(operand, Register):
            return operand.slot
        if isinstance(operand, Immediate):
            return self.constant(operand.value, dtype)
        if isinstance(operand, Symbol):
            if operand.name in self.code.shared_symbols:
                return self.constant(BASE, dtype)
            if operand.name in self.code.parameters:  # its address
                return self.constant(self.code.parameters[operand.name][0], dtype)
            if operand.name.startswith("%"):
                return self.named(operand.name, dtype)
        raise UnknownInstructionError(str(operand))

    def guard(self, instruction: Instruction) -> tuple[int, bool] | None:
        """The slot of the predicate, and whether it must be false."""
        if instruction.guard is None:
            return None
        negated = isinstance(instruction.guard, Negated)
        register = instruction.guard.register if isinstance(instruction.guard, Negated) else instruction.guard
        return register.slot, negated


def lanes_of(group: Group, guard: tuple[int, bool] | None) -> Lanes:
    """The group's lanes that execute an instruction with this guard."""
    if guard is None:
        return group.lanes
    slot, negated = guard
    return group.lanes & ~group.registers[slot] if negated else group.lanes & group.registers[slot]


def destination(operand: Operand) -> int | None:
    """A register's slot; None for `_`."""
    if isinstance(operand, Register):
        return operand.slot
    if operand == Symbol("_"):
        return None
    raise UnknownInstructionError(str(operand))


def _lanewise(decoder: Decoder, one: Instruction) -> Step:
    if one.opcode.startswith("mov."):
        return _move(decoder, one)
    opcode = one.opcode + "|" * one.pair
    collective = opcode in COLLECTIVE
    operation: Operation | None = COLLECTIVE.get(opcode) or LANEWISE.get(opcode)
    if operation is None:
        raise UnknownInstructionError(opcode)
    run, guard, results = operation.run, decoder.guard(one), 1 + one.pair
    written = [destination(operand) for target in one.operands[:results] for operand in parts_of(target)]
    given = one.operands[results:]
    many = len(written) > 1 or isinstance(one.operands[0], Vector)
    if collective:
        return _collective(decoder, one, operation, written, many)
    sources = [decoder.source(operand, dtype) for operand, dtype in zip(given, operation.sources, strict=True)]
    run = _narrowed(decoder, one.opcode, run, sources, operation.sources)
    _check_width(decoder, one.opcode, run, operation.sources, written)
    if guard is None and not many and written[0] is not None:
        slot = written[0]
        if len(sources) == 2:
            left, right = sources

            def two(group: Group) -> None:
                registers = group.registers
                value = run(registers[left], registers[right])
                registers[slot] = value if group.full else np.where(group.lanes, value, registers[slot])

            return two

        def plain(group: Group) -> None:
            registers = group.registers
            value = run(*[registers[source] for source in sources])
            registers[slot] = value if group.full else np.where(group.lanes, value, registers[slot])

        return plain

    def general(group: Group) -> None:
        value = run(*[group.registers[source] for source in sources])
        _write(group, guard, written, value if many else (value,))

    return general


def _narrowed(decoder: Decoder, opcode: str, run: Any, slots: list[int], kinds: tuple[Any, ...]) -> Any:
    """cvt may name registers wider than what it reads."""
    wider = [
        slot < len(decoder.dtypes) and decoder.dtypes[slot] is not kind for slot, kind in zip(slots, kinds, strict=True)
    ]
    if not any(wider):
        return run
    if not opcode.startswith("cvt."):
        raise UnknownInstructionError(opcode)
    return lambda value: run(value.astype(kinds[0]))


def _check_width(decoder: Decoder, opcode: str, run: Any, kinds: tuple[Any, ...], slots: list[int | None]) -> None:
    """That the results are as wide as the registers they go to."""
    with np.errstate(all="ignore"):
        found = run(*[np.zeros((1, 32), kind) for kind in kinds])
    for slot, value in zip(slots, found if len(slots) > 1 else (found,), strict=True):
        if slot is not None and value.dtype != decoder.dtypes[slot]:
            raise UnknownInstructionError(f"{opcode} to {decoder.code.registers[slot]}")


def _write(group: Group, guard: tuple[int, bool] | None, slots: list[int | None], values: Any) -> None:
    lanes = lanes_of(group, guard)
    for slot, value in zip(slots, values, strict=True):
        if slot is not None:
            group.registers[slot] = np.where(lanes, value, group.registers[slot])


def _collective(
    decoder: Decoder, one: Instruction, operation: Operation, written: list[int | None], many: bool
) -> Step:
    guard = decoder.guard(one)
    vectors = [
        [decoder.source(operand, dtype) for operand in parts_of(source)]
        for source, dtype in zip(one.operands[1 + one.pair :], operation.sources, strict=True)
    ]
    is_vector = [isinstance(source, Vector) for source in one.operands[1 + one.pair :]]

    def collective(group: Group) -> None:
        registers = group.registers
        given = [
            tuple(registers[slot] for slot in slots) if several else registers[slots[0]]
            for slots, several in zip(vectors, is_vector, strict=True)
        ]
        value = operation.run(lanes_of(group, guard), *given)
        _write(group, guard, written, value if many else (value,))

    return collective


def _move(decoder: Decoder, one: Instruction) -> Step:
    """mov, with vectors on one side too, of registers, numbers, addresses and special registers."""
    target, source = one.operands
    guard = decoder.guard(one)
    dtype = dtype_of(one.opcode.split(".")[1])
    if source == Symbol("%globaltimer"):
        timer = destination(target)

        def read_timer(group: Group) -> None:
            now = np.full((decoder.warps, 32), group.program.now(), np.uint64)
            _write(group, guard, [timer], (now,))

        return read_timer
    if isinstance(target, Vector):
        slots, packed = [destination(part) for part in target.parts], decoder.source(source, dtype)
        return lambda group: _write(group, guard, slots, bits.unpack(group.registers[packed], len(slots)))
    slot = destination(target)
    if isinstance(source, Vector):
        part = REGISTER[str(8 * dtype().itemsize // len(source.parts))]
        parts = [decoder.source(operand, part) for operand in source.parts]
        return lambda group: _write(group, guard, [slot], (bits.pack(tuple(group.registers[p] for p in parts)),))
    found = decoder.source(source, dtype)
    return lambda group: _write(group, guard, [slot], (group.registers[found],))


def _branch(decoder: Decoder, one: Instruction) -> Step:
    guard, target, meets_at = decoder.guard(one), one.target, one.meets

    def jump(group: Group) -> None:
        group.at = target

    return jump if guard is None else lambda group: group.branch(lanes_of(group, guard), target, meets_at)


def _end(decoder: Decoder, one: Instruction) -> Step:
    if one.guard is not None:
        raise UnknownInstructionError(one.opcode)
    return lambda group: Signal.END if group.end() else None


def _barrier(decoder: Decoder, one: Instruction) -> Step:
    suffixes = one.opcode.split(".")[1:]
    if suffixes == ["warp", "sync"]:
        return _of_whole_warps(one.opcode)
    numbers = [operand.value for operand in one.operands if isinstance(operand, Immediate)]
    if [s for s in suffixes if s not in ("cta", "aligned")] != ["sync"] or len(numbers) != len(one.operands):
        raise UnknownInstructionError(one.opcode)
    number, threads = (*numbers, 0)[:2]

    def wait(group: Group) -> Signal:
        group.whole_warps(one.opcode)
        group.barrier = number, threads
        return Signal.BARRIER

    return wait


def _of_whole_warps(name: str) -> Step:
    def check(group: Group) -> None:
        group.whole_warps(name)

    return check


def _nothing(decoder: Decoder, one: Instruction) -> Step:
    return lambda group: None


CONTROL: dict[str, Callable[[Decoder, Instruction], Step]] = {
    "bra": _branch,
    "ret": _end,
    "exit": _end,
    "bar": _barrier,
    "barrier": _barrier,
    "createpolicy": _nothing,  # a hint to the caches
}
