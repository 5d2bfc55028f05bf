"""Loads, stores, atomics and fences: which bytes, in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .atomics import ATOMIC
from .decode import SCOPES, Decoder, Group, Signal, Step, destination, lanes_of
from .errors import UnknownInstructionError
from .memory import BITS, SECTOR, GlobalMemory
from .operation import NUMBER
from .parse import Instruction, Memory, parts_of

_STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel"}
_HINTS = ("L1::", "L2::")
_CACHED = {"ca", "cg", "cs", "lu", "wb", "wt", "nc", "weak"}


class _Access:
    """What an opcode says: ld.relaxed.gpu.global.v2.b32"""

    def __init__(self, opcode: str) -> None:
        _, *suffixes = opcode.split(".")
        self.kind, self.count, self.order, self.space = suffixes.pop(), 1, "weak", "generic"
        for suffix in suffixes:
            if suffix in ("v2", "v4", "v8"):
                self.count = int(suffix[1:])
            elif suffix in _STRONG:
                self.order = suffix
            elif suffix.startswith("shared"):
                self.space = "shared"
            elif suffix in ("global", "param"):
                self.space = suffix
            elif suffix not in _CACHED and suffix not in SCOPES and not suffix.startswith(_HINTS):
                raise UnknownInstructionError(opcode)
        if self.space == "generic":
            raise UnknownInstructionError(opcode)
        self.size = int(self.kind[1:]) // 8
        # Strong only among the threads of its scope.
        self.strong = self.order != "weak" and "cta" not in suffixes
        self.acquires, self.releases = (self.order in (one, "acq_rel") for one in ("acquire", "release"))


def element_size(opcode: str) -> int | None:
    """Bytes of the numbers that an access to shared or global memory moves; None for anything else."""
    if opcode.split(".")[0] not in ("ld", "st", "atom", "red") or ".param" in opcode:
        return None
    return int(opcode.rsplit(".", 1)[1].lstrip("bfus").partition("x")[0]) // 8


def _load(decoder: Decoder, one: Instruction) -> Step:
    access, guard = _Access(one.opcode), decoder.guard(one)
    slots = [destination(operand) for operand in parts_of(one.operands[0])]
    pointer = one.operands[1]
    assert isinstance(pointer, Memory)
    assert len(slots) == access.count, one
    signed = NUMBER[access.kind] if access.kind[0] == "s" else None
    if access.space == "param":
        return _load_parameter(decoder, access, slots, pointer, signed)
    base, offset = decoder.source(pointer.base, np.uint64), pointer.offset
    shared, size, count = access.space == "shared", access.size, access.count

    def load(group: Group) -> Signal | None:
        places, warps = _active(group, guard)
        if not places.size:
            return None
        program = group.program
        addresses = _addresses(group, base, offset, places)
        if shared:
            offsets, warps = _elements(program.shared.locate(addresses, size * count), warps, size, count)
            values = program.shared.load(warps, offsets, size)
        else:
            memory = program.memory
            in_arena = memory.locate(addresses, size * count)
            offsets, warps = _elements(in_arena, warps + program.first_warp, size, count)
            if access.strong and _polls_in_vain(group, memory, offsets):
                group.at -= 1
                return Signal.SLEEP
            _order_load(group, memory, access, in_arena, warps[::count])
            values = memory.load(program.index, warps, offsets, size, access.strong)
        values = values.reshape(-1, count)
        for number, slot in enumerate(slots):
            if slot is not None:
                own = values[:, number]
                dtype = group.registers[slot].dtype
                register = group.registers[slot].copy()
                register.reshape(-1)[places] = (own.view(signed) if signed else own).astype(dtype)
                group.registers[slot] = register
        return None if shared else Signal.TURN

    return load


def _active(group: Group, guard: tuple[int, bool] | None) -> tuple[Any, Any]:
    """Places of the lanes in a flat register, and their warps."""
    if guard is None:
        return group.places, group.own_warps
    places = np.flatnonzero(lanes_of(group, guard))
    return places, places >> 5


def _addresses(group: Group, base: int, offset: int, places: Any) -> Any:
    return group.registers[base].reshape(-1)[places].astype(np.int64) + offset


def _elements(offsets: Any, warps: Any, size: int, count: int) -> tuple[Any, Any]:
    """The elements of vectors at these offsets, and each one's warp."""
    if count == 1:
        return offsets, warps
    return (offsets[:, None] + size * np.arange(count)).reshape(-1), np.repeat(warps, count)


def _polls_in_vain(group: Group, memory: GlobalMemory, offsets: Any) -> bool:
    """Whether this load has been executed before, and since then nothing has changed in all that the group polls, nor
    has another load of it looked at something new: what that one found may end the wait."""
    at, sectors = group.at, offsets // SECTOR
    before, _, looked = group.polled.get(at, (sectors[:0], 0, 0))
    again = np.array_equal(before, sectors)
    if again and not group.changed():
        if looked == group.looked and not memory.free_running:
            return True
    else:
        if again:
            group.polled.clear()
        group.looked += 1
    group.polled[at] = sectors, memory.version, group.looked
    return False


def _order_load(group: Group, memory: GlobalMemory, access: _Access, offsets: Any, warps: Any) -> None:
    if not access.strong:
        return
    clocks = memory.clocks
    if clocks.left:
        for warp, offset in zip(warps.tolist(), offsets.tolist(), strict=True):
            clocks.strong_load(warp, offset, access.acquires)
    if access.acquires:
        memory.acquire(group.program.index)


