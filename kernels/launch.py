"""Launch a time loop: the co-residency check, the team's counters, the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton

from .config import Config
from .describe import (
    backend_options,
    batch_tiles,
    constexprs,
    directions_at_once,
    kernel_of,
    least_grid,
    num_groups,
    partial_shape,
    split_k,
    team_size,
)
from .executor import substitute
from .loop.groups import Team
from .problem import Problem
from .resources import from_device, resident_programs
from .stall import raise_if_stalled, status_word

# Polls before a wait is given up. An L2 round trip is near half a microsecond (design estimate), so about a second.
SPIN_LIMIT = 1 << 21


class NotResidentError(RuntimeError):
    """The programs of a cooperative launch do not fit on the GPU at the same time."""


def launch(problem: Problem, config: Config, device: torch.device, groups: dict[str, Any]) -> None:
    """Run `kernel_of(problem)` on the layer's groups of arguments, T, B and walk_bits; the rest is added here.

    Two directions whose teams do not fit on the GPU at once are two launches.

    Raises StalledError if an earlier launch on the device gave up a wait, and NotResidentError.
    """
    kernel = kernel_of(problem)
    executor = substitute()
    platform = "hip" if torch.version.hip else "cuda"
    arguments = groups | constexprs(problem, config, platform) | {"team": Team()}
    options: dict[str, Any] = {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **backend_options(platform),
    }
    if config.regime == "cooperative":
        raise_if_stalled(device)
        options["launch_cooperative_grid"] = True
        team = Team(status=status_word(device), spin_limit=executor.spin_limit if executor else SPIN_LIMIT)
        arguments["team"] = team
        resident = executor.resident_programs if executor else _resident(problem, config, device, arguments, options)
        if resident < least_grid(problem, config):
            raise NotResidentError(
                f"{problem.cell} with hidden_size={problem.hidden_size} needs {least_grid(problem, config)} programs "
                f"resident at once with {config}; {device} holds {resident}"
            )
        at_once, side_by_side = directions_at_once(problem, config, resident), num_groups(problem, config, resident)
        for turn in range(problem.directions // at_once):
            arguments["team"] = _with_memory(team, problem, config, at_once * side_by_side, device)
            if at_once < problem.directions:
                arguments["walk_bits"] = alone(groups["walk_bits"], turn)
            _run(kernel, at_once * side_by_side * team_size(problem, config), arguments, options, device)
    else:
        _run(kernel, problem.directions * batch_tiles(problem, config), arguments, options, device)


def alone(walk_bits: int, direction: int) -> int:
    """The bits of a launch of one of two directions (see `walk.this_member`)."""
    return walk_bits | 1 + direction << 2


def _with_memory(team: Team, problem: Problem, config: Config, teams: int, device: torch.device) -> Team:
    """Counters and scratch memory as a launch of so many teams finds them."""
    if config.exchange == "barrier":
        team = team._replace(arrivals=torch.zeros(teams, 32, dtype=torch.int32, device=device))
    if split_k(problem, config) > 1:
        shape = partial_shape(problem, config, teams)
        team = team._replace(partial=torch.full(shape, -1, dtype=torch.int32, device=device))
    return team


def _run(
    kernel: triton.JITFunction, grid: int, arguments: dict[str, Any], options: dict[str, Any], device: torch.device
) -> None:
    arguments = {name: arguments[name] for name in kernel.arg_names}
    executor = substitute()
    if executor:
        executor.run(kernel, grid, arguments)
        raise_if_stalled(device)
    else:
        with torch.cuda.device(device):
            kernel[(grid,)](**arguments, **options)


_resident_cache: dict[Any, int] = {}


def _resident(
    problem: Problem, config: Config, device: torch.device, arguments: dict[str, Any], options: dict[str, Any]
) -> int:
    """Programs of the compiled kernel that the device holds at once, by its own registers and shared memory."""
    kernel = kernel_of(problem)
    looked_at = (p.name for p in kernel.params if not (p.is_constexpr or p.do_not_specialize))
    compiled_for = tuple(_specialization(arguments[name]) for name in looked_at)
    key = (device.index, replace(problem, batch_size=0), config, compiled_for)
    if key not in _resident_cache:
        # Any int32 memory stands for the team's own, which is as large as the answer allows.
        team = arguments["team"]
        team = team._replace(
            arrivals=team.status if config.exchange == "barrier" else None,
            partial=team.status if split_k(problem, config) > 1 else None,
        )
        values = {name: arguments[name] for name in kernel.arg_names} | {"team": team}
        with torch.cuda.device(device):
            compiled = kernel.warmup(**values, **options, grid=(1,))
            compiled._init_handles()
        _resident_cache[key] = resident_programs(
            from_device(device),
            registers=compiled.n_regs,
            num_warps=compiled.metadata.num_warps,
            shared=compiled.metadata.shared,
        )
    return _resident_cache[key]


def _specialization(argument: Any) -> Any:
    """What Triton compiles a kernel of its own for, besides types: another stride or alignment is another kernel, with
    other registers. LSTM bf16 H=1024, sm_90: 180 where everything is divisible by 16, 255 where nothing is."""
    if argument is None:
        return None
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument < 2**31
    if isinstance(argument, tuple):
        return tuple(map(_specialization, argument))
    return argument.data_ptr() % 16 == 0
