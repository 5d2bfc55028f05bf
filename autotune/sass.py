"""NVIDIA's machine code, decoded: what one step of a time loop and one poll of it take, instruction by instruction.

Beside its text every instruction has a control word, the upper bits of its 128: how many cycles the warp issues nothing
after it, and which of six scoreboards it waits for or sets (Jia et al., "Dissecting the NVIDIA Volta GPU Architecture
via Microbenchmarking", arXiv 1804.06826, section 2.1; the same up to sm_100). The cycles are what the issue of a warp
takes where nothing else holds it up: a count, no time.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Instruction(NamedTuple):
    """text as nvdisasm prints it, "@!P4 LDG.E.128 R4, desc[UR10][R58.64]"; what the control word says:

    stall:   cycles until the warp issues the next one.
    writes:  the scoreboard that is set until the result is there; None: none.
    reads:   the one that is set until the operands are read.
    waits:   those that are waited for before.
    """

    text: str
    stall: int = 1
    writes: int | None = None
    reads: int | None = None
    waits: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """ "LDG.E.128", without its predicate."""
        return _NAME.match(self.text)[1]  # type: ignore[index]

    @property
    def operands(self) -> list[str]:
        return self.text[_NAME.match(self.text).end() :].split(",")  # type: ignore[union-attr]

    @property
    def is_conditional(self) -> bool:
        """Whether a jump may go on instead: a predicate before it, or one among its operands ("BRA P0, `(.L_x_1)")."""
        return self.text.startswith("@") or bool(re.match(r"BRA\S*\s+(?:!?U?P\d|UR)", self.text))

    @property
    def jumps_to(self) -> str | None:
        found = _JUMP.search(self.text)
        return found[1] if found else None

    @property
    def is_team_load(self) -> bool:
        """A load past the L1: what a team reads of each other."""
        return self.name.startswith("LDG") and "STRONG" in self.name

    @property
    def asks_team(self) -> bool:
        """Whether a wait may consist of it: words of the team, or its counter."""
        return self.is_team_load or self.name.startswith(("ATOMG", "ATOM."))  # not ATOMS, of shared memory

    @property
    def is_matrix(self) -> bool:
        return bool(MATRIX.match(self.name))

    @property
    def is_local(self) -> bool:
        """A spilled register, put aside or fetched."""
        return self.name.startswith(("STL", "LDL"))

    @property
    def words(self) -> int:
        """32-bit words that a load or store moves, of each thread."""
        return 4 if ".128" in self.name else 2 if ".64" in self.name else 1


MATRIX = re.compile(r"(\w+MMA)(?:\.|\s|$)")  # not HFMA2.MMA, which is no matrix instruction
_NAME = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)")
_JUMP = re.compile(r"^(?:@!?U?P\w+\s+)?BRA\b.*`\(\.(L_x_\d+)\)")
_LABEL = re.compile(r"^\s*\.(L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_UPPER_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
_CONTROL = 41  # bits of the upper half before the control word


class Code(NamedTuple):
    """A kernel: its instructions, and for each label the one that it stands before."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def jump(self, at: int) -> int | None:
        """Where the jump at this place leads, None where there is none."""
        label = self.instructions[at].jumps_to
        return self.labels.get(label) if label else None


