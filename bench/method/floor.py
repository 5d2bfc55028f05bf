"""The floor under a time loop: what its exchange alone and its resident weights alone take, on the same GPU.

Two kernels with the geometry of a problem and a config. `exchange_only` hands tiles of the right size from program to
program, step after step, and multiplies nothing. `weights_only` multiplies the resident weights with an operand that
changes every step, and waits for nobody. A step of the real loop needs h of the step before, then multiplies it: its
floor is the sum of the two. It may be undercut by a loop that multiplies the first chunks of h while the last are still
on their way; the two terms are reported apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from ...kernels.cell_spec import find_cell
from ...kernels.config import Config
from ...kernels.describe import (
    Arch,
    backend_options,
    batch_tiles,
    constexprs,
    directions_at_once,
    heads_at_once,
    loop_of,
    num_groups,
    partial_words,
    split_k,
    team_size,
)
from ...kernels.executor import substitute
from ...kernels.loop.exchange import SENTINEL
from ...kernels.loop.groups import Team
from ...kernels.problem import Problem
from ...kernels.resources import H100, DeviceLimits, from_device
from ...kernels.stall import WAIT_LIMIT, raise_if_stalled, status_word
from .floor_kernels import exchange_only, weights_only


@dataclass(frozen=True)
class Floor:
    """Microseconds of one step of one batch tile per team.

    passes:  batch tiles that a program walks one after the other.
    """

    exchange_us: float
    weights_us: float
    passes: int

    @property
    def step_us(self) -> float:
        """Of one step of the whole batch."""
        return self.passes * (self.exchange_us + self.weights_us)


def exchange_constexprs(problem: Problem, config: Config, arch: Arch) -> dict[str, Any]:
    count = find_cell(problem.cell).gates if problem.phase == "backward" else 1
    return {"COUNT": count, "LOOP": replace(loop_of(problem, config, arch), PARTS=1)}


def weights_constexprs(problem: Problem, config: Config, arch: Arch) -> dict[str, Any]:
    values = constexprs(problem, config, arch)
    return {"BACKWARD": problem.phase == "backward", **values, "LOOP": replace(values["LOOP"], PARTS=1)}  # one product


class Exchange:
    """`exchange_only` for a problem and a cooperative config, T steps at a time."""

    def __init__(self, problem: Problem, config: Config, device: torch.device, steps: int) -> None:
        self.problem, self.config, self.device, self.steps = problem, config, device, steps
        self.values = exchange_constexprs(problem, config, _arch(device))
        self.groups = groups_on(problem, config, device)
        width = problem.directions * self.values["COUNT"] * problem.hidden_size
        self.channel = torch.empty(steps, problem.batch_size, width, dtype=problem.dtype, device=device)
        self.teams = problem.directions * problem.num_heads * self.groups
        self.arrivals = torch.zeros(self.teams, 32, dtype=torch.int32, device=device)
        words = partial_words(problem, config, self.teams)
        self.partial = torch.empty(words, dtype=torch.int32, device=device)

    def reset(self) -> None:
        """Before every run: nothing written, nobody arrived."""
        self.channel.view({2: torch.int16, 4: torch.int32}[self.channel.element_size()]).fill_(SENTINEL)
        self.partial.fill_(-1)
        self.arrivals.zero_()

    def run(self) -> None:
        executor = substitute()
        team = Team(
            arrivals=self.arrivals if self.config.exchange == "barrier" else None,
            status=status_word(self.device),
            spin_limit=executor.spin_limit if executor else WAIT_LIMIT,
            partial=self.partial if len(self.partial) else None,
        )
        arguments = {"channel_ptr": self.channel, "team": team, "T": self.steps, "B": self.problem.batch_size}
        grid = self.teams * team_size(self.problem, self.config)
        _launch(exchange_only, grid, arguments | self.values, self.config, self.device, cooperative=True)

    def launch(self, kernel: Any, grid: int, arguments: Mapping[str, Any]) -> None:
        """Another kernel on this memory, all of whose programs run at once."""
        _launch(kernel, grid, arguments, self.config, self.device, cooperative=True)


class ResidentWeights:
    """`weights_only` for a problem and a config, T steps at a time."""

    def __init__(self, problem: Problem, config: Config, device: torch.device, steps: int) -> None:
        self.problem, self.config, self.device, self.steps = problem, config, device, steps
        self.values = weights_constexprs(problem, config, _arch(device))
        cell, hidden, head = find_cell(problem.cell), problem.hidden_size, problem.head_size
        gates, backward = cell.gates, self.values["BACKWARD"]
        rows = config.BLOCK_H * (split_k(problem, config) if backward else cell.padded_gates)
        # Every program of the real launch: they share the chip's clock and power.
        teams = groups_on(problem, config, device) * problem.directions * problem.num_heads
        self.programs = teams * team_size(problem, config)

        def random(*shape: int) -> torch.Tensor:
            return (torch.randn(shape, device=device) * head**-0.5).to(problem.dtype)

        self.w = random(gates * hidden, head)
        self.h = random(2, config.BLOCK_B, (gates if backward else 1) * head)
        self.out = torch.empty(self.programs, rows, config.BLOCK_B, dtype=torch.float32, device=device)

    def run(self) -> None:
        arguments = {"w_ptr": self.w, "h_ptr": self.h, "out_ptr": self.out, "T": self.steps}
        _launch(weights_only, self.programs, arguments | self.values, self.config, self.device, cooperative=False)


def _arch(device: torch.device) -> Arch:
    executor = substitute()
    return from_device(device).arch if executor is None else executor.arch


def groups_on(problem: Problem, config: Config, device: torch.device) -> int:
    """Teams side by side per direction and head, one program an SM; single programs: a tile each, as many as SMs."""
    return num_groups(problem, config, _limits(device).num_sms)


def measure_floor(problem: Problem, config: Config, device: torch.device, *, steps: int = 512) -> Floor:
    """The floor of a step on this GPU: medians of 5 runs of `steps` steps, by CUDA events."""
    passes = passes_of(problem, config, device)
    # Of directions and heads that take turns, those of one.
    resident = _limits(device).num_sms
    heads = heads_at_once(problem, config, resident)
    problem = replace(
        problem,
        directions=directions_at_once(problem, config, resident),
        hidden_size=heads * problem.head_size,
        num_heads=heads,
    )
    weights = ResidentWeights(problem, config, device, steps)
    exchange_us = 0.0
    if config.regime == "cooperative":
        exchange = Exchange(problem, config, device, steps)
        # Both walk all passes of a program; a Floor counts one.
        exchange_us = _median_us(exchange.run, exchange.reset) / steps / tiles_of_a_team(problem, config, device)
        raise_if_stalled(device)
    return Floor(exchange_us, _median_us(weights.run) / steps, passes)


def passes_of(problem: Problem, config: Config, device: torch.device) -> int:
    """Times that a program's work is done one after the other: for its batch tiles, and for directions and heads in
    turn."""
    resident = _limits(device).num_sms
    turns = problem.directions // directions_at_once(problem, config, resident)
    turns *= math.ceil(problem.num_heads / heads_at_once(problem, config, resident))
    return turns * tiles_of_a_team(problem, config, device)


def tiles_of_a_team(problem: Problem, config: Config, device: torch.device) -> int:
    return math.ceil(batch_tiles(problem, config) / groups_on(problem, config, device))


def _limits(device: torch.device) -> DeviceLimits:
    return H100 if substitute() else from_device(device)


def _median_us(run: Any, before: Any = lambda: None, runs: int = 5) -> float:
    times = []
    for _ in range(runs + 2):
        before()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return median(times[2:])  # the first two compile and warm up


def _launch(
    kernel: Any, grid: int, arguments: Mapping[str, Any], config: Config, device: torch.device, *, cooperative: bool
) -> None:
    values = {name: arguments[name] for name in kernel.arg_names}
    executor = substitute()
    options = {
        **backend_options(_arch(device)[0]),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "launch_cooperative_grid": cooperative,
    }
    if executor is not None:
        executor.run(kernel, grid, values, **options)
        raise_if_stalled(device)
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(grid,)](**values, **options)
