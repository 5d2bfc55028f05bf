"""What one program of a config needs of its SM, by a model: the compile gate holds it against the compiler."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.describe import dot_precision, part_of_product
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits


@dataclass(frozen=True)
class Footprint:
    """What one program keeps: bytes in shared memory, 32-bit registers per thread for the big tiles."""

    shared: int
    registers: int


def footprint(problem: Problem, config: Config, limits: DeviceLimits) -> Footprint:
    """A model of what the compiler allocates.

    NVIDIA: W_hh and the other operand lie in shared memory; what is polled also passes through registers.
    AMD: both lie in registers, and shared memory serves one chunk's change of layout.
    """
    width = operand_bytes(problem, limits)
    k = columns(problem, config)
    rows = weight_rows(problem, config)
    gathered = gathered_rows(problem, config)
    weights = rows * k * width
    thread_bytes = 4 * config.num_warps * limits.warp_size
    if limits.arch[0] == "hip":
        chunk = max(rows, gathered) * config.BLOCK_K * width
        return Footprint(shared=chunk, registers=(weights + config.BLOCK_B * k * width) // thread_bytes)
    if config.regime == "single_cta":
        # The accumulator changes layout on its way to the gate math, through at most its own size.
        scratch = min(rows * config.BLOCK_B * 4, 12 * 1024)
        return Footprint(weights + gathered * k * width + scratch, rows * config.BLOCK_B * 4 // thread_bytes)
    # What is polled comes all at once; behind a barrier a chunk follows the other through the same memory.
    operand = gathered * (k if config.exchange == "dataflow" else min(k, config.BLOCK_K)) * width
    polled = gathered * k * problem.dtype.itemsize if config.exchange == "dataflow" else 0
    return Footprint(shared=weights + operand + 64, registers=polled // thread_bytes)


def weight_rows(problem: Problem, config: Config) -> int:
    """Rows of the product with W_hh in one program: its units' gates, backwards the units of all who share it."""
    if problem.phase == "backward" and config.regime == "cooperative":
        return config.SPLIT_K * config.BLOCK_H
    return find_cell(problem.cell).padded_gates * config.BLOCK_H


def columns(problem: Problem, config: Config) -> int:
    """Numbers that one row of the product sums up in one program, padded to whole chunks."""
    if config.regime == "single_cta":
        return config.BLOCK_H
    summed = part_of_product(problem, config) if problem.phase == "backward" else problem.hidden_size
    return math.ceil(summed / config.BLOCK_K) * config.BLOCK_K


def gathered_rows(problem: Problem, config: Config) -> int:
    """Rows of the other operand: a batch tile; for one program backwards one of every gate's gradient."""
    alone_backwards = problem.phase == "backward" and config.regime == "single_cta"
    return config.BLOCK_B * (find_cell(problem.cell).padded_gates if alone_backwards else 1)


def operand_bytes(problem: Problem, limits: DeviceLimits) -> int:
    """Bytes of one number of W_hh on chip: tf32x3 keeps a large and a small part."""
    parts = 2 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1
    return problem.dtype.itemsize * parts


def matrix_bytes(problem: Problem, limits: DeviceLimits) -> int:
    """Bytes of the whole W_hh of all directions on chip."""
    rows = find_cell(problem.cell).gates * problem.hidden_size
    return problem.directions * rows * problem.hidden_size * operand_bytes(problem, limits)
