"""The config of a problem that nobody has tuned: feasible tilings, ranked by an estimate of a step.

Nothing here is measured yet. The tilings are those that compile for sm_80, sm_90, sm_100 and gfx942
without a spill (the compile gate checks every one that `choose` can return); their order is an
estimate from the constants below, each an assumption until a GPU run replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

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


@lru_cache(maxsize=4096)
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
    why = refusals[-1] if refusals else "no tiling of this size compiles without spilling registers"
    size = _matrix_bytes(problem, limits)
    return Reason(
        "not_resident",
        f"W_hh of {problem.cell} with hidden_size={problem.hidden_size}, {size / 2**20:.1f} MiB for "
        f"{problem.directions} direction(s) as {str(problem.dtype).removeprefix('torch.')}, cannot stay resident on "
        f"{limits.name}: {why}",
    )


@dataclass(frozen=True)
class Tiling:
    """Blocks of a cooperative program that compile without a spill for hidden sizes up to `max_k`.

    rows:     of the dot, gates * BLOCK_H; 64 are one warp group's wgmma.
    columns:  BLOCK_B.
    block_k:  the largest chunk of W_hh.
    max_k:    most columns of W_hh, padded to whole chunks.
    """

    rows: int
    columns: int
    num_warps: int
    block_k: int
    max_k: int


# What bounds max_k is the tile of h that is being polled, in registers. Found by compiling every cell for sm_80,
# sm_90 and sm_100 with Triton 3.7.1; one chunk size more or 4 warps for 32 columns spill somewhere.
TILINGS = {
    "half": (
        Tiling(64, 16, 4, 256, 768),
        Tiling(64, 16, 4, 128, 1024),
        Tiling(64, 32, 8, 256, 768),
        Tiling(64, 32, 8, 128, 1024),
        Tiling(128, 16, 8, 256, 768),
        Tiling(32, 16, 4, 128, 1536),
    ),
    "tf32": (
        Tiling(64, 16, 4, 128, 512),
        Tiling(64, 32, 8, 128, 512),
        Tiling(128, 16, 8, 128, 256),
        Tiling(32, 16, 4, 256, 768),
        Tiling(32, 16, 8, 128, 1024),
    ),
    # wgmma and tcgen05 only: as mma.sync on sm_80 the three products spill at every size tried.
    "tf32x3": (Tiling(64, 16, 4, 128, 256),),
    # AMD keeps W_hh in registers; 8 waves would halve them.
    "amd": (Tiling(64, 16, 4, 256, 1024),),
}


def tilings(problem: Problem, limits: DeviceLimits) -> tuple[Tiling, ...]:
    if limits.arch[0] == "hip":
        return TILINGS["amd"]
    if problem.dtype != torch.float32:
        return TILINGS["half"]
    if problem.precision == "tf32":
        return TILINGS["tf32"]
    return TILINGS["tf32x3"] if int(limits.arch[1]) >= 90 else ()


def candidates(problem: Problem, limits: DeviceLimits) -> Iterator[Config]:
    """All tilings that are considered, whether or not they fit this GPU."""
    gates = CELLS[problem.cell].padded_gates
    block = max(16, triton.next_power_of_2(problem.hidden_size))
    if block <= 256:
        resident = gates * block * _width(problem) * _parts(problem, limits)  # bytes of W_hh per column
        yield Config("single_cta", 16, block, block, num_warps=8 if resident > 512 else 4)
    for tiling in tilings(problem, limits):
        block_k = _block_k(problem, tiling.block_k)
        if math.ceil(problem.hidden_size / block_k) * block_k <= tiling.max_k:
            yield Config("cooperative", tiling.columns, tiling.rows // gates, block_k, num_warps=tiling.num_warps)


def _block_k(problem: Problem, largest: int) -> int:
    """The chunk that pads hidden_size least; of those the largest."""
    sizes = [size for size in (256, 128, 64, 32) if size <= largest]
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
    need = footprint(problem, config, limits).registers
    budget = 300 if limits.arch[0] == "hip" else 96
    if need > budget:
        return f"its big tiles take {need} registers a thread; more than {budget} spill"
    return None


def is_co_resident(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """One program an SM is certain to run; more is decided at launch, from the compiled kernel."""
    need = least_grid(problem, config)
    if need > limits.num_sms:
        return f"its {need} programs of {config.BLOCK_H} units must run at once, on {limits.num_sms} SMs"
    return None


CONSTRAINTS: tuple[Callable[[Problem, Config, DeviceLimits], str | None], ...] = (
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
    """Fewer than 64 rows are not Hopper's wgmma: a team of smaller programs only where nothing else fits."""
    return config.regime == "cooperative" and CELLS[problem.cell].padded_gates * config.BLOCK_H < 64


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