def decode(disassembly: str) -> Code:
    """The code that `nvdisasm -c -hex` printed; without -hex every control word is an `Instruction`'s default."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        if found := _LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := _INSTRUCTION.search(line):
            instructions.append(Instruction(found[1]))
        elif (found := _UPPER_HALF.match(line)) and instructions:
            instructions[-1] = _controlled(instructions[-1].text, int(found[1], 16) >> _CONTROL)
    return Code(tuple(instructions), labels)


def _controlled(text: str, word: int) -> Instruction:
    def scoreboard(number: int) -> int | None:
        return None if number == 7 else number

    waits = tuple(number for number in range(6) if word >> 11 + number & 1)
    return Instruction(text, max(1, word & 15), scoreboard(word >> 5 & 7), scoreboard(word >> 8 & 7), waits)


def loops(code: Code) -> list[range]:
    """The stretches of code from a label to a jump back to it, the shortest first.

    What was put out of the way, behind the end, jumps back too: a loop is entered at its head alone.
    """
    found = {
        range(start, at + 1)
        for at in range(len(code.instructions))
        if (start := code.jump(at)) is not None and start < at and at not in _reached(code, 0, past={start})
    }
    return sorted(found, key=len)


def _reached(code: Code, start: int, past: Container[int]) -> set[int]:
    """What can be reached from an instruction, itself included, past certain others."""
    seen = set() if start in past else {start}
    left = list(seen)
    while left:
        for following in _next(code, left.pop()):
            if following not in seen and following not in past:
                seen.add(following)
                left.append(following)
    return seen


def time_loop(code: Code) -> range | None:
    """The loop over the steps: the shortest that multiplies and stores; None where there is none."""

    def has(loop: range, what: str) -> bool:
        return any(code.instructions[at].name.startswith(what) for at in loop)

    multiplying = [loop for loop in loops(code) if any(code.instructions[at].is_matrix for at in loop)]
    return next((loop for loop in multiplying if has(loop, "STG")), multiplying[0] if multiplying else None)


def polls(code: Code, step: range) -> list[range]:
    """The innermost loops that wait for a team, by its words or by its counter. They may lie behind the step's text."""

    def waits(loop: range) -> bool:
        own = [code.instructions[at] for at in loop]
        return any(i.asks_team for i in own) and not any(i.is_matrix for i in own)

    every = [loop for loop in loops(code) if loop.start >= step.start and loop != step and waits(loop)]
    return [loop for loop in every if not any(other != loop and _inside(other, loop) for other in every)]


def _inside(loop: range, other: range) -> bool:
    return other.start <= loop.start and loop.stop <= other.stop


class Counts(NamedTuple):
    """Of a stretch of code: what each warp issues, the cycles that takes at least, and block-wide barriers."""

    instructions: int
    issue_cycles: int
    barriers: int


class Parts(NamedTuple):
    """Issue cycles of a step's parts, in their order where it waits first and multiplies then.

    head:      what comes before the first wait, or product.
    poll:      waits, until nothing is missing.
    operands:  from there to the next product: operands on their way to shared memory.
    product:   products, up to the end of the last of a row.
    gates:     everything else behind a product: gate math, stores, the way back to the loop's head.
    """

    head: int = 0
    poll: int = 0
    operands: int = 0
    product: int = 0
    gates: int = 0


@dataclass(frozen=True)
class Step:
    """One step of a time loop, on the shortest way through it: every wait ends with its first poll.

    counts:          of the whole step.
    parts:           its issue cycles, part by part.
    polls:           what each further poll takes, a wait after the other.
    poll_round_trips: the most that one poll goes to memory before it goes on: 1 where all its loads are on their way
                     before the first is used.
    shared_scoreboards: how often what is polled is waited for together with a load of something else, which may come
                     from device memory: six scoreboards are all there are, and ptxas deals them out. What was loaded
                     before a product is there by then.
    drained_groups:  how often it waits for the matrix unit to finish a row of products (wgmma, tcgen05).
    gathered_words:  32-bit words that each thread reads of the team's memory.
    """

    counts: Counts
    parts: Parts
    polls: tuple[Counts, ...]
    poll_round_trips: int
    shared_scoreboards: int
    drained_groups: int
    gathered_words: int


