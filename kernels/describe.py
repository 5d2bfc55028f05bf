"""From a problem and a config to a kernel: its compile-time arguments, its signature, its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton

from .argument_types import signature_of, types_of
from .cell_spec import find_cell
from .config import Config
from .kept import Keep, saved_tiles
from .loop.backward import backward
from .loop.forward import forward
from .loop.groups import Loop
from .loop.means import words_of_means
from .problem import Problem
from .resources import DeviceLimits


def kernel_of(problem: Problem) -> triton.JITFunction:
    return forward if problem.phase == "forward" else backward


def dot_precision(problem: Problem, platform: str) -> str:
    """Triton's `input_precision`. Only float32 has a choice.

    Where TF32 is not allowed, NVIDIA's matrix unit multiplies float32 as three TF32 products
    ("tf32x3", about 22 bits); one thread per product ("ieee") spills thousands of bytes at any
    useful size. AMD's matrix unit takes float32 as it is.
    """
    if problem.dtype != torch.float32:
        return "ieee"
    if platform == "hip":
        return "ieee"
    return "tf32" if problem.precision == "tf32" else "tf32x3"


Arch = tuple[str, int | str]
"""As `DeviceLimits.arch`; ("interpreter", 0) is no GPU."""


def constexprs(problem: Problem, config: Config, arch: Arch) -> dict[str, Any]:
    """Compile-time arguments of `kernel_of(problem)`. The batch and the length are not among them."""
    return {"CELL": find_cell(problem.cell), "LOOP": loop_of(problem, config, arch)}


def loop_of(problem: Problem, config: Config, arch: Arch) -> Loop:
    platform = arch[0]
    return Loop(
        HIDDEN=problem.hidden_size,
        DIRECTIONS=problem.directions,
        HEADS=problem.num_heads,
        HEAD=problem.head_size,
        SAVED=saved_tiles(problem),
        PRECISION=dot_precision(problem, platform),
        EXCHANGE=exchange_of(problem, config, platform),
        PAIRS=platform == "cuda" and int(arch[1]) >= 90,  # max.u16x2
        INTERLEAVED=interleaves(problem, config, arch),
        KEPT=keeps_words(problem, config, arch),
        NO_VECTORS=platform == "cuda" and int(arch[1]) >= 90 and find_cell(problem.cell).states == 1,
        NUM_WARPS=config.num_warps,
        MEMBERS=team_size(problem, config),
        BLOCK_B=config.BLOCK_B,
        BLOCK_H=config.BLOCK_H,
        BLOCK_K=config.BLOCK_K,
        SPLIT_K=split_k(problem, config),
        PART=part_of_product(problem, config),
        CHUNKS=chunks(problem, config),
        PARTS=parts_of_sums(problem, config, arch),
    )


def exchange_of(problem: Problem, config: Config, platform: str) -> str:
    """`Loop.EXCHANGE`: "dataflow" spins in PTX wherever there is PTX and a row is whole 32-bit words."""
    if config.regime == "single_cta":
        return "registers"
    whole = problem.dtype.itemsize == 4 or problem.head_size % 2 == 0
    return "spin" if config.exchange == "dataflow" and platform == "cuda" and whole else config.exchange


_TRITON = tuple(map(int, triton.__version__.split(".")[:2]))


def interleaves(problem: Problem, config: Config, arch: Arch) -> bool:
    """Whether gates are interleaved along the product's rows: where its tile is Hopper's m64n16, a slab of 16 rows a
    warp. Triton 3.6.0 chooses the tiles' layouts along units and takes 6 to 10 barriers a step then, not 4."""
    if problem.phase == "backward" or exchange_of(problem, config, arch[0]) != "spin":
        return False
    if parts_of_sums(problem, config, arch) > 1 or split_k(problem, config) > 1:
        return False  # ordered by warps already (see `parts`), or by programs
    is_m64n16 = (config.BLOCK_H, config.BLOCK_B, config.num_warps) == (16, 16, 4)
    return is_m64n16 and find_cell(problem.cell).padded_gates == 4 and arch == ("cuda", 90) and _TRITON >= (3, 7)


