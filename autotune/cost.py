"""What a config costs by estimate, term by term: it decides what is tried first, never what is chosen once timed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.describe import dot_precision, least_grid, split_k
from ..kernels.layer import Keep
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .constants import Constants, constants_for
from .footprint import columns, gathered_rows, matrix_bytes, operand_bytes, weight_rows


@dataclass(frozen=True)
class Estimate:
    """Microseconds of one time step of the whole batch, by cause.

    weights:   reading the resident W_hh from shared memory.
    matrix:    the matrix unit's work; it overlaps with `weights`, so only the larger counts.
    chunks:    products that wait for each other, one a chunk of W_hh.
    gates:     gate math.
    exchange:  h from one program to the others, latency.
    gather:    the same, bytes through L2.
    stream:    what the step reads and writes of device memory; it overlaps with all of the above.
    passes:    batch tiles that find no SM run one after the other.
    once:      microseconds before the first step: the launch, and W_hh from device memory.
    """

    weights: float
    matrix: float
    chunks: float
    gates: float
    exchange: float
    gather: float
    stream: float
    passes: int
    once: float

    @property
    def step_us(self) -> float:
        busy = max(self.weights, self.matrix) + self.chunks + self.gates + self.exchange + self.gather
        return max(self.passes * busy, self.stream)

    def total_us(self, length: int) -> float:
        return self.once + length * self.step_us


def estimate(
    problem: Problem,
    config: Config,
    limits: DeviceLimits,
    constants: Constants | None = None,
    keep: Keep = "nothing",
) -> Estimate:
    """The cost of a config on a GPU; without `constants`, with those of `constants_for(limits)`."""
    c = constants or constants_for(limits)
    cell = find_cell(problem.cell)
    clock = c.clock_mhz.value
    rows, k = weight_rows(problem, config), columns(problem, config)
    cooperative = config.regime == "cooperative"
    tiles = math.ceil(problem.batch_size / config.BLOCK_B)
    programs = least_grid(problem, config) if cooperative else problem.directions

    products = 3 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1
    rate = c.matrix_flops_per_clock.value * clock
    if problem.dtype == torch.float32:
        rate *= c.tf32_share.value
    if has_wgmma(limits) and not runs_as_wgmma(problem, config, limits):
        rate *= c.mma_sync_share.value

    exchange = gather = 0.0
    if cooperative:
        hops = (1 if cell.inner is None else 2) * (1 if split_k(problem, config) == 1 else 2)
        exchange = hops * (c.barrier_us if config.exchange == "barrier" else c.dataflow_us).value
        side_by_side = min(tiles, max(1, limits.num_sms // programs))
        words = side_by_side * programs * gathered_rows(problem, config) * k
        one = gathered_rows(problem, config) * k * problem.dtype.itemsize / (c.sm_l2_bytes_per_clock.value * clock)
        gather = max(one, words * problem.dtype.itemsize / c.l2_bytes_per_us.value)

    units = problem.batch_size * problem.directions * problem.hidden_size
    streamed = units * _streamed_numbers(problem, keep) * problem.dtype.itemsize
    return Estimate(
        weights=rows * k * operand_bytes(problem, limits) / (c.shared_bytes_per_clock.value * clock),
        matrix=products * 2.0 * max(16, rows) * config.BLOCK_B * k / rate,
        chunks=k // config.BLOCK_K * c.chunk_us.value,
        gates=config.BLOCK_H * config.BLOCK_B * c.gate_clocks.value / clock,
        exchange=exchange,
        gather=gather,
        stream=streamed / c.dram_bytes_per_us.value,
        passes=math.ceil(tiles / max(1, limits.num_sms // programs)),
        once=c.launch_us.value + matrix_bytes(problem, limits) / c.dram_bytes_per_us.value,
    )


def _streamed_numbers(problem: Problem, keep: Keep) -> int:
    """Numbers per unit and row that a step moves between device memory and the chip."""
    cell = find_cell(problem.cell)
    later_states = cell.states - 1
    if problem.phase == "forward":
        kept = 0 if keep == "nothing" else later_states + (cell.saved if keep == "save" else 0)
        return cell.gates + 1 + kept  # x's gates in, h out
    # dy and h in, the gates' gradients out (x's apart where they differ), v in or what it is worked out from.
    v = 2 * cell.gates if keep == "recompute" and cell.saved else cell.saved
    return 2 + cell.gates * (2 if cell.split_gradient else 1) + later_states + v


def has_wgmma(limits: DeviceLimits) -> bool:
    """Hopper (90) has wgmma, data-centre Blackwell (100 to 110) tcgen05; consumer Blackwell (120) has neither."""
    return limits.arch[0] == "cuda" and 90 <= int(limits.arch[1]) < 120


def runs_as_wgmma(problem: Problem, config: Config, limits: DeviceLimits) -> bool:
    """Whether the matrix unit reads W_hh from shared memory by itself: 64 rows or more in one dot."""
    alone_backwards = problem.phase == "backward" and config.regime == "single_cta"
    rows = config.BLOCK_H if alone_backwards else weight_rows(problem, config)
    return has_wgmma(limits) and rows >= 64
