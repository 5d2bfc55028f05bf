"""Matrix instructions that touch shared memory, at once (ldmatrix, stmatrix) or later (wgmma)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .asynchronous import Asynchronous
from .decode import Decoder, Group, Step, destination
from .errors import AsynchronousError, DivergenceError, UnknownInstructionError
from .matrix import LDMATRIX, STMATRIX
from .parse import Immediate, Instruction, Memory, Operand, Register, Vector, parts_of
from .shared import SharedMemory
from .wgmma import WGMMA

WARPS = 4
"""Of a warp group."""


def _rows(group: Group, move: Any, base: int, offset: int, name: str) -> tuple[Any, Any, Any]:
    """The warps here, and of every 16-byte row that their lanes name the warp and the place in shared memory."""
    warps = group.whole_warps(name)
    named = group.registers[base][warps].astype(np.int64) + offset
    addresses = move.addresses(named).reshape(-1)
    shared = group.program.shared
    return warps, np.repeat(warps, 8 * move.tiles), shared.locate(addresses, 16)


def _words(offsets: Any, warps: Any) -> tuple[Any, Any]:
    """The 16-byte rows as words of four bytes."""
    return (offsets[:, None] + 4 * np.arange(4)).reshape(-1), np.repeat(warps, 4)


def _ldmatrix(decoder: Decoder, one: Instruction) -> Step:
    if one.opcode not in LDMATRIX or one.guard is not None:
        raise UnknownInstructionError(one.opcode)
    move = LDMATRIX[one.opcode]
    targets, memory = one.operands
    assert isinstance(memory, Memory)
    slots = [slot for slot in map(destination, parts_of(targets)) if slot is not None]
    base, offset = decoder.source(memory.base, np.uint32), memory.offset

    def load(group: Group) -> None:
        warps, of_rows, offsets = _rows(group, move, base, offset, one.opcode)
        places, of_words = _words(offsets, of_rows)
        words = group.program.shared.load(of_words, places, 4)
        dealt = move.deal(words.view(np.uint8).reshape(len(warps), 8 * move.tiles, 16))
        for slot, value in zip(slots, dealt, strict=True):
            register = group.registers[slot].copy()
            register[warps] = value
            group.registers[slot] = register

    return load


def _stmatrix(decoder: Decoder, one: Instruction) -> Step:
    if one.opcode not in STMATRIX or one.guard is not None:
        raise UnknownInstructionError(one.opcode)
    move = STMATRIX[one.opcode]
    memory, given = one.operands
    assert isinstance(memory, Memory)
    slots = [decoder.source(operand, np.uint32) for operand in parts_of(given)]
    base, offset = decoder.source(memory.base, np.uint32), memory.offset

    def store(group: Group) -> None:
        warps, of_rows, offsets = _rows(group, move, base, offset, one.opcode)
        rows = move.collect(*(group.registers[slot][warps] for slot in slots))
        places, of_words = _words(offsets, of_rows)
        group.program.shared.store(of_words, places, np.ascontiguousarray(rows).reshape(-1).view(np.uint32))

    return store


def _slots(operands: tuple[Operand, ...]) -> frozenset[int]:
    found: set[int] = set()
    for operand in operands:
        if isinstance(operand, Register):
            found.add(operand.slot)
        elif isinstance(operand, Memory):
            found |= _slots((operand.base,))
        elif isinstance(operand, Vector):
            found |= _slots(operand.parts)
    return frozenset(found)


def watched(decoder: Decoder) -> Callable[[Instruction, Step], Step]:
    """Puts a check before each instruction that touches a register of a wgmma."""
    ours = [i for i in decoder.code.instructions if i.opcode.startswith("wgmma.mma_async")]
    # Accumulators, and A where it is in registers: the vectors.
    names = frozenset().union(*(_slots(tuple(o for o in i.operands if isinstance(o, Vector))) for i in ours))

    def watch(one: Instruction, step: Step) -> Step:
        touched = _slots(one.operands) & names
        if not touched or one.opcode.startswith("wgmma"):
            return step
        # LLVM moves an accumulator's zeros behind the fence (README.md, "Findings"), and ptxas lives with it.
        writes_none = one.opcode.split(".")[0] in ("st", "red", "stmatrix", "mov")
        writes = frozenset() if writes_none else _slots(one.operands[:1]) & names

        def checked(group: Group) -> Any:
            group.program.asynchronous.check(group.warps.tolist(), touched, writes)
            return step(group)

        return checked

    return watch


def _wgmma(decoder: Decoder, one: Instruction) -> Step:
    name = one.opcode
    if name == "wgmma.fence.sync.aligned":
        return _fence
    if name == "wgmma.commit_group.sync.aligned":
        return _commit
    if name == "wgmma.wait_group.sync.aligned":
        (left,) = one.operands
        assert isinstance(left, Immediate)
        return lambda group: _wait(group, left.value)
    if name not in WGMMA or one.guard is not None:
        raise UnknownInstructionError(name)
    return _multiply(decoder, one)


def _fence(group: Group) -> None:
    for warp in group.whole_warps("wgmma.fence"):
        group.program.asynchronous.unfenced[warp] = set()


def _commit(group: Group) -> None:
    state: Asynchronous = group.program.asynchronous
    for warp in group.whole_warps("wgmma.commit_group"):
        state.groups[warp].append(state.open[warp])
        state.open[warp] = []


def _wait(group: Group, left: int) -> None:
    state: Asynchronous = group.program.asynchronous
    for warp in group.whole_warps("wgmma.wait_group"):
        groups = state.groups[warp]
        for done in [groups.pop(0) for _ in range(max(0, len(groups) - left))]:
            for _, granules in done:
                group.program.shared.async_done(warp, granules)
        state.busy[warp] = {slot for ongoing in [*groups, state.open[warp]] for slots, _ in ongoing for slot in slots}


def _multiply(decoder: Decoder, one: Instruction) -> Step:
    """Its operands: D, A (a descriptor or registers), B's descriptor, scale-d, the signs of A and B, and for 16 bits
    whether A, where it is in memory, and B are transposed."""
    shape = WGMMA[one.opcode]
    accumulators, a, b, scale_d, *rest = one.operands
    assert isinstance(accumulators, Vector)
    slots = tuple(slot for slot in map(destination, accumulators.parts) if slot is not None)
    in_registers = isinstance(a, Vector)
    a_slots = [decoder.source(operand, np.uint32) for operand in parts_of(a)]
    b_slot, keeps = decoder.source(b, np.uint64), decoder.source(scale_d, np.bool_)
    numbers = [operand.value for operand in rest if isinstance(operand, Immediate)]
    scale_a, scale_b, *transposed = numbers
    a_transposed, b_transposed = ([0] * in_registers + transposed + [0, 0])[:2]
    vectors = frozenset(slots) | (frozenset(a_slots) if in_registers else frozenset())

    read: dict[tuple[int, ...], list[tuple[Any, Any]]] = {}

    def reads(shared: SharedMemory, *descriptors: int) -> list[tuple[Any, Any]]:
        """Of each warp of the four the places of what it reads, its rows of A, if they are in memory, and then B; and
        their granules. Descriptors come again with every step of a kernel."""
        if descriptors not in read:
            b_bytes = shape.b_bytes(descriptors[-1], bool(b_transposed))
            offsets = [shared.locate(b_bytes.reshape(-1), shape.itemsize)] * WARPS
            if not in_registers:
                a_bytes = shape.a_bytes(descriptors[0], bool(a_transposed)).reshape(WARPS, -1)
                rows = [shared.locate(own, shape.itemsize) for own in a_bytes]
                offsets = [np.concatenate(pair) for pair in zip(rows, offsets, strict=True)]
            read[descriptors] = [(own, shared.granules_of(own, shape.itemsize)) for own in offsets]
        return read[descriptors]

    def multiply(group: Group) -> None:
        program, registers = group.program, group.registers
        state: Asynchronous = program.asynchronous
        here = set(group.whole_warps(one.opcode).tolist())
        results = [registers[slot].copy() for slot in slots]
        for first in range(0, program.warps, WARPS):
            warps = [warp for warp in range(first, first + WARPS) if warp in here]
            if not warps:
                continue
            _check_fenced(state, warps, vectors, frozenset(slots))
            rows = slice(first, first + WARPS)
            descriptors = [_uniform(registers[slot], warps) for slot in ([] if in_registers else a_slots) + [b_slot]]
            places = reads(program.shared, *descriptors)
            if in_registers:
                left = shape.a_registers(tuple(registers[slot][rows] for slot in a_slots))
            else:
                left = np.empty((64, shape.k), f"u{shape.itemsize}")
            for warp in warps:
                offsets, granules = places[warp - first]
                values = program.shared.load_async(warp, offsets, shape.itemsize, granules)
                if not in_registers:
                    left[16 * (warp - first) :][:16] = values[: 16 * shape.k].reshape(16, -1)
                right = values[len(values) - shape.n * shape.k :].reshape(shape.n, shape.k)
                state.open[warp].append((slots, granules))
                state.busy[warp] |= set(slots)
            before = tuple(registers[slot][rows] for slot in slots)
            kept = registers[keeps][warps[0], 0]
            for result, value in zip(
                results, shape.product(left, right, before if kept else None, scale_a, scale_b), strict=True
            ):
                result[warps] = value[[warp - first for warp in warps]]
        for slot, result in zip(slots, results, strict=True):
            registers[slot] = result

    return multiply


def _check_fenced(state: Asynchronous, warps: list[int], vectors: frozenset[int], accumulators: frozenset[int]) -> None:
    for warp in warps:
        unfenced = state.unfenced[warp]
        if unfenced is None or unfenced & vectors:
            raise AsynchronousError("a wgmma takes registers that were written since the last wgmma.fence")
        for ongoing in [*state.groups[warp], state.open[warp]]:
            for slots, _ in ongoing:
                shares = accumulators & set(slots)
                if (shares and shares != accumulators) or (vectors - accumulators) & set(slots):
                    raise AsynchronousError("a wgmma takes registers that another one has not written yet")


def _uniform(register: Any, warps: list[int]) -> int:
    """A descriptor, the same in all threads."""
    values = register[warps]
    if (values != values[0, 0]).any():
        raise DivergenceError("a descriptor of a wgmma differs from thread to thread")
    return int(values[0, 0])


TENSOR: dict[str, Callable[[Decoder, Instruction], Step]] = {
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
    "wgmma": _wgmma,
}