def keeps_words(problem: Problem, config: Config, arch: Arch) -> bool:
    """`Loop.KEPT`: forwards where threads wait for themselves and a thread has registers for its words; in the
    interpreter, so that it is tested. mma.sync reads them from registers, and gains nothing (LSTM bf16 768, sm_80).

    Not of two products a step, whose words are two; nor where a row may read zeros again, which resets to zeros do.
    """
    if problem.phase == "backward" or config.exchange != "dataflow" or config.regime == "single_cta":
        return False
    if find_cell(problem.cell).inner is not None or {"resets", "reset_state"} & set(problem.features) == {"resets"}:
        return False
    if exchange_of(problem, config, arch[0]) == "spin" and int(arch[1]) < 90:
        return False
    words = config.BLOCK_B * chunks(problem, config) * config.BLOCK_K * problem.dtype.itemsize // 4
    return arch[0] != "hip" and words <= 64 * 32 * config.num_warps


def parts_of_sums(problem: Problem, config: Config, arch: Arch) -> int:
    """`Loop.PARTS`: above 1 where each of two products is of its own gates alone (see `loop.parts`).

    On Hopper, where its tile is that of one warp group; in the interpreter, so that it is tested. mma.sync multiplies
    the blocks that are nobody's too (sm_80, 256 units: 2,186 issue cycles a step and not 1,684), and tcgen05 brings its
    results together through shared memory: 2,734 issue cycles a step on sm_100 and not 2,243 (gru_reset_before bf16
    H=768 B=16; 24 block barriers both). One program alone has tiles of more than 64 rows, and the compiler drops those
    that nobody reads. Lengths and resets give each row a pointer of its own, which would have to be repeated for the
    parts and lose its alignment.
    """
    cell = find_cell(problem.cell)
    if cell.inner is None or problem.phase == "backward" or config.regime == "single_cta":
        return 1
    if not set(problem.features) <= {"recurrent_dropout", "zoneout"}:
        return 1
    if split_k(problem, config) > 1:
        return 1
    outer, inner = map(triton.next_power_of_2, (cell.outer_gates, cell.gates - cell.outer_gates))
    is_group = (cell.padded_gates * config.BLOCK_H, config.BLOCK_B, config.num_warps) == (64, 16, 4)
    grows = outer + inner > cell.padded_gates  # three gates beside one
    return cell.padded_gates if is_group and not grows and arch in (("cuda", 90), ("interpreter", 0)) else 1


def backend_options(platform: str) -> dict[str, Any]:
    """Compiler options on top of warps and stages.

    Named as a limit, 255 registers are what ptxas uses before it spills; left alone it aims at more
    programs on an SM, which W_hh's shared memory rules out. LSTM bf16 H=1024, sm_80: 168 registers
    and 32 bytes of spill without, 255 and none with it. Fused multiply-adds are asked for by name:
    Triton 3.10 turns them off.
    """
    fusion: dict[str, Any] = {"enable_fp_fusion": True}
    return fusion if platform == "hip" else fusion | {"maxnreg": 255}


def split_k(problem: Problem, config: Config) -> int:
    """Programs that share one product: backwards, and forwards of float32 without TF32, whose weights take twice the
    memory. A program's share of all others fits unsplit, without a second exchange a step."""
    shared = problem.phase == "backward" or (problem.dtype == torch.float32 and problem.precision != "tf32")
    return config.SPLIT_K if shared and config.regime == "cooperative" else 1


def part_of_product(problem: Problem, config: Config) -> int:
    """Numbers that one row of a program's product sums up: forwards a head's units, backwards all their gates, or a
    part of them, a multiple of 16, so that they are read in whole vectors."""
    split = split_k(problem, config)
    if problem.phase == "forward" and split == 1:
        return problem.head_size
    gates = find_cell(problem.cell).gates if problem.phase == "backward" else 1
    return math.ceil(gates * problem.head_size / (16 * split)) * 16


