"""The text of a compiled kernel as a list of instructions, registers and labels resolved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from .control import meeting_points


class Memory(NamedTuple):
    """[base + offset]: a register, or the name of a parameter or of a variable in shared memory."""

    base: Operand
    offset: int


class Register(NamedTuple):
    slot: int


class Negated(NamedTuple):
    """!p"""

    register: Register


class Immediate(NamedTuple):
    """A number: an integer, or the bits of a floating-point literal."""

    value: int


class Symbol(NamedTuple):
    """A special register, a parameter, a variable, or `_`."""

    name: str


class Vector(NamedTuple):
    """{a, b}"""

    parts: tuple[Operand, ...]


Operand: TypeAlias = "Register | Negated | Immediate | Symbol | Memory | Vector"


def parts_of(operand: Operand) -> tuple[Operand, ...]:
    """Of a vector; of anything else itself."""
    return operand.parts if isinstance(operand, Vector) else (operand,)


@dataclass(frozen=True)
class Instruction:
    """operands: as in the text, a|b as two operands; of a branch none.
    target:   index of the instruction that a branch goes to.
    meets:    of a branch, the index where both ways meet again: the immediate post-dominator.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    line: int
    source: str
    pair: bool = False
    target: int = -1
    meets: int = -1


@dataclass
class Code:
    """A kernel.

    parameters:      name, and the first byte and how many bytes in parameter space.
    registers:       the type of each, "b32" or "pred"; names: as in the text.
    shared_symbols:  variables in shared memory, of which a Triton kernel has one: all of it.
    """

    name: str = ""
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    registers: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    shared_symbols: set[str] = field(default_factory=set)
    instructions: list[Instruction] = field(default_factory=list)


_STATEMENT = re.compile(r"(?:@(!?)([\w$%]+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s|]+")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,)]*?([\w$]+)\s*[,)\n]")


def parse(text: str) -> Code:
    """The one kernel of a PTX module.

    Raises ValueError for text that it cannot read.
    """
    code = Code()
    head, _, body = text.partition(".visible .entry ")
    code.name = body[: body.index("(")].strip()
    code.shared_symbols = set(re.findall(r"\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)", head))
    signature = body[: body.index("\n{")]
    place = 0
    for kind, name in _PARAMETER.findall(signature + "\n"):
        size = int(kind[1:]) // 8
        place = -(-place // size) * size
        code.parameters[name] = place, size
        place += size
    files = {number: path.rsplit("/", 1)[-1] for number, path in re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text)}
    reader = _Reader(code, files, text[: text.index(body)].count("\n") + 1)
    reader.read(body, signature.count("\n"))
    return code


class _Reader:
    """Walks through the lines of a kernel's body; names live in the block that declares them."""

    def __init__(self, code: Code, files: dict[str, str], first_line: int) -> None:
        self.code, self.files, self.first_line = code, files, first_line
        self.scopes: list[dict[str, int]] = []
        self.labels: list[dict[str, int]] = []
        self.jumps: list[tuple[int, str, list[dict[str, int]]]] = []
        self.source = ""
        self.found: list[Instruction] = []

    def read(self, body: str, skip: int) -> None:
        pending = ""
        for number, line in enumerate(body.split("\n")):
            if number <= skip:
                continue
            line = pending + line.partition("//")[0].strip()
            pending = ""
            if line == "{":
                self._enter()
            elif line == "}":
                if self._leave():
                    break
            elif line.startswith(".loc"):
                self._locate(line)
            elif label := re.fullmatch(r"([\w$.]+):", line):
                self.labels[-1][label[1]] = len(self.found)
            elif line and not line.endswith(";"):
                pending = line + " "
            else:
                for statement in filter(None, map(str.strip, line.split(";"))):
                    self._statement(statement, self.first_line + number)
        self._resolve()

    def _enter(self) -> None:
        self.scopes.append({})
        self.labels.append({})

    def _leave(self) -> bool:
        self.scopes.pop()
        # Kept in `jumps` for those who jump within the block.
        self.labels.pop()
        return not self.scopes

    def _locate(self, line: str) -> None:
        _, number, row, *_ = line.split()
        if row != "0":  # a line that the compiler made up; the last one says more
            self.source = f"{self.files.get(number, number)}:{row}"

    def _statement(self, text: str, line: int) -> None:
        if text.startswith(".reg"):
            self._declare(text)
            return
        if text.startswith("."):  # .pragma and the like
            return
        negated, guard, opcode, rest = _STATEMENT.fullmatch(text).groups()  # type: ignore[union-attr]
        condition: Register | Negated | None = None
        if guard:
            condition = Register(self._slot(guard))
            condition = Negated(condition) if negated else condition
        if opcode.split(".")[0] == "bra":
            self.jumps.append((len(self.found), rest.strip(), list(self.labels)))
            operands: tuple[Operand, ...] = ()
        else:
            operands = tuple(map(self._operand, _OPERAND.findall(rest)))
        pair = "|" in rest
        self.found.append(Instruction(opcode, operands, condition, line, self.source, pair))

    def _declare(self, text: str) -> None:
        _, kind, names = text.split(None, 2)
        for name in names.split(","):
            name = name.strip()
            many = re.fullmatch(r"(.*)<(\d+)>", name)
            for one in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]:
                self.scopes[-1][one] = len(self.code.registers)
                self.code.registers.append(kind.lstrip("."))
                self.code.names.append(one)

    def _slot(self, name: str) -> int:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise ValueError(f"{name} is not declared")

    def _operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(map(self._operand, _OPERAND.findall(text[1:-1]))))
        if text[0] == "[":
            base, plus, offset = text[1:-1].replace(" ", "").partition("+")
            return Memory(self._operand(base), int(offset, 0) if plus else 0)
        if text[0] == "!":
            return Negated(Register(self._slot(text[1:])))
        if _INTEGER.fullmatch(text):
            return Immediate(int(text.rstrip("U"), 0))
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
            return Immediate(int(text[2:], 16))
        if re.fullmatch(r"\d+\.\d+", text):  # createpolicy's fraction
            return Symbol(text)
        for scope in reversed(self.scopes):
            if text in scope:
                return Register(scope[text])
        return Symbol(text)

    def _resolve(self) -> None:
        targets: dict[int, int] = {}
        for index, label, scopes in self.jumps:
            targets[index] = next(scope[label] for scope in reversed(scopes) if label in scope)
        meets = meeting_points(
            [(_ends(one), targets.get(index), one.guard is not None) for index, one in enumerate(self.found)]
        )
        for index, one in enumerate(self.found):
            if index in targets:
                one = Instruction(
                    one.opcode, (), one.guard, one.line, one.source, target=targets[index], meets=meets.get(index, -1)
                )
            self.code.instructions.append(one)


def _ends(one: Instruction) -> bool:
    return one.opcode in ("ret", "exit", "trap")