def _load_parameter(decoder: Decoder, access: _Access, slots: list[Any], pointer: Memory, signed: Any) -> Step:
    """From a parameter by its name, or by an address that was chosen among some."""
    if access.count != 1:
        raise UnknownInstructionError("ld.param of a vector")
    base, offset, slot, size = decoder.source(pointer.base, np.uint64), pointer.offset, slots[0], access.size
    dtype = decoder.dtypes[slot]

    def load(group: Group) -> None:
        # What inactive lanes hold may be no address.
        places = np.where(group.lanes, group.registers[base], 0).astype(np.int64) + offset
        value = group.program.parameters.view(BITS[size])[places // size]
        group.keep(slot, (value.view(signed) if signed else value).astype(dtype))

    return load


def _store(decoder: Decoder, one: Instruction) -> Step:
    access, guard = _Access(one.opcode), decoder.guard(one)
    pointer = one.operands[0]
    assert isinstance(pointer, Memory)
    size, count, dtype = access.size, access.count, BITS[access.size]
    sources = [decoder.source(operand, dtype) for operand in parts_of(one.operands[1])]
    assert len(sources) == count, one
    base, offset = decoder.source(pointer.base, np.uint64), pointer.offset
    shared = access.space == "shared"

    def store(group: Group) -> Signal | None:
        places, warps = _active(group, guard)
        if not places.size:
            return None
        program, registers = group.program, group.registers
        addresses = _addresses(group, base, offset, places)
        values = np.stack([registers[source].reshape(-1)[places].astype(dtype) for source in sources], 1).reshape(-1)
        if shared:
            offsets = program.shared.locate(addresses, size * count)
            offsets, warps = _elements(offsets, warps, size, count)
            program.shared.store(warps, offsets, values)
            return None
        memory = program.memory
        in_arena = memory.locate(addresses, size * count)
        warps = warps + program.first_warp
        offsets, of_elements = _elements(in_arena, warps, size, count)
        if access.releases:
            for warp in np.unique(warps).tolist():
                memory.release(warp)
        # A store behind a fence is a release too: whoever sees its value must see what the fence covers.
        lands = access.releases or (access.strong and memory.clocks.any_fenced(warps))
        memory.store(program.index, of_elements, offsets, values, access.strong, lands)
        if access.strong and (access.releases or memory.clocks.any_left()):
            for warp, place in zip(of_elements.tolist(), offsets.tolist(), strict=True):
                memory.clocks.strong_store(warp, place, access.releases, modifies=False)
        return Signal.TURN

    return store


def _atomic(decoder: Decoder, one: Instruction) -> Step:
    """atom and red, thread after thread."""
    verb, *suffixes = one.opcode.split(".")
    name = next((tail for i in range(len(suffixes)) if (tail := ".".join(suffixes[i:])) in ATOMIC), None)
    if name is None:
        raise UnknownInstructionError(one.opcode)
    access = _Access(".".join([verb, *suffixes[: -len(name.split("."))], suffixes[-1]]))
    if access.space != "global":
        raise UnknownInstructionError(one.opcode)
    operation, guard = ATOMIC[name], decoder.guard(one)
    slot = destination(one.operands[0]) if verb == "atom" else None
    pointer, *given = one.operands[verb == "atom" :]
    assert isinstance(pointer, Memory)
    dtype, size = operation.sources[0], np.dtype(operation.sources[0]).itemsize
    sources = [decoder.source(operand, dtype) for operand in given]
    base, offset = decoder.source(pointer.base, np.uint64), pointer.offset

    def atomic(group: Group) -> Signal | None:
        places, warps = _active(group, guard)
        if not places.size:
            return None
        program, registers = group.program, group.registers
        memory = program.memory
        offsets = memory.locate(_addresses(group, base, offset, places), size)
        operands = [registers[source].reshape(-1)[places] for source in sources]
        reads = name.startswith("add.") and not operands[0].any()  # how a kernel reads a counter
        if reads and _polls_in_vain(group, memory, offsets):
            group.at -= 1
            return Signal.SLEEP
        old = np.empty(places.size, dtype)
        for number, warp in enumerate((warps + program.first_warp).tolist()):
            place, own = offsets[number : number + 1], np.array([warp])
            if access.releases:
                memory.release(warp)
            memory.clocks.strong_load(warp, int(place[0]), access.acquires)
            before = memory.load(program.index, own, place, size, strong=True)
            after = operation.run(before, *(operand[number : number + 1] for operand in operands))
            memory.store(program.index, own, place, after, strong=True, lands=True)
            memory.clocks.strong_store(warp, int(place[0]), access.releases, modifies=True)
            old[number] = before[0]
        if access.acquires:
            memory.acquire(program.index)
        if slot is not None:
            register = registers[slot].copy()
            register.reshape(-1)[places] = old
            registers[slot] = register
        return Signal.TURN

    return atomic


def _fence(decoder: Decoder, one: Instruction) -> Step:
    name = one.opcode
    if name.startswith("fence.proxy.async"):
        return lambda group: group.program.shared.fence_proxy(group.whole_warps(name))
    words = name.split(".")
    if not (words[0] == "membar" or words[1] in ("acq_rel", "sc")) or words[-1] not in (*SCOPES, "gl"):
        raise UnknownInstructionError(name)

    def fence(group: Group) -> None:
        memory = group.program.memory
        for warp in group.in_grid.tolist():
            memory.release(warp)
            memory.clocks.fence(warp)
        memory.acquire(group.program.index)

    return fence


ACCESS: dict[str, Callable[[Decoder, Instruction], Step]] = {
    "ld": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "fence": _fence,
    "membar": _fence,
}