def chunks(problem: Problem, config: Config) -> int:
    """Tiles that W_hh is resident in: BLOCK_K columns each; for one program backwards a gate each."""
    if config.regime == "single_cta":
        return 1 if problem.phase == "forward" else find_cell(problem.cell).gates
    return math.ceil(part_of_product(problem, config) / config.BLOCK_K)


def unit_blocks(problem: Problem, config: Config) -> int:
    """Blocks of a head's units, each that of SPLIT_K programs."""
    return math.ceil(problem.head_size / (split_k(problem, config) * config.BLOCK_H))


def team_size(problem: Problem, config: Config) -> int:
    """Programs that share one batch tile in one direction and head."""
    return 1 if config.regime == "single_cta" else unit_blocks(problem, config) * split_k(problem, config)


def partial_words(problem: Problem, config: Config, teams: int) -> int:
    """Of the memory in which teams exchange parts of products (see `loop.split_k`) and, behind all of those, of means
    (see `loop.means`)."""
    cell, split, members = find_cell(problem.cell), split_k(problem, config), team_size(problem, config)
    rows = (cell.padded_gates if problem.phase == "forward" else 1) * config.BLOCK_H
    of_products = members * 2 * config.BLOCK_B * split * rows if split > 1 else 0
    return teams * (of_products + words_of_means(cell.normalised, config.BLOCK_B, members))


def batch_tiles(problem: Problem, config: Config) -> int:
    return math.ceil(problem.batch_size / config.BLOCK_B)


def least_grid(problem: Problem, config: Config) -> int:
    """Programs that must be resident at once, a team's: directions and heads that do not fit beside each other take
    turns."""
    return team_size(problem, config)


def directions_at_once(problem: Problem, config: Config, resident: int) -> int:
    """Directions of one launch: all of them where the GPU holds a team for each head of each at once, else one after
    the other."""
    if config.regime == "single_cta" or resident >= problem.directions * problem.num_heads * team_size(problem, config):
        return problem.directions
    return 1


def heads_at_once(problem: Problem, config: Config, resident: int) -> int:
    """Heads of one launch: as many as the GPU holds a team for at once."""
    if config.regime == "single_cta":
        return problem.num_heads
    return max(1, min(problem.num_heads, resident // team_size(problem, config)))


def num_groups(problem: Problem, config: Config, resident: int) -> int:
    """Teams side by side per direction and head: as many as have a batch tile and as the GPU holds at once."""
    heads = heads_at_once(problem, config, resident)
    programs = directions_at_once(problem, config, resident) * heads * team_size(problem, config)
    return max(1, min(batch_tiles(problem, config), resident // programs))


@dataclass(frozen=True)
class KernelDescription:
    """All that `triton.compile` needs, without any tensor."""

    fn: triton.JITFunction
    signature: dict[str, Any]
    constexprs: dict[Any, Any]
    attrs: dict[tuple[int, ...], Any]
    num_warps: int
    num_stages: int
    options: dict[str, Any]
    grid: int
    """Programs that must be resident at once."""


def describe(
    problem: Problem,
    config: Config,
    limits: DeviceLimits,
    *,
    has_bias: bool = True,
    has_initial: bool = True,
    keep: Keep = "nothing",
    in_chunks: bool = False,
) -> KernelDescription:
    """The kernel as `launch` runs it on aligned tensors, for a GPU that need not be there.

    keep:       what the loop stores, or backwards what the one before it stored; backwards v is there or worked out
                again.
    in_chunks:  one of several launches of a call (see `chunks`): states pass in float32.
    """
    loop = loop_of(problem, config, limits.arch)
    fn = kernel_of(problem)
    groups = types_of(problem, config, loop, has_bias=has_bias, has_initial=has_initial, keep=keep, in_chunks=in_chunks)
    constants = constexprs(problem, config, limits.arch)
    signature, values, attrs = signature_of(fn, groups, constants)
    return KernelDescription(
        fn=fn,
        signature=signature,
        constexprs=values,
        attrs=attrs,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        options=backend_options(limits.arch[0]),
        grid=least_grid(problem, config),
    )