def step_of(code: Code) -> Step | None:
    """What a step takes; None where nothing loops."""
    loop = time_loop(code)
    if loop is None:
        return None
    waits = polls(code, loop)
    way = _way_through(code, loop, waits)
    instructions = [code.instructions[at] for at in way]
    distance = _distances(code, loop.start)[0]
    turns = [_turn(code, wait) for wait in sorted(waits, key=lambda wait: distance.get(wait.start, len(distance)))]
    rows = [[code.instructions[at] for at in row] for row in _between_exchanges(code, way)]
    return Step(
        count(instructions),
        _parts(code, way, waits),
        tuple(map(count, turns)),
        max((round_trips(row) for row in [*rows, *turns]), default=0),
        shared_scoreboards(instructions),
        sum(bool(_DRAIN.match(i.name)) for i in instructions),
        sum(i.words for i in instructions if i.is_team_load),
    )


_DRAIN = re.compile(r"WARPGROUP\.DEPBAR|UTCBAR")
_BARRIER = re.compile(r"BAR\.(?:SYNC|RED)")


def count(instructions: Sequence[Instruction]) -> Counts:
    barriers = sum(bool(_BARRIER.match(i.name)) for i in instructions)
    return Counts(len(instructions), sum(i.stall for i in instructions), barriers)


def _way_through(code: Code, loop: range, waits: Sequence[range]) -> list[int]:
    """The shortest way from a loop's head to its end that takes all its products and asks in every wait once."""
    stops = [at for at in loop if code.instructions[at].is_matrix]
    for wait in waits:
        if not _asked_before(code, loop, wait, waits):
            stops += [next(at for at in wait if code.instructions[at].asks_team), wait[-1]]
    way = [loop.start]
    for stop in [*sorted(stops), loop[-1]]:
        way += _shortest(code, way[-1], stop)[1:]
    return way


def _asked_before(code: Code, loop: range, wait: range, waits: Sequence[range]) -> bool:
    """Whether the team was asked before the loop of a wait is entered, so that a step may do without that loop."""
    before: dict[int, list[int]] = {}
    for at in range(len(code.instructions)):
        for following in _next(code, at):
            before.setdefault(following, []).append(at)
    seen, left = {loop.start}, [wait.start]
    while left:
        for at in before.get(left.pop(), []):
            if at in seen or code.instructions[at].is_matrix or any(at in other for other in waits):
                continue
            if code.instructions[at].asks_team:
                return True
            seen.add(at)
            left.append(at)
    return False


def _turn(code: Code, poll: range) -> list[Instruction]:
    """One turn of a wait: the shortest way round its loop that asks the team's memory."""
    asking = [at for at in poll if code.instructions[at].asks_team]
    ways = [_shortest(code, poll.start, at) + _shortest(code, at, poll[-1])[1:] for at in asking]
    shortest = min(ways, key=lambda way: sum(code.instructions[at].stall for at in way))
    return [code.instructions[at] for at in shortest]


def _shortest(code: Code, start: int, stop: int) -> list[int]:
    """The way from one instruction to another that issues in the fewest cycles; empty where none leads there."""
    if start == stop:
        return [start]
    distance, before = _distances(code, start)
    if stop not in distance:
        return []
    way = [stop]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def _distances(code: Code, start: int) -> tuple[dict[int, int], dict[int, int]]:
    """For each instruction that can be reached the cycles until then, and the one before it on the shortest way."""
    distance, before, heap = {start: 0}, {}, [(0, start)]
    while heap:
        so_far, at = heapq.heappop(heap)
        if so_far > distance[at]:
            continue
        for following in _next(code, at):
            then = so_far + code.instructions[at].stall
            if then < distance.get(following, then + 1):
                distance[following], before[following] = then, at
                heapq.heappush(heap, (then, following))
    return distance, before


def _next(code: Code, at: int) -> Iterable[int]:
    here, target = code.instructions[at], code.jump(at)
    if target is not None:
        yield target
    ends = target is not None or here.name.startswith(("EXIT", "RET"))
    # BRA.DIV jumps where a warp has parted.
    if (not ends or here.is_conditional or here.name == "BRA.DIV") and at + 1 < len(code.instructions):
        yield at + 1


