"""The config of a problem that nobody has tuned: feasible tilings, ranked by an estimate of a step.

No time here is measured yet. The tilings are those that compile for sm_80, sm_90, sm_100 and gfx942
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

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config, Exchange
from ..kernels.describe import dot_precision, least_grid
from ..kernels.plan import Reason
from ..kernels.problem import Phase, Problem
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

    rows:       of W_hh in a program, gates * BLOCK_H.
    columns:    BLOCK_B.
    block_k:    the largest chunk of W_hh.
    max_k:      most columns of W_hh, padded to whole chunks.
    exchange:   how the team hands its tile on.
    on_wgmma:   True: only where the matrix unit reads W_hh from shared memory by itself (wgmma, tcgen05);
                False: only where warps load it (mma.sync); None: anywhere.
    aligned:    only hidden sizes that are multiples of 16; the masks of others take registers that are not there.
    """

    rows: int
    columns: int
    num_warps: int
    block_k: int
    max_k: int
    exchange: Exchange = "dataflow"
    on_wgmma: bool | None = None
    aligned: bool = False


# Found by compiling every cell at every max_k for sm_80, sm_90 and sm_100; twice max_k, or 4 warps where it says 8,
# spill somewhere. 64 rows are one warp group's wgmma. mma.sync wants 8 warps: Triton 3.9 keeps W_hh in registers
# there, and with 4 warps an LSTM of 768 spills 336 bytes. Backwards a gate's dot has only BLOCK_H rows, so it is
# mma.sync everywhere, and a team gathers all gates' gradients: more than 512 units do not fit in registers while
# they are polled, which a barrier does not do.
TILINGS: dict[tuple[Phase, str], tuple[Tiling, ...]] = {
    ("forward", "half"): (
        Tiling(64, 16, 4, 256, 768, on_wgmma=True),
        Tiling(64, 16, 4, 128, 1024, on_wgmma=True),
        Tiling(64, 16, 8, 256, 1024, on_wgmma=False),
        Tiling(64, 32, 8, 256, 768, on_wgmma=True),
        Tiling(64, 32, 8, 128, 1024),
        Tiling(128, 16, 8, 256, 768),
        Tiling(32, 16, 8, 128, 1536),
    ),
    ("forward", "tf32"): (
        Tiling(64, 16, 4, 128, 512, on_wgmma=True),
        Tiling(64, 16, 8, 128, 512, on_wgmma=False),
        Tiling(64, 32, 8, 128, 512),
        Tiling(128, 16, 8, 128, 256),
        Tiling(32, 16, 8, 256, 768),
        Tiling(32, 16, 8, 128, 1024, "barrier", aligned=True),
    ),
    ("forward", "tf32x3"): (
        Tiling(64, 16, 4, 128, 256, on_wgmma=True),
        Tiling(64, 16, 8, 64, 256, on_wgmma=False),
    ),
    ("backward", "half"): (
        Tiling(64, 16, 8, 128, 1024),
        Tiling(64, 16, 8, 128, 1024, "barrier"),
        Tiling(64, 32, 8, 128, 256, "barrier"),
    ),
    ("backward", "tf32"): (Tiling(64, 16, 8, 128, 768, "barrier"),),
    ("backward", "tf32x3"): (Tiling(64, 16, 8, 64, 256, "barrier"),),
    # AMD keeps W_hh in registers; 8 waves would halve them.
    ("forward", "amd"): (Tiling(64, 16, 4, 256, 1024),),
    ("backward", "amd"): (Tiling(64, 16, 4, 128, 768, "barrier"),),
}


def tilings(problem: Problem, limits: DeviceLimits) -> tuple[Tiling, ...]:
    """The tilings of a problem's phase and products on a GPU's matrix unit."""
    if limits.arch[0] == "hip":
        return TILINGS[problem.phase, "amd"]
    kind = "half" if problem.dtype != torch.float32 else dot_precision(problem, "cuda")
    return tuple(t for t in TILINGS[problem.phase, kind] if t.on_wgmma in (None, has_wgmma(limits)))


def has_wgmma(limits: DeviceLimits) -> bool:
    """Hopper (90) has wgmma, data-centre Blackwell (100 to 110) tcgen05; consumer Blackwell (120) has neither."""
    return limits.arch[0] == "cuda" and 90 <= int(limits.arch[1]) < 120


