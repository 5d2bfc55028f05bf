"""The config of a problem that nobody has tuned: feasible tilings, ranked by an estimate of a step.

Nothing here is measured yet. The tilings are those that compile for sm_80, sm_90, sm_100 and gfx942
without a spill (the compile gate checks every one that `choose` can return); their order is an
estimate from the constants below, each an assumption until a GPU run replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton

from ..kernels.cell_spec import CELLS
from ..kernels.config import Config
from ..kernels.describe import dot_precision, least_grid
from ..kernels.plan import Reason
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits

EXCHANGE_US = 0.7
"""Assumed: one step's h through L2, from a store to its use elsewhere (design.md section 3)."""

SHARED_BYTES_PER_US = 128 * 1755.0
"""Assumed: 128 bytes a clock of shared memory per SM at an H100's 1.755 GHz; the dot reads W_hh once a step."""

L2_BYTES_PER_US = 5.5e6
"""Assumed: what all SMs together read from L2; every program gathers the whole h of its tile."""

GATE_MATH_US = 0.8 / 1755.0
"""Assumed: gate math of one unit and row per SM, about ten special-function results at 16 a clock."""


def choose(problem: Problem, limits: DeviceLimits) -> Config | Reason:
    """The feasible config with the least estimated time, or why W_hh cannot stay resident on this GPU."""
    feasible = []
    refusals = []
    for config in candidates(problem, limits):
        refusal = next(filter(None, (check(problem, config, limits) for check in CONSTRAINTS)), None)
        if refusal is None:
            feasible.append(config)
        else:
            refusals.append(refusal)
    if feasible:
        return min(feasible, key=lambda c: (_leaves_wgmma(problem, c), estimated_step_us(problem, c, limits)))
    size = _matrix_bytes(problem, limits)
    return Reason(
        "not_resident",
        f"W_hh of {problem.cell} with hidden_size={problem.hidden_size}, {size / 2**20:.1f} MiB for "
        f"{problem.directions} direction(s) as {str(problem.dtype).removeprefix('torch.')}, cannot stay resident on "
        f"{limits.name}: {refusals[-1]}",
    )


def candidates(problem: Problem, limits: DeviceLimits) -> Iterator[Config]:
    """All tilings that are considered, feasible or not; the last is the one with the smallest programs."""
    gates = CELLS[problem.cell].padded_gates
    block = max(16, triton.next_power_of_2(problem.hidden_size))
    if block <= 256:
        yield Config("single_cta", 16, block, block, num_warps=8 if gates * block * _width(problem) > 256 * 2 else 4)
    # Rows of the dot: 64 is one warp group's wgmma. 8 warps on AMD halve the registers that hold the weights.
    # 32 columns need 8 warps, or the tile of h that is being polled spills.
    for rows, columns, warps in ((64, 16, 4), (64, 32, 8), (128, 16, 8), (32, 16, 4)):
        if limits.arch[0] == "hip" and warps == 8:
            continue
        yield Config(
            "cooperative", columns, rows // gates, _block_k(problem), num_warps=warps, exchange="dataflow"
        )


def _block_k(problem: Problem) -> int:
    """The chunk that pads hidden_size least; of those the largest."""
    sizes = (256, 128, 64, 32)
    return min(sizes, key=lambda size: (math.ceil(problem.hidden_size / size) * size, -size))


@dataclass(frozen=True)
class Footprint:
    """What one program keeps: bytes in shared memory, 32-bit registers per thread for the big tiles."""

    shared: int
    registers: int