def _between_exchanges(code: Code, way: Sequence[int]) -> list[Sequence[int]]:
    """The way, cut at its products and where it publishes: in each piece the loads of at most one wait."""
    here = [code.instructions[at] for at in way]
    cuts = [number for number, i in enumerate(here) if i.is_matrix or i.name.startswith("STG.E.STRONG")]
    return [way[start:stop] for start, stop in pairwise([0, *cuts, len(way)])]


def _parts(code: Code, way: Sequence[int], waits: Sequence[range]) -> Parts:
    """The issue cycles of a way through a step, by part."""
    here = [code.instructions[at] for at in way]
    in_loop = [any(at in wait for wait in waits) for at in way]
    by_counter = any(i.asks_team and not i.is_team_load for i in here)
    polling = [
        inside or (i.asks_team and i.is_team_load != by_counter) for i, inside in zip(here, in_loop, strict=True)
    ]
    matrix = [i.is_matrix for i in here]
    parts = dict.fromkeys(Parts._fields, 0)
    part = "head"
    for number, instruction in enumerate(here):
        if polling[number]:
            part = "poll"
        elif matrix[number]:
            part = "product"
        elif part == "poll" and _has_asked_all(number, here, polling):
            part = "operands" if any(matrix[number:]) else "gates"
        elif part == "product" and not _product_goes_on(number, here, polling):
            part = "gates"
        parts[part] += instruction.stall
    return Parts(**parts)


def _has_asked_all(number: int, here: Sequence[Instruction], polling: Sequence[bool]) -> bool:
    """Whether a wait is over: its loop is left, or what it brought goes to shared memory."""
    if here[number].name.startswith(("STS", "STSM")):
        return True
    return polling[number - 1] and not here[number - 1].is_team_load


def _product_goes_on(number: int, here: Sequence[Instruction], polling: Sequence[bool]) -> bool:
    """Whether another product, or the end of this one, follows before the next wait."""
    for then in range(number, len(here)):
        if polling[then]:
            return False
        if here[then].is_matrix or _DRAIN.match(here[then].name):
            return True
    return False


_REGISTER = re.compile(r"\bR(\d+)\b")


def round_trips(instructions: Iterable[Instruction]) -> int:
    """How often code waits for volatile loads: it uses what one has brought, and only then goes on with another."""
    waiting: set[int] = set()
    trips, begins = 0, True
    for instruction in instructions:
        operands = instruction.operands
        if instruction.is_team_load:
            trips, begins = trips + begins, False
            first = _REGISTER.search(operands[0])
            waiting.update(int(first[1]) + word for word in range(instruction.words) if first)
        else:
            sources = operands if instruction.name.startswith("ST") else operands[1:]
            used = waiting & {int(register) for source in sources for register in _REGISTER.findall(source)}
            waiting -= used
            begins = begins or bool(used)
    return trips


def shared_scoreboards(step: Sequence[Instruction]) -> int:
    """How often a step waits by one scoreboard for a load of the team's memory and for another load, that no product
    came after; what the step before has left open counts too.

    Backwards the parts of a product may share one with a single load of the next step's, issued before that product: it
    has the product's time until the parts are asked for, which are 200 clocks to L2 and 260 from there behind it.
    Device memory is 570 away (`constants` has the sources). Read in the code for sm_90 (bf16, B=16, Triton 3.7.1):
    770 issue cycles lie between the two in LSTM 768, 742 in GRU 768, 332 in three heads of LSTM 256, with drains of
    products, which issue cycles leave out, among them; so the load is there before the parts are. Forwards (LSTM 768)
    nothing shares a scoreboard with a poll, and in none of the four does anything across the loop's end.
    """
    pending: dict[int, set[bool]] = {}
    shared = 0
    for turn in range(2):
        for instruction in step:
            if instruction.is_matrix:
                for loads in pending.values():
                    loads.discard(False)
            for scoreboard in instruction.waits:
                shared += turn * (len(pending.pop(scoreboard, ())) == 2)
            if instruction.writes is not None and instruction.name.startswith("LDG"):
                pending.setdefault(instruction.writes, set()).add(instruction.is_team_load)
    return shared
