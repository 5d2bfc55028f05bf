"""Runs a grid: who goes on next, who sleeps, what the time is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .access import element_size
from .clocks import Clocks
from .decode import Decoder, Signal
from .errors import REPORTED, DeadlockError, EndlessError
from .memory import GlobalMemory
from .parse import parse
from .program import Group, Lanes, Program
from .shared import SharedMemory

TURN_NS = 1000
"""What %globaltimer goes on by from turn to turn."""
STALLED_TURN_NS = 100_000
"""The same once everybody waits in vain and only the limit of the wait can end it."""
MOST_STEPS = 1_000_000
"""Instructions of one turn."""
MOST_TURNS = 1_000_000
"""Of a launch, for each of its programs: some minutes. A step takes tens, and a layer may have 66,000 steps."""


class Kernel:
    """A compiled kernel, decoded: what all launches of it share.

    shared_bytes:  of one program.
    """

    def __init__(self, ptx: str, num_warps: int, shared_bytes: int) -> None:
        self.code = parse(ptx)
        self.num_warps, self.shared_bytes = num_warps, shared_bytes
        self.decoder = Decoder(self.code, num_warps)
        self.steps = self.decoder.steps()
        sizes = {True: {4}, False: {4}}
        for one in self.code.instructions:
            if (size := element_size(one.opcode)) is not None:
                sizes["shared" in one.opcode].add(size)
        if any("wgmma" in one.opcode for one in self.code.instructions):
            sizes[True].add(2)
        self.granule, self.shared_granule = min(sizes[False]), min(sizes[True])
        """Bytes that accesses are remembered by."""


@dataclass(frozen=True)
class Behaviour:
    """How a launch is run.

    seed:              of the schedule, of when stores become visible, of what unwritten memory holds.
    stalled:           programs that never start.
    raise_on_deadlock: False lets programs that wait in vain run into their limit, as on a GPU.
    report_races:      False lets races happen, with the numbers that a GPU might read.
    most_turns:        of a launch, for each of its programs; one more is an EndlessError.
    """

    seed: int = 0
    stalled: Collection[int] = ()
    raise_on_deadlock: bool = True
    report_races: bool = True
    most_turns: int = MOST_TURNS


class Machine:
    """One launch.

    values:   of the kernel's parameters, in order.
    tensors:  (address, bytes) of all memory that it may touch.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: int,
        values: Sequence[int],
        tensors: Sequence[tuple[int, npt.NDArray[np.uint8]]],
        behaviour: Behaviour,
    ) -> None:
        self.kernel, self.behaviour, self.steps = kernel, behaviour, kernel.steps
        self.random = random.Random(behaviour.seed)
        self.now = self.turns = self.seen_version = 0
        clocks = Clocks(grid * kernel.num_warps)
        self.memory = GlobalMemory(tensors, clocks, grid, kernel.granule, self.random, behaviour.report_races)
        parameters = kernel.code.parameters
        assert len(values) == len(parameters), f"{len(parameters)} parameters, {len(values)} given"
        room = max((place + size for place, size in parameters.values()), default=0)
        self.parameters = np.zeros(-(-room // 8) * 8, np.uint8)
        for (place, size), value in zip(parameters.values(), values, strict=True):
            self.parameters[place : place + size] = np.frombuffer(
                (value & (1 << 8 * size) - 1).to_bytes(size, "little"), np.uint8
            )
        self.programs: list[Program] = []
        self.ready: list[Group] = []
        for index in range(grid):
            if index not in behaviour.stalled:
                self._start(index, grid)
        self.asleep: list[Group] = []
        self.most_turns = behaviour.most_turns * grid

    def _start(self, index: int, grid: int) -> None:
        kernel, warps = self.kernel, self.kernel.num_warps
        seen = self.memory.clocks.seen
        own = slice(index * warps, (index + 1) * warps)
        shared = SharedMemory(kernel.shared_bytes, kernel.shared_granule, seen[own, own], self.random)
        decoder = kernel.decoder
        # What nobody has written holds anything.
        noise = {d: self._noise(d) for d in {*decoder.dtypes}}
        registers = [noise[dtype] for dtype in decoder.dtypes] + decoder.constants
        thread = np.arange(32 * warps).reshape(warps, 32)
        special = dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"), 0 * thread)
        special |= {"%tid.x": thread, "%laneid": thread % 32, "%warpid": thread // 32, "%ctaid.x": 0 * thread + index}
        special |= {"%ntid.x": 0 * thread + 32 * warps, "%nctaid.x": 0 * thread + grid}
        for name, slot in decoder.special.items():
            registers[slot] = special[name].astype(registers[slot].dtype)
        program = Program(index, registers, shared, self.memory, self.parameters, lambda: self.now)
        self.programs.append(program)
        self.ready += self._perhaps_apart(Group(program, 0, np.ones((warps, 32), bool)))

    def _noise(self, dtype: Any) -> Any:
        lanes = 32 * self.kernel.num_warps
        bits = np.frombuffer(self.random.randbytes(8 * lanes), np.uint8)
        return (
            (bits[:lanes] & 1).astype(bool).reshape(-1, 32)
            if dtype is np.bool_
            else bits.view(dtype)[:lanes].reshape(-1, 32)
        )

    def run(self) -> None:
        """To the end of all programs; then memory is as they leave it.

        Raises what `errors` lists.
        """
        with np.errstate(all="ignore"):
            while self.ready or self.asleep:
                self._turn()
        if any(any(program.waiting.values()) for program in self.programs):
            raise DeadlockError(f"a barrier that not all come to: {self._everybody()}")
        self.memory.finish()

    def _turn(self) -> None:
        self.turns += 1
        if self.turns > self.most_turns:
            raise EndlessError(f"{self.most_turns} turns without an end: {self._everybody()}")
        self.now += STALLED_TURN_NS if self.memory.free_running else TURN_NS
        self.memory.land_some()
        if self.memory.version != self.seen_version:
            self.seen_version = self.memory.version
            awake = [group for group in self.asleep if group.changed()]
            self.asleep = [group for group in self.asleep if group not in awake]
            self.ready += awake
        if not self.ready:
            self._nobody_goes_on()
            return
        place = self.random.randrange(len(self.ready))
        group = self.ready[place]
        signal = self._run(group)
        if signal is not Signal.TURN:
            self.ready[place] = self.ready[-1]
            self.ready.pop()
            self._put_aside(group, signal)

    def _put_aside(self, group: Group, signal: Signal) -> None:
        program = group.program
        if signal is Signal.SLEEP:
            self.asleep.append(group)
            return
        if signal is Signal.BARRIER:
            for one in program.arrive(group):
                self.ready += self._perhaps_apart(one)

    def _perhaps_apart(self, group: Group) -> list[Group]:
        """Warps run on together, which is quicker, or now and then each for itself."""
        return group.apart() if not group.meetings and self.random.random() < 0.1 else [group]

    def _nobody_goes_on(self) -> None:
        if self.memory.any_pending():
            return
        if self.behaviour.raise_on_deadlock:
            raise DeadlockError(f"everybody waits for memory that nobody will write: {self._everybody()}")
        self.memory.free_running = True
        self.ready, self.asleep = self.asleep, []

    def _run(self, group: Group) -> Signal:
        steps = self.steps
        try:
            for _ in range(MOST_STEPS):
                at = group.at
                if at == group.meets_at:
                    group.meet()
                    continue
                group.at = at + 1
                signal = steps[at](group)
                if signal is not None:
                    return signal
        except REPORTED as error:
            group.at = at
            raise type(error)(f"{error} ({self._place(group, at, group.lanes)})") from error
        raise EndlessError(f"{MOST_STEPS} instructions without an end, {self._place(group, at, group.lanes)}")

    def _everybody(self) -> str:
        """Where each warp is that has not ended."""
        at_barriers = itertools.chain(*(groups for program in self.programs for groups in program.waiting.values()))
        # A group that waits at a barrier goes on behind it.
        groups = [(group, group.at) for group in self.ready + self.asleep] + [(g, g.at - 1) for g in at_barriers]
        return "; ".join(
            sorted(self._place(group, *way) for group, at in groups for way in [(at, group.lanes), *group.elsewhere()])
        )

    def _place(self, group: Group, at: int, lanes: Lanes) -> str:
        one = self.kernel.code.instructions[at]
        warps = ", ".join(map(str, np.flatnonzero(lanes.any(1))))
        return f"{one.opcode}, PTX line {one.line}, {one.source}, program {group.program.index} warps {warps}"