def footprint(problem: Problem, config: Config, limits: DeviceLimits) -> Footprint:
    """A model of what the compiler allocates (the compile gate holds it against the compiler).

    NVIDIA: W_hh and the h operand lie in shared memory; the polled h also passes through registers.
    AMD: both lie in registers, and shared memory serves one chunk's change of layout.
    """
    width = _width(problem) * _parts(problem, limits)
    k = config.BLOCK_H if config.regime == "single_cta" else _padded_k(problem, config)
    rows = CELLS[problem.cell].padded_gates * config.BLOCK_H
    weights, h = rows * k * width, config.BLOCK_B * k * width
    thread_bytes = 4 * config.num_warps * limits.warp_size
    if limits.arch[0] == "hip":
        chunk = max(rows, config.BLOCK_B) * config.BLOCK_K * width
        return Footprint(shared=chunk, registers=(weights + h) // thread_bytes)
    if config.regime == "single_cta":
        # The accumulator changes layout on its way to the gate math, through at most its own size.
        scratch = min(rows * config.BLOCK_B * 4, 12 * 1024)
        return Footprint(shared=weights + h + scratch, registers=rows * config.BLOCK_B * 4 // thread_bytes)
    return Footprint(shared=weights + h + 64, registers=config.BLOCK_B * k * _width(problem) // thread_bytes)


def fits_shared(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    need = footprint(problem, config, limits).shared
    if need > limits.shared_per_block:
        return f"a program needs {need} bytes of shared memory, {limits.shared_per_block} are there"
    return None


def fits_registers(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    need, budget = footprint(problem, config, limits).registers, 400 if limits.arch[0] == "hip" else 64
    if need > budget:
        return f"its tiles take {need} registers a thread, more than the {budget} that compile without a spill"
    return None


def is_co_resident(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """One program an SM is certain to run; more is decided at launch, from the compiled kernel."""
    need = least_grid(problem, config)
    if need > limits.num_sms:
        return f"its {need} programs of {config.BLOCK_H} units must run at once, on {limits.num_sms} SMs"
    return None


def is_matrix_shape(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    rows = CELLS[problem.cell].padded_gates * config.BLOCK_H
    return None if rows >= 16 else f"a tile of {rows} rows is below the matrix unit's 16"


CONSTRAINTS: tuple[Callable[[Problem, Config, DeviceLimits], str | None], ...] = (
    is_matrix_shape,
    fits_shared,
    fits_registers,
    is_co_resident,
)


def estimated_step_us(problem: Problem, config: Config, limits: DeviceLimits) -> float:
    """Microseconds for one time step of the whole batch; batch tiles that find no SM run one after the other."""
    tiles = math.ceil(problem.batch_size / config.BLOCK_B)
    programs = least_grid(problem, config) if config.regime == "cooperative" else problem.directions
    passes = math.ceil(tiles / max(1, limits.num_sms // programs))
    rows = CELLS[problem.cell].padded_gates * config.BLOCK_H
    k = config.BLOCK_H if config.regime == "single_cta" else _padded_k(problem, config)
    weights = rows * k * _width(problem) * _parts(problem, limits)
    step = weights / SHARED_BYTES_PER_US + config.BLOCK_H * config.BLOCK_B * GATE_MATH_US
    if config.regime == "cooperative":
        gathered = least_grid(problem, config) * config.BLOCK_B * k * _width(problem)
        step += EXCHANGE_US + gathered / L2_BYTES_PER_US
    return passes * step


def _leaves_wgmma(problem: Problem, config: Config) -> bool:
    """Fewer than 64 rows are not Hopper's wgmma: only where nothing else fits."""
    return CELLS[problem.cell].padded_gates * config.BLOCK_H < 64


def _width(problem: Problem) -> int:
    return torch.empty(0, dtype=problem.dtype).element_size()


def _parts(problem: Problem, limits: DeviceLimits) -> int:
    """Copies of each operand: tf32x3 keeps a large and a small part."""
    return 2 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1


def _padded_k(problem: Problem, config: Config) -> int:
    return math.ceil(problem.hidden_size / config.BLOCK_K) * config.BLOCK_K


def _matrix_bytes(problem: Problem, limits: DeviceLimits) -> int:
    rows = CELLS[problem.cell].gates * problem.hidden_size
    return problem.directions * rows * problem.hidden_size * _width(problem) * _parts(problem, limits)
