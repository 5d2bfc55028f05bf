"""What the machine code of a step takes, by formula: no kernel is compiled to choose a config.

`fit_counts` compiles a few hundred configs, counts (`sass`), and fits straight lines through the counts, one set for
each matrix instruction, phase and exchange: `counts.json`. Here they are evaluated.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.describe import dot_precision, split_k
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .constraints import alone_backwards, chunks_in_turn, columns, gathered_rows, weight_rows

FILE = Path(__file__).with_name("counts.json")


class Features(NamedTuple):
    """What the counts are straight lines of, per thread or warp of a program.

    loads:     loads of the team's memory, of 16 bytes where rows begin at multiples of that.
    parts:     words of the others' parts of a product.
    products:  matrix instructions.
    chunks:    tiles of W_hh, each a row of products.
    units:     units and rows of its gate math; gates: times the cell's gates.
    lifted:    numbers that float32 without TF32 cuts in two.
    narrow:    gates, where rows begin at no multiple of 16 numbers: loaded and stored number by number.
    each_gate: the cell's gates: what a gate costs however small its tile is. Without it an RNN's single program on
               sm_80 was counted as twice what it takes backwards.
    """

    one: float
    loads: float
    parts: float
    products: float
    chunks: float
    units: float
    gates: float
    lifted: float
    narrow: float
    each_gate: float


class Counts(NamedTuple):
    """Of one step whose waits end with their first poll.

    poll, operands, product, rest:  issue cycles of a warp, as `sass.Parts`; rest is head and gates.
    barriers:                       of the whole step.
    again, again_barriers:          issue cycles and barriers of one more poll of every wait.
    drained:                        rows of products that are waited for.
    """

    poll: float
    operands: float
    product: float
    rest: float
    barriers: float
    again: float
    again_barriers: float
    drained: float


DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "poll": ("one", "loads", "parts"),
    "operands": ("one", "loads", "lifted"),
    "product": ("one", "products", "chunks", "lifted"),
    "rest": ("one", "units", "gates", "parts", "narrow", "each_gate"),
    "barriers": ("one", "chunks", "gates"),
    "again": ("one", "loads", "parts"),
    "again_barriers": ("one",),
    "drained": ("chunks",),
}
"""Which features the line of a count has."""


def has_wgmma(limits: DeviceLimits) -> bool:
    """Hopper (90) has wgmma, data-centre Blackwell (100 to 110) tcgen05; consumer Blackwell (120) has neither."""
    return limits.arch[0] == "cuda" and 90 <= int(limits.arch[1]) < 120


def runs_as_wgmma(problem: Problem, config: Config, limits: DeviceLimits) -> bool:
    """Whether the matrix unit reads W_hh from shared memory by itself: 64 rows or more in one dot."""
    rows = config.BLOCK_H if alone_backwards(problem, config) else weight_rows(problem, config)
    return has_wgmma(limits) and rows >= 64


def group_of(problem: Problem, config: Config, limits: DeviceLimits) -> str:
    """The set of lines that a kernel belongs to."""
    matrix = "mma"
    if runs_as_wgmma(problem, config, limits):
        matrix = "wgmma" if limits.arch[1] == 90 else "tcgen05"
    exchange = "registers" if config.regime == "single_cta" else config.exchange
    return f"{matrix} {problem.phase} {exchange}"


def features_of(problem: Problem, config: Config, limits: DeviceLimits) -> Features:
    threads = 32 * config.num_warps
    size = problem.dtype.itemsize
    numbers = gathered_rows(problem, config) * columns(problem, config)
    cooperative = config.regime == "cooperative"
    width = math.gcd(16, size * problem.head_size)
    split = split_k(problem, config)
    own = config.BLOCK_H * config.BLOCK_B / threads
    gates_shared = find_cell(problem.cell).padded_gates if problem.phase == "forward" else 1
    lifted = dot_precision(problem, limits.arch[0]) == "tf32x3"
    return Features(
        one=1.0,
        loads=numbers * size / width / threads if cooperative else 0.0,
        parts=split * own * gates_shared if split > 1 else 0.0,
        products=matrix_instructions(problem, config, limits),
        chunks=float(chunks_in_turn(problem, config, limits)),
        units=own,
        gates=own * find_cell(problem.cell).gates,
        lifted=numbers / threads if lifted else 0.0,
        narrow=own * find_cell(problem.cell).gates if problem.head_size % 16 else 0.0,
        each_gate=float(find_cell(problem.cell).gates),
    )


def matrix_instructions(problem: Problem, config: Config, limits: DeviceLimits) -> float:
    """Matrix instructions of a warp: m64nNk16 of a warp group, or m16n8k16 of a warp (half as many k for float32)."""
    k = 8 if problem.dtype == torch.float32 else 16
    deep = columns(problem, config) / k * (find_cell(problem.cell).gates if alone_backwards(problem, config) else 1)
    deep *= 3 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1
    rows = max(16, config.BLOCK_H if alone_backwards(problem, config) else weight_rows(problem, config))
    if runs_as_wgmma(problem, config, limits):
        return deep * max(1.0, rows / 64 / (config.num_warps / 4))
    return deep * max(1.0, rows / 16 * (config.BLOCK_B / 8) / config.num_warps)


def counts_of(problem: Problem, config: Config, limits: DeviceLimits) -> Counts:
    """What a step of this kernel takes, by the fitted lines. AMD's code has no cycles in it: there mma.sync's stand."""
    lines = fitted()[group_of(problem, config, limits)]
    features = features_of(problem, config, limits)
    return Counts(*(max(0.0, evaluate(lines.lines[name], features)) for name in Counts._fields))


def evaluate(line: dict[str, float], features: Features) -> float:
    return sum(slope * getattr(features, name) for name, slope in line.items())


@dataclass(frozen=True)
class Lines:
    """kernels: that were counted. lines: a count's slope for each feature. off_by: the median and the largest
    difference between a step's issue cycles by the lines and as counted, as a share of the latter."""

    kernels: int
    lines: dict[str, dict[str, float]]
    off_by: tuple[float, float]


@cache
def fitted() -> dict[str, Lines]:
    """The lines of every group, from `counts.json`."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Lines(row["kernels"], row["lines"], tuple(row["off_by"])) for name, row in content["groups"].items()}