def candidates(problem: Problem, limits: DeviceLimits) -> Iterator[Config]:
    """All tilings that are considered, whether or not they fit this GPU."""
    gates = find_cell(problem.cell).padded_gates
    block = max(16, triton.next_power_of_2(problem.hidden_size))
    resident = gates * block * _width(problem) * _parts(problem, limits)  # bytes of W_hh per column
    # As mma.sync, more than 512 bytes a column end up in registers on Triton 3.9: LSTM bf16 H=100 spills 232 bytes.
    if block <= 256 and (resident <= 512 or has_wgmma(limits)):
        yield Config("single_cta", 16, block, block, num_warps=8 if resident > 512 or block == 256 else 4)
    for tiling in tilings(problem, limits):
        block_k = _block_k(problem, tiling.block_k)
        if tiling.aligned and problem.hidden_size % 16:
            continue
        if math.ceil(problem.hidden_size / block_k) * block_k <= tiling.max_k:
            yield Config(
                "cooperative", tiling.columns, tiling.rows // gates, block_k, tiling.num_warps, exchange=tiling.exchange
            )


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

    NVIDIA: W_hh and the other operand lie in shared memory; what is polled also passes through registers.
    AMD: both lie in registers, and shared memory serves one chunk's change of layout.
    """
    width = _width(problem) * _parts(problem, limits)
    gates = find_cell(problem.cell).padded_gates
    k = config.BLOCK_H if config.regime == "single_cta" else _padded_k(problem, config)
    rows = gates * config.BLOCK_H
    gathered = config.BLOCK_B * (gates if problem.phase == "backward" else 1)  # rows of the other operand
    weights = rows * k * width
    thread_bytes = 4 * config.num_warps * limits.warp_size
    if limits.arch[0] == "hip":
        chunk = max(rows, gathered) * config.BLOCK_K * width
        return Footprint(shared=chunk, registers=(weights + config.BLOCK_B * k * width) // thread_bytes)
    if config.regime == "single_cta":
        # The accumulator changes layout on its way to the gate math, through at most its own size.
        scratch = min(rows * config.BLOCK_B * 4, 12 * 1024)
        return Footprint(weights + gathered * k * width + scratch, rows * config.BLOCK_B * 4 // thread_bytes)
    # Batched over gates the operand goes to registers a chunk at a time, through two buffers of its size.
    batched = problem.phase == "backward" and gates > 1
    operand = 2 * gathered * config.BLOCK_K * width if batched else gathered * k * width
    polled = gathered * k * _width(problem) if config.exchange == "dataflow" else 0
    return Footprint(shared=weights + operand + 64, registers=polled // thread_bytes)


def fits_shared(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    need = footprint(problem, config, limits).shared
    if need > limits.shared_per_block:
        return f"a program needs {need} bytes of shared memory, {limits.shared_per_block} are there"
    return None


def fits_registers(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    need = footprint(problem, config, limits).registers
    budget = 300 if limits.arch[0] == "hip" else 64
    if need > budget:
        return f"its big tiles take {need} registers a thread; more than {budget} spill"
    return None


def is_matrix_shape(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """Backwards every gate has a dot of its own, of BLOCK_H rows; the matrix unit's smallest has 16."""
    if problem.phase == "backward" and config.BLOCK_H < 16:
        return f"{config.BLOCK_H} units are below the matrix unit's 16 rows"
    return None


def is_co_resident(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """One program an SM is certain to run; more is decided at launch, from the compiled kernel."""
    need = least_grid(problem, config)
    if need > limits.num_sms:
        return f"its {need} programs of {config.BLOCK_H} units must run at once, on {limits.num_sms} SMs"
    return None


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
    gates = find_cell(problem.cell).padded_gates
    k = config.BLOCK_H if config.regime == "single_cta" else _padded_k(problem, config)
    weights = gates * config.BLOCK_H * k * _width(problem) * _parts(problem, limits)
    step = weights / SHARED_BYTES_PER_US + config.BLOCK_H * config.BLOCK_B * GATE_MATH_US
    if config.regime == "cooperative":
        rows = config.BLOCK_B * (gates if problem.phase == "backward" else 1)
        # A barrier is two round trips, the counter's and the data's.
        step += EXCHANGE_US * (2 if config.exchange == "barrier" else 1)
        step += least_grid(problem, config) * rows * k * _width(problem) / L2_BYTES_PER_US
    return passes * step


def _leaves_wgmma(problem: Problem, config: Config) -> bool:
    """Fewer than 64 rows are not Hopper's wgmma: a team of smaller programs only where nothing else fits."""
    return config.regime == "cooperative" and find_cell(problem.cell).padded_gates * config.BLOCK_H < 64


def _width(problem: Problem) -> int:
    return torch.empty(0, dtype=problem.dtype).element_size()


def _parts(problem: Problem, limits: DeviceLimits) -> int:
    """Copies of each operand: tf32x3 keeps a large and a small part."""
    return 2 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1


def _padded_k(problem: Problem, config: Config) -> int:
    return math.ceil(problem.hidden_size / config.BLOCK_K) * config.BLOCK_K


def _matrix_bytes(problem: Problem, limits: DeviceLimits) -> int:
    rows = find_cell(problem.cell).gates * problem.hidden_size
    return problem.directions * rows * problem.hidden_size * _width(problem) * _parts(problem, limits)
