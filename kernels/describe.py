"""From a problem and a config to a kernel: its compile-time arguments, its signature, its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton

from . import cooperative, single_cta
from .cell_spec import find_cell
from .config import Config
from .problem import Problem
from .resources import DeviceLimits

_POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_SIXTEEN = [["tt.divisibility", 16]]
_RUNTIME_SCALARS = ("T", "B", "reverse_bits", "num_groups", "spin_limit")


def kernel_of(problem: Problem, config: Config) -> triton.JITFunction:
    module = single_cta if config.regime == "single_cta" else cooperative
    return module.forward if problem.phase == "forward" else module.backward


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


def constexprs(problem: Problem, config: Config, platform: str) -> dict[str, Any]:
    """Compile-time arguments of `kernel_of(problem, config)`. The batch and the length are not among them."""
    cell = find_cell(problem.cell)
    values = {
        "GATES_OF": cell.gates_of,
        "UPDATE": cell.update,
        "GRADIENTS": cell.gradients,
        "INNER": cell.inner,
        "OUTER_GRADIENTS": cell.outer_gradients,
        "OUTER_GATES": cell.outer_gates,
        "ACTIVATION": cell.activation,
        "RECURRENT": cell.recurrent_activation,
        "PARAMETERS": cell.parameters,
        "GATES": cell.gates,
        "PADDED_GATES": cell.padded_gates,
        "STATES": cell.states,
        "SAVED": saved_tiles(problem),
        "HIDDEN": problem.hidden_size,
        "DIRECTIONS": problem.directions,
        "PRECISION": dot_precision(problem, platform),
        "EXCHANGE": config.exchange,
        "SPLIT_K": split_k(problem, config),
        "PART": part_of_product(problem, config),
        "BLOCK_B": config.BLOCK_B,
        "BLOCK_H": config.BLOCK_H,
        "BLOCK_K": config.BLOCK_K,
    }
    return {name: values[name] for name in kernel_of(problem, config).arg_names if name in values}


def saved_tiles(problem: Problem) -> int:
    """Tiles of v that the loop backwards needs: zoneout's takes the new state as it was before."""
    cell = find_cell(problem.cell)
    return cell.values if "zoneout" in problem.features else cell.saved


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
    """Programs that share one product: only the loop backwards splits it."""
    return config.SPLIT_K if problem.phase == "backward" and config.regime == "cooperative" else 1


def part_of_product(problem: Problem, config: Config) -> int:
    """Rows of W_hh that a program keeps backwards, of G * H: a multiple of 16, so that da is read in whole vectors."""
    return math.ceil(find_cell(problem.cell).gates * problem.hidden_size / (16 * split_k(problem, config))) * 16


def unit_blocks(problem: Problem, config: Config) -> int:
    """Blocks of units, each that of SPLIT_K programs."""
    return math.ceil(problem.hidden_size / (split_k(problem, config) * config.BLOCK_H))


def team_size(problem: Problem, config: Config) -> int:
    """Programs that share one batch tile in one direction."""
    return 1 if config.regime == "single_cta" else unit_blocks(problem, config) * split_k(problem, config)


def partial_shape(problem: Problem, config: Config, groups: int) -> tuple[int, ...]:
    """Of the memory in which parts of products are exchanged (see `split_k`)."""
    teams, split = problem.directions * groups, split_k(problem, config)
    return teams, unit_blocks(problem, config), 2, split, config.BLOCK_B, split * config.BLOCK_H


def batch_tiles(problem: Problem, config: Config) -> int:
    return math.ceil(problem.batch_size / config.BLOCK_B)


def least_grid(problem: Problem, config: Config) -> int:
    """Programs that must be resident at once: a team for each direction; a single CTA waits for nobody."""
    return 1 if config.regime == "single_cta" else problem.directions * team_size(problem, config)


