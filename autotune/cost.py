"""What a config costs by estimate, term by term: it ranks configs, and says whether torch's own op would be faster.

What was timed always beats it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.describe import directions_at_once, dot_precision, heads_at_once, split_k, team_size
from ..kernels.kept import Keep
from ..kernels.plan import Provenance
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .constants import Constants, constants_for, weakest
from .constraints import chunks_in_turn, columns, gathered_rows, matrix_bytes, weight_bytes, weight_rows
from .counts import Counts, counts_of, has_wgmma, matrix_instructions, runs_as_wgmma


@dataclass(frozen=True)
class Estimate:
    """Microseconds of one time step of the whole batch, by cause.

    publish:   from a member's stores until the others may see them.
    waits:     polls, those that fail and the one that finds everything: latency of L2, the bytes, the test.
    product:   the matrix unit's work, or W_hh's way to it from shared memory, or issuing it: whichever is longest;
               and each row of products that is waited for.
    issue:     what the warps issue besides: operands, gate math, addresses, stores.
    barriers:  block-wide barriers outside of the polls.
    stream:    what the step reads and writes of device memory; it overlaps with all of the above.
    passes:    batch tiles that find no SM run one after the other.
    once:      microseconds before the first step: the launch, and W_hh from device memory.
    provenance: the weakest of the constants in it. Issue cycles, barriers and rows of products are counted offline.
    """

    publish: float
    waits: float
    product: float
    issue: float
    barriers: float
    stream: float
    passes: int
    once: float
    provenance: Provenance

    @property
    def step_us(self) -> float:
        busy = self.publish + self.waits + self.product + self.issue + self.barriers
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
    clock = c.clock_mhz.value
    counts = counts_of(problem, config, limits)
    cooperative = config.regime == "cooperative"
    tiles = math.ceil(problem.batch_size / config.BLOCK_B)
    at_once = directions_at_once(problem, config, limits.num_sms)
    heads = heads_at_once(problem, config, limits.num_sms)
    programs = at_once * heads * team_size(problem, config)
    turns = problem.directions // at_once * math.ceil(problem.num_heads / heads)
    if not cooperative and programs > limits.num_sms:
        turns = math.ceil(programs / limits.num_sms)
    side_by_side = min(tiles, max(1, limits.num_sms // programs))

    publish = waits = 0.0
    outside = counts.barriers
    if cooperative:
        hops = (1 if find_cell(problem.cell).inner is None else 2) * (1 if split_k(problem, config) == 1 else 2)
        publish = hops * c.visible_clocks.value
        waits = hops * _wait(problem, config, limits, counts, hops, side_by_side * programs, c)
        outside = max(0.0, outside - counts.again_barriers)
    means = means_of(problem)
    if means and team_size(problem, config) > 1:
        publish += means * c.visible_clocks.value
        waits += means * (1 + c.failing_polls.value) * c.l2_clocks.value

    units = problem.batch_size * problem.directions * problem.hidden_size
    streamed = units * _streamed_numbers(problem, keep) * problem.dtype.itemsize
    return Estimate(
        publish=publish / clock,
        waits=waits / clock,
        product=_product(problem, config, limits, counts, c) / clock,
        issue=(counts.operands + counts.rest + means * MEANS_CYCLES) / clock,
        barriers=outside * c.barrier_clocks.value / clock,
        stream=streamed / c.dram_bytes_per_us.value,
        passes=turns * math.ceil(tiles / max(1, limits.num_sms // programs)),
        once=c.launch_us.value + matrix_bytes(problem, limits) / c.dram_bytes_per_us.value,
        provenance=weakest(getattr(c, name).provenance for name in _used(problem, config, limits)),
    )


MEANS_CYCLES = 750
"""Issue cycles of one of a step's means with what is done with it, reductions over a program's units above all: LSTM
and GRU of 768, bf16, sm_90, take 1,500 more forwards than without a layer norm (two means) and 950 (one), backwards
1,580 (four) and 1,600 (two)."""


def means_of(problem: Problem) -> int:
    """How many means a step takes one after the other: half of a cell's are forwards', and backwards it works its gates
    out again."""
    normalised = find_cell(problem.cell).normalised
    forwards = normalised // 2
    return forwards if problem.phase == "forward" or not normalised else normalised - forwards + 1


def _used(problem: Problem, config: Config, limits: DeviceLimits) -> list[str]:
    """The constants that a step's cost depends on."""
    used = ["clock_mhz", "barrier_clocks", "matrix_flops_per_clock", "shared_bytes_per_clock", "dram_bytes_per_us"]
    if problem.dtype == torch.float32:
        used.append("tf32_share")
    if runs_as_wgmma(problem, config, limits):
        used += ["wgmma_clocks", "drain_clocks"]
    elif has_wgmma(limits):
        used.append("mma_sync_share")
    if config.regime == "cooperative":
        used += ["visible_clocks", "failing_polls", "l2_clocks", "l2_bytes_per_us", "sm_l2_bytes_per_clock"]
        used += ["arrive_clocks"] if config.exchange == "barrier" else []
    return used


def _wait(
    problem: Problem, config: Config, limits: DeviceLimits, counts: Counts, hops: int, programs: int, c: Constants
) -> float:
    """Clocks of one of a step's waits: its polls, or, behind a counter, polls of that and then the chunks in turn."""
    size = gathered_rows(problem, config) * columns(problem, config) * problem.dtype.itemsize
    all_of_l2 = programs * size / c.l2_bytes_per_us.value * c.clock_mhz.value
    bytes_clocks = max(size / c.sm_l2_bytes_per_clock.value, all_of_l2)
    polls = 1 + c.failing_polls.value
    barriers = counts.again_barriers / hops * c.barrier_clocks.value
    if config.exchange == "barrier":
        # The arrival, polls of the counter, then each chunk's way from L2, one after the other.
        turn = max(counts.again / hops, c.arrive_clocks.value) + barriers
        in_turn = chunks_in_turn(problem, config, limits) * c.l2_clocks.value
        return c.arrive_clocks.value + polls * turn + in_turn + bytes_clocks
    last = max(counts.poll / hops, bytes_clocks) + c.l2_clocks.value + barriers
    failed = max(counts.again / hops, bytes_clocks) + c.l2_clocks.value + barriers
    return last + c.failing_polls.value * failed


def _product(problem: Problem, config: Config, limits: DeviceLimits, counts: Counts, c: Constants) -> float:
    """Clocks of a step's products in one program."""
    rows, k = max(16, weight_rows(problem, config)), columns(problem, config)
    lifted = 3 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1
    rate = c.matrix_flops_per_clock.value * (c.tf32_share.value if problem.dtype == torch.float32 else 1.0)
    wide = runs_as_wgmma(problem, config, limits)
    if has_wgmma(limits) and not wide:
        rate *= c.mma_sync_share.value
    matrix = lifted * 2.0 * rows * config.BLOCK_B * k / rate
    if wide:
        groups = config.num_warps // 4  # each issues its own rows, and they share the SM's matrix units
        each = c.wgmma_clocks.value + config.BLOCK_B / 4
        matrix = max(matrix, matrix_instructions(problem, config, limits) * groups * each)
    read = weight_bytes(problem, config, limits) / c.shared_bytes_per_clock.value
    return max(matrix, read, counts.product) + counts.drained * c.drain_clocks.value


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
