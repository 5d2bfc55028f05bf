"""Which configs there are for a problem: the heuristic's table and its choice, and what the tuner may try besides.

The table's tilings are those that compile for sm_80, sm_90, sm_100 and gfx942 without a spill (the compile gate checks
every one that `choose` can return); `cost.estimate` ranks them, as it ranks the tuner's wider space.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config, Exchange
from ..kernels.describe import dot_precision, parts_of_sums, split_k
from ..kernels.plan import Reason
from ..kernels.problem import Phase, Problem, sizes_of
from ..kernels.resources import DeviceLimits
from .constraints import CONSTRAINTS, TUNED_CONSTRAINTS, columns, matrix_bytes, operand_bytes, refusal, weight_rows
from .cost import Estimate, estimate
from .counts import has_wgmma


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
        f"W_hh of {problem.cell} with {sizes_of(problem)}, {size / 2**20:.1f} MiB for "
        f"{problem.directions} direction(s) as {str(problem.dtype).removeprefix('torch.')}, cannot stay resident on "
        f"{limits.name}: {why}",
    )


@dataclass(frozen=True)
class Tiling:
    """Blocks of a cooperative program that compile without a spill for sums up to `max_k` long.

    rows:       of its product with W_hh: gates * SPLIT_K * BLOCK_H, backwards SPLIT_K * BLOCK_H.
    columns:    BLOCK_B.
    block_k:    the largest chunk of W_hh.
    max_k:      most numbers that a row of the product sums up, padded to whole chunks.
    exchange:   how the team hands its tile on.
    on_wgmma:   True: only where the matrix unit reads W_hh from shared memory by itself (wgmma, tcgen05);
                False: only where warps load it (mma.sync); None: anywhere.
    aligned:    only hidden sizes that are multiples of 16; the masks of others take registers that are not there.
    shares:     for how many programs a product is split, backwards a gate's: SPLIT_K, backwards gates * shares.
    beyond:     only heads of more units: a second exchange a step where no tiling without it fits.
    """

    rows: int
    columns: int
    num_warps: int
    block_k: int
    max_k: int
    exchange: Exchange = "dataflow"
    on_wgmma: bool | None = None
    aligned: bool = False
    shares: int = 1
    beyond: int = 0


# Found by compiling every cell at every max_k for sm_80, sm_90 and sm_100. 64 rows are one warp group's wgmma, 128 two:
# with 8 warps on 64 rows both groups read all of W_hh (80 HGMMA for LSTM H=768, not 48). mma.sync wants 8 warps: Triton
# 3.9 keeps W_hh in registers there, and with 4 warps an LSTM of 768 spills 336 bytes.
_HALF = (
    Tiling(64, 16, 4, 256, 1280, on_wgmma=True),
    Tiling(64, 16, 4, 128, 1408, on_wgmma=True),
    Tiling(64, 16, 4, 128, 1664, "barrier", on_wgmma=True, aligned=True),
    Tiling(64, 32, 4, 256, 768, on_wgmma=True),
    Tiling(64, 64, 8, 256, 768, on_wgmma=True, aligned=True),
    Tiling(64, 64, 8, 128, 1024, "barrier", on_wgmma=True, aligned=True),
    Tiling(128, 16, 8, 256, 768, on_wgmma=True),
    Tiling(128, 32, 8, 256, 512, on_wgmma=True),
    Tiling(64, 16, 8, 128, 1024, on_wgmma=False),
    Tiling(64, 32, 8, 128, 1024, on_wgmma=True),
    Tiling(64, 32, 8, 128, 1024, on_wgmma=False, aligned=True),
)
TILINGS: dict[tuple[Phase, str], tuple[Tiling, ...]] = {
    ("forward", "half"): (*_HALF, Tiling(32, 16, 8, 128, 1536, aligned=True)),
    ("forward", "tf32"): (
        Tiling(64, 16, 4, 128, 512, on_wgmma=True),
        Tiling(64, 16, 8, 128, 512, on_wgmma=False),
        Tiling(64, 32, 8, 128, 512),
        Tiling(128, 16, 8, 128, 256),
        Tiling(64, 16, 4, 128, 768, "barrier", on_wgmma=True),
        Tiling(64, 32, 8, 128, 768, "barrier", on_wgmma=True, aligned=True),
        Tiling(64, 64, 8, 64, 768, "barrier", on_wgmma=True, aligned=True),
        Tiling(32, 16, 8, 256, 768, aligned=True),
        Tiling(32, 16, 8, 128, 1024, "barrier", aligned=True),
    ),
    ("forward", "tf32x3"): (
        Tiling(64, 16, 4, 128, 256, on_wgmma=True),
        Tiling(64, 16, 4, 64, 320, on_wgmma=True, aligned=True, shares=2, beyond=256),
        Tiling(64, 16, 4, 128, 384, "barrier", on_wgmma=True, aligned=True, shares=2, beyond=256),
        Tiling(64, 16, 8, 64, 256, on_wgmma=False),
        Tiling(64, 16, 8, 64, 256, on_wgmma=False, aligned=True, shares=2, beyond=256),
    ),
    ("backward", "half"): _HALF,
    ("backward", "tf32"): (
        Tiling(64, 16, 4, 128, 512, on_wgmma=True),
        Tiling(64, 16, 8, 128, 512, on_wgmma=False),
        Tiling(64, 16, 4, 128, 768, "barrier", on_wgmma=True),
        Tiling(64, 32, 8, 128, 768, "barrier", on_wgmma=True, aligned=True),
        Tiling(64, 64, 8, 64, 768, "barrier", on_wgmma=True, aligned=True),
        Tiling(64, 16, 8, 128, 768, "barrier", on_wgmma=False),
        Tiling(64, 16, 4, 128, 512, on_wgmma=True, shares=2),
        Tiling(64, 16, 8, 64, 512, on_wgmma=False, shares=2),
    ),
    ("backward", "tf32x3"): (
        Tiling(64, 16, 4, 64, 256, on_wgmma=True),
        Tiling(64, 16, 4, 64, 320, on_wgmma=True, aligned=True, shares=2, beyond=256),
        Tiling(64, 16, 4, 128, 384, "barrier", on_wgmma=True, aligned=True, shares=2, beyond=256),
        Tiling(64, 16, 8, 64, 256, on_wgmma=False),
        Tiling(64, 16, 8, 64, 256, on_wgmma=False, aligned=True, shares=2, beyond=256),
    ),
    # AMD keeps W_hh in registers; 8 waves would halve them.
    ("forward", "amd"): (Tiling(64, 16, 4, 256, 1024),),
    ("backward", "amd"): (Tiling(64, 16, 4, 128, 1024),),
}


def _tilings(problem: Problem, limits: DeviceLimits) -> tuple[Tiling, ...]:
    """The tilings of a problem's phase and products on a GPU's matrix unit."""
    if limits.arch[0] == "hip":
        return TILINGS[problem.phase, "amd"]
    kind = "half" if problem.dtype != torch.float32 else dot_precision(problem, "cuda")
    return tuple(t for t in TILINGS[problem.phase, kind] if t.on_wgmma in (None, has_wgmma(limits)))


def candidates(problem: Problem, limits: DeviceLimits) -> Iterator[Config]:
    """All configs that the heuristic considers, whether or not they fit this GPU."""
    gates = find_cell(problem.cell).padded_gates
    block = max(16, triton.next_power_of_2(problem.head_size))
    resident = gates * block * operand_bytes(problem, limits)  # bytes of W_hh per column
    much = _keeps_much(problem)
    # As mma.sync, more than 512 bytes a column end up in registers on Triton 3.9: LSTM bf16 H=100 spills 232 bytes.
    spills = _one_program_spills(problem, block, limits) or (resident > 512 and _ragged_heads_spill(problem, limits))
    normalised = find_cell(problem.cell).normalised
    if block <= 256 and (resident <= 512 or has_wgmma(limits)) and not spills:
        # A layer norm's tiles beside the gates': with 4 warps an LSTM of 64 spills 616 bytes backwards on sm_90, with 8
        # none.
        much_here = (much or normalised) and limits.arch[0] == "cuda"
        wide = resident > 512 or block == 256 or much_here
        yield Config("single_cta", 16, block, block, num_warps=8 if wide else 4)
    for tiling in _tilings(problem, limits):
        if problem.head_size <= tiling.beyond or (tiling.aligned and problem.head_size % 16):
            continue
        if find_cell(problem.cell).inner is not None and _two_products_spill(problem, tiling):
            continue
        if normalised and problem.phase == "backward" and limits.arch[0] == "cuda":
            # As many words of means as of da are in registers, beside v: LSTM bf16 768, sm_90, 4 warps spill 272 bytes
            # in 4,592 issue cycles, 8 none in 3,045.
            tiling = replace(tiling, num_warps=8)
        split = tiling.shares * (gates if problem.phase == "backward" else 1)
        units = tiling.rows // (gates * tiling.shares)
        for block_k in (256, 128, 64, 32):
            config = Config("cooperative", tiling.columns, units, block_k, tiling.num_warps, 1, tiling.exchange, split)
            if (much and parts_of_sums(problem, config, limits.arch) == 1) or _means_leave_no_room(problem, limits):
                config = replace(config, exchange="barrier")
            if block_k > tiling.block_k or (config.exchange == "barrier" and _large_chunks_spill(problem, block_k)):
                continue
            if columns(problem, config) <= tiling.max_k:
                yield config


def _keeps_much(problem: Problem) -> bool:
    """Whether a loop holds so much beside h that polling all of h spills; a barrier reads it chunk by chunk.

    Not so of two products whose sums are in parts (see `describe.parts_of_sums`): there fewer words are kept at once.

    bf16, dataflow, sm_90: an LSTM of 768 with every feature spills 80 bytes forwards and 88 backwards, a GRU of 1024
    with two products 512 and 296, a packed GRU of 1408 280 backwards; none with a barrier.
    """
    noise = {"recurrent_dropout", "zoneout"}
    large = problem.head_size > _LARGE and bool(problem.features)
    return large or find_cell(problem.cell).inner is not None or not noise.isdisjoint(problem.features)


def _one_program_spills(problem: Problem, block: int, limits: DeviceLimits) -> bool:
    """Whether one program has no registers, sm_80, backwards, for 256 columns; or from 64 on for a cell's states or own
    numbers beside the features, or for what a layer norm keeps of all units.

    On Triton 3.9 an RNN of 256, bf16, spills 256 bytes and goes to local memory 65 times a step. An sLSTM of 64 with
    all features, bf16, goes there 6 to 12 times a step, 56 to 72 bytes; an LSTM of 64 with peepholes in 16 bits 50 to
    77 times on Triton 3.9, 184 to 264 bytes, 3,226 issue cycles where a team takes 988. With a layer norm, 8 warps, an
    LSTM of 64 goes there 150 times a step, a GRU 44 times; a team of four never does.
    """
    cell = find_cell(problem.cell)
    many_states = cell.states > 2 and bool(problem.features)
    many_numbers = cell.parameters > 0 and _keeps_much(problem)
    crowded = block == 256 or (block >= 64 and (many_states or many_numbers or cell.normalised > 0))
    return crowded and problem.phase == "backward" and limits.arch[0] == "cuda" and not has_wgmma(limits)


def _means_leave_no_room(problem: Problem, limits: DeviceLimits) -> bool:
    """Whether what a layer norm keeps leaves no registers for polling all of h, or of da, for three TF32 products: an
    LSTM of 256 spills 224 bytes forwards on sm_100 and 240 backwards on sm_90, and goes to local memory 63 and 51 times
    a step; with a barrier it does not."""
    normalised = find_cell(problem.cell).normalised > 0
    return normalised and dot_precision(problem, limits.arch[0]) == "tf32x3"


def _ragged_heads_spill(problem: Problem, limits: DeviceLimits) -> bool:
    """Whether one program has no registers for the addresses of heads that are no multiple of 16: an LSTM of five heads
    of 20, float32, sm_90, backwards, spills 32 bytes; a team of four takes a third of its issue cycles."""
    return problem.num_heads > 1 and problem.head_size % 16 > 0 and dot_precision(problem, limits.arch[0]) == "tf32x3"


def _two_products_spill(problem: Problem, tiling: Tiling) -> bool:
    """Whether a tiling that is good for one product a step has no registers for two.

    Two warp groups on the same 64 rows, sm_90: bf16 768 with 64 columns spills 248 bytes and goes to local memory 70
    times a step, backwards 208 and 29; TF32 of 512 with 32 columns 176 and 39; of 768 432 and 118, backwards with 64
    columns 320 and 100.
    """
    crowded = (tiling.rows, tiling.num_warps) == (64, 8) and tiling.columns > 16 and tiling.on_wgmma is not False
    return problem.head_size > _LARGE or crowded


def _large_chunks_spill(problem: Problem, block_k: int) -> bool:
    """gru_reset_before in TF32, 768 units, 128 rows, backwards, sm_90: chunks of 128 spill 224 bytes and go to local
    memory 34 times a step, in 3,732 issue cycles; chunks of 64 put 72 bytes aside before the loop: 3,327."""
    two = find_cell(problem.cell).inner is not None
    return two and problem.phase == "backward" and problem.dtype == torch.float32 and block_k > 64


_LARGE = 1024
"""More units leave no register for a second product (gru_reset_before, 1664, sm_90: 64 bytes forwards, 184 backwards),
nor for any feature beside a poll."""


def _leaves_wgmma(problem: Problem, config: Config) -> bool:
    """Fewer than 64 rows are not Hopper's wgmma: a team of smaller programs only where nothing else fits."""
    return config.regime == "cooperative" and weight_rows(problem, config) < 64


