"""What blocks of PTX take for granted of the layouts that Triton chose, read from the compiled kernel.

Inline assembly sees a thread's own registers; a layout that nobody expected would be wrong numbers without a word. So
every kernel that is compiled is looked at: by `launch` before it runs, by `autotune` where the compile gate judges it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class LayoutError(RuntimeError):
    """Triton gave a block of PTX another layout than it was written for."""


class _Block(NamedTuple):
    text: str
    operands: list[str]
    layouts: set[str]
    """Names of all its operands' layouts."""
    results: int


_ALIAS = re.compile(r"^(#\w+) = (#ttg\.\w+<.*>)$", re.MULTILINE)
_BLOCK = re.compile(r'tt\.elementwise_inline_asm "(.*?)" \{.*?\} (.*?) : (.*?) -> (.*)')
_MADE = re.compile(r"^\s*(%[\w#]+) = (\S+) .*?(#\w+)>(?: loc\(.*\))?$", re.MULTILINE)


def check_layouts(ttgir: str) -> None:
    """Raise LayoutError unless every block that a layout decides about has the one it needs.

    ttgir:  of a kernel, as `compiled.asm["ttgir"]` has it.
    """
    if "tt.elementwise_inline_asm" not in ttgir:
        return
    aliases = dict(_ALIAS.findall(ttgir))
    made = {name: (operation, layout) for name, operation, layout in _MADE.findall(ttgir)}
    for block in _blocks(ttgir):
        if "shfl.sync" in block.text:
            _check_trade(block, aliases)
        elif "ld.relaxed.gpu" in block.text:
            _check_poll(block, aliases, made)


def _blocks(ttgir: str) -> Iterator[_Block]:
    for text, operands, types, results in _BLOCK.findall(ttgir):
        yield _Block(text, operands.split(", "), set(re.findall(r"(#\w+)>", types)), results.count("tensor<"))


def _check_trade(block: _Block, aliases: dict[str, str]) -> None:
    """Of `interleave.trade`: the accumulator of an m64n16, a slab of 16 rows a warp."""
    layouts = [aliases.get(name, name) for name in block.layouts]
    wanted = ("nvidia_mma", "versionMajor = 3", "warpsPerCTA = [4, 1]", "instrShape = [16, 16, 16]")
    tf32 = (*wanted[:3], "instrShape = [16, 16, 8]")
    if len(layouts) != 1 or not any(all(part in layouts[0] for part in parts) for parts in (wanted, tf32)):
        raise LayoutError(f"the gates' trade needs an accumulator m64n16 of wgmma, not {layouts}")


def _check_poll(block: _Block, aliases: dict[str, str], made: dict[str, tuple[str, str]]) -> None:
    """Of `spin.poll` and `spin.parts_poll`: the layout of the load that came before, its vectors whole."""
    vector = max((int(width) for width in re.findall(r"global\.v(\d)\.b32", block.text)), default=1)
    if len(block.layouts) != 1:
        raise LayoutError(f"a poll's operands have several layouts: {sorted(block.layouts)}")
    (name,) = block.layouts
    layout = aliases.get(name, name)
    if _side_by_side(layout) % vector:
        raise LayoutError(f"a poll reads {vector} words at a pointer, which {layout} does not have side by side")
    for words in block.operands[: block.results]:
        if made.get(words) != ("tt.load", name):
            raise LayoutError(f"a poll's words come from {made.get(words)}, not from a load of layout {name}")


def _side_by_side(layout: str) -> int:
    """How many elements of a thread follow each other along the last dimension."""
    if found := re.search(r"sizePerThread = \[([\d, ]+)\].*order = \[(\d+)", layout):
        sizes = [int(size) for size in found[1].split(",")]
        return sizes[-1] if int(found[2]) == len(sizes) - 1 else 1
    found = re.search(r"register = \[\[(.*?)\]\],", layout)  # a linear layout: each bit of the register's number
    bases = [int(base.split(",")[-1]) for base in found[1].split("], [")] if found else []
    count = 1
    for base in bases:
        if base != count:
            break
        count *= 2
    return count
