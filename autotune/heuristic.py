"""The config of a problem that nobody has tuned: feasible tilings, ranked by an estimate of a step.

The tilings are those that compile for sm_80, sm_90, sm_100 and gfx942 without a spill (the compile
gate checks every one that `choose` can return); their order is `cost.estimate`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config, Exchange
from ..kernels.describe import dot_precision
from ..kernels.plan import Reason
from ..kernels.problem import Phase, Problem
from ..kernels.resources import DeviceLimits
from .constraints import CONSTRAINTS, refusal
from .cost import estimate, has_wgmma
from .footprint import matrix_bytes, operand_bytes, weight_rows


@lru_cache(maxsize=4096)
def choose(problem: Problem, limits: DeviceLimits) -> Config | Reason:
    """The feasible config with the least estimated time, or why W_hh cannot stay resident on this GPU."""
    feasible = []
    refusals = []
    for config in candidates(problem, limits):
        refused = refusal(problem, config, limits, CONSTRAINTS)
        if refused is None:
            feasible.append(config)
        else:
            refusals.append(refused[1])
    if feasible:
        return min(feasible, key=lambda c: (_leaves_wgmma(problem, c), estimate(problem, c, limits).step_us))
    why = refusals[-1] if refusals else "no tiling of this size compiles without spilling registers"
    size = matrix_bytes(problem, limits)
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


def candidates(problem: Problem, limits: DeviceLimits) -> Iterator[Config]:
    """All tilings that are considered, whether or not they fit this GPU."""
    gates = find_cell(problem.cell).padded_gates
    block = max(16, triton.next_power_of_2(problem.hidden_size))
    resident = gates * block * operand_bytes(problem, limits)  # bytes of W_hh per column
    much, backward = _keeps_much(problem), problem.phase == "backward"
    # As mma.sync, more than 512 bytes a column end up in registers on Triton 3.9: LSTM bf16 H=100 spills 232 bytes.
    if block <= 256 and (resident <= 512 or has_wgmma(limits)):
        wide = resident > 512 or block == 256 or (much and limits.arch[0] == "cuda")
        yield Config("single_cta", 16, block, block, num_warps=8 if wide else 4)
    for tiling in tilings(problem, limits):
        block_k = _block_k(problem, min(tiling.block_k, 64) if much and backward else tiling.block_k)
        if tiling.aligned and problem.hidden_size % 16:
            continue
        if math.ceil(problem.hidden_size / block_k) * block_k <= tiling.max_k:
            rows, exchange = tiling.rows // gates, "barrier" if much else tiling.exchange
            yield Config("cooperative", tiling.columns, rows, block_k, tiling.num_warps, exchange=exchange)


def _keeps_much(problem: Problem) -> bool:
    """Whether a loop holds so much beside h that polling all of h spills; a barrier reads it chunk by chunk. Backwards
    the chunks are small: with 64 columns for 128 the same LSTM accesses local memory 5 times a step, not 19 (sm_100).

    bf16 H=768, sm_90: a GRU with two products spills 328 bytes, an LSTM with dropout of h, zoneout, lengths and resets
    16, as dataflow; 197 and 219 registers and no spill with a barrier. At H=1024 any feature is too much: 448 bytes for
    resets to a given state, sm_80 with Triton 3.9.0.
    """
    noise = {"recurrent_dropout", "zoneout"}
    large = problem.hidden_size > 768 and bool(problem.features)
    return large or find_cell(problem.cell).inner is not None or not noise.isdisjoint(problem.features)


def _block_k(problem: Problem, largest: int) -> int:
    """The chunk that pads hidden_size least; of those the largest."""
    sizes = [size for size in (256, 128, 64, 32) if size <= largest]
    return min(sizes, key=lambda size: (math.ceil(problem.hidden_size / size) * size, -size))


def _leaves_wgmma(problem: Problem, config: Config) -> bool:
    """Fewer than 64 rows are not Hopper's wgmma: a team of smaller programs only where nothing else fits."""
    return config.regime == "cooperative" and weight_rows(problem, config) < 64