def num_groups(problem: Problem, config: Config, resident: int) -> int:
    """Teams side by side per direction: as many as have a batch tile and as the GPU holds at once."""
    return max(1, min(batch_tiles(problem, config), resident // least_grid(problem, config)))


@dataclass(frozen=True)
class KernelDescription:
    """All that `triton.compile` needs, without any tensor."""

    fn: triton.JITFunction
    signature: dict[str, Any]
    constexprs: dict[str, Any]
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
    saves: bool = False,
) -> KernelDescription:
    """The kernel as `launch` runs it on aligned tensors, for a GPU that need not be there.

    saves:  forward: the kernel also stores v and the later states; backward: it reads v instead of
            working it out again.
    """
    cell = find_cell(problem.cell)
    fn = kernel_of(problem, config)
    pointer = _POINTER[problem.dtype]
    states = (pointer,) * cell.states
    per_direction = (pointer,) * problem.directions
    types: dict[str, Any] = {
        **dict.fromkeys(("gx_ptr", "ga_ptr", "y_ptr", "dy_ptr", "da_ptr", "dx_ptr", "saved_ptr", "inner_ptr"), pointer),
        **dict.fromkeys(("dropout_ptr", "sent_ptr", "sent_initial_ptr", "sent_reset_ptr"), pointer),
        **dict.fromkeys(("initial", "final", "d_initial", "d_final", "reset_state", "d_reset", "zones"), states),
        **dict.fromkeys(("w_hh", "b_hh", "parameters"), per_direction),
        **dict.fromkeys(("stride_gxt", "stride_gxb", "stride_dyt", "stride_dyb"), "i32"),
        **dict.fromkeys(("stride_zone_row", "stride_zone_unit"), "i32"),
        **dict.fromkeys(("arrivals_ptr", "partial_ptr", "status_ptr", "lengths_ptr"), "*i32"),
        **dict.fromkeys(_RUNTIME_SCALARS, "i32"),
        **dict.fromkeys(("stride_gxd", "stride_gad"), "i64"),
        "starts_ptr": "*i64",
        "resets_ptr": "*u8",
        "d_parameters_ptr": "*fp32",
        "kept": states[1:],
    }
    backward = problem.phase == "backward"
    saved = saved_tiles(problem)
    saves = saves or cell.inner is not None
    recomputes = backward and saved > 0 and not saves
    has = set(problem.features)
    resets_to_state = {"resets", "reset_state"} <= has
    absent = {
        "b_hh": not has_bias,
        "initial": not has_initial,
        "arrivals_ptr": config.exchange != "barrier",
        "partial_ptr": split_k(problem, config) == 1,
        "kept": cell.states == 1 or not (saves or backward),
        "saved_ptr": saved == 0 or not saves,
        "inner_ptr": cell.inner is None,
        "dx_ptr": not cell.split_gradient,
        **dict.fromkeys(("parameters", "d_parameters_ptr"), cell.parameters == 0),
        **dict.fromkeys(("gx_ptr", "ga_ptr"), backward and not recomputes),
        "lengths_ptr": not has & {"lengths", "packed"},
        "starts_ptr": "packed" not in has,
        "resets_ptr": "resets" not in has,
        **dict.fromkeys(("reset_state", "d_reset", "sent_reset_ptr"), not resets_to_state),
        **dict.fromkeys(("dropout_ptr", "sent_ptr"), "recurrent_dropout" not in has),
        "sent_initial_ptr": "recurrent_dropout" not in has or not has_initial,
        "zones": "zoneout" not in has,
    }
    values = constexprs(problem, config, limits.arch[0])
    values |= {name: None for name, is_absent in absent.items() if is_absent and name in fn.arg_names}
    signature = {name: "constexpr" if name in values else types[name] for name in fn.arg_names}
    attrs: dict[tuple[int, ...], Any] = {}
    for index, (name, kind) in enumerate(signature.items()):
        if isinstance(kind, tuple):
            attrs |= {(index, element): _SIXTEEN for element in range(len(kind))}
        elif kind.startswith("*") or (name.startswith("stride") and problem.hidden_size % 16 == 0):
            attrs[(index,)] = _SIXTEEN
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