@dataclass(frozen=True)
class Space:
    """The values of each field of a Config.

    A cooperative team takes every combination; one program (`single_cta`) holds all units, so that only its batch
    tile, warps and stages are free. W_hh in shared memory or in registers is the compiler's choice and no field.
    """

    BLOCK_B: tuple[int, ...] = (16, 32, 64)
    BLOCK_H: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    BLOCK_K: tuple[int, ...] = (32, 64, 128, 256, 512)
    num_warps: tuple[int, ...] = (4, 8)
    num_stages: tuple[int, ...] = (1, 2)
    exchange: tuple[Exchange, ...] = ("dataflow", "barrier")
    SPLIT_K: tuple[int, ...] = (1, 2, 4, 8)


SPACE = Space()

LARGEST_SINGLE_CTA = 256
"""Units that one program is tried with: a W_hh of 512 units fits no SM in any dtype."""


def configs(problem: Problem, limits: DeviceLimits, space: Space = SPACE) -> list[Config]:
    """Every config of the space, each once, the heuristic's before the others."""
    return list(dict.fromkeys(itertools.chain(candidates(problem, limits), _product(problem, space))))


def _product(problem: Problem, space: Space) -> Iterator[Config]:
    block = max(16, triton.next_power_of_2(problem.head_size))
    if block <= LARGEST_SINGLE_CTA:
        for rows, warps, stages in itertools.product(space.BLOCK_B, space.num_warps, space.num_stages):
            yield Config("single_cta", rows, block, block, warps, stages)
    splits = [n for n in space.SPLIT_K if split_k(problem, Config("cooperative", 16, 16, 16, SPLIT_K=n)) == n]
    for values in itertools.product(
        space.BLOCK_B, space.BLOCK_H, space.BLOCK_K, space.num_warps, space.num_stages, space.exchange, splits
    ):
        yield Config("cooperative", *values)


class Ranked(NamedTuple):
    config: Config
    estimate: Estimate


class Refused(NamedTuple):
    """A config of the space that is not tried: the constraint's name, and its reason."""

    config: Config
    constraint: str
    reason: str


def search(problem: Problem, limits: DeviceLimits, space: Space = SPACE) -> tuple[list[Ranked], list[Refused]]:
    """The configs that keep all constraints, the heuristic's choice first and then by estimate; and the others."""
    ranked, refused = [], []
    for config in configs(problem, limits, space):
        broken = refusal(problem, config, limits, TUNED_CONSTRAINTS)
        if broken is None:
            ranked.append(Ranked(config, estimate(problem, config, limits)))
        else:
            refused.append(Refused(config, *broken))
    choice = choose(problem, limits)
    ranked.sort(key=lambda r: (r.config != choice, r.estimate.step_us))
    return ranked, refused
