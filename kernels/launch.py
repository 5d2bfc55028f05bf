"""Launch a time loop: how many teams the GPU holds at once, their memory, the grid, and the compiled kernel itself.

Triton's own `kernel[grid](...)` works out anew at every call which kernel it means: 30 us of a CPU core for these
arguments, forwards. Here a `Launcher` remembers the compiled kernel by what Triton compiles one for (types, alignment,
strides) and hands it to Triton's launcher, which takes 4 us.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver

from .cell_spec import CELLS
from .config import Config
from .describe import (
    Arch,
    backend_options,
    batch_tiles,
    constexprs,
    directions_at_once,
    heads_at_once,
    kernel_of,
    least_grid,
    num_groups,
    partial_words,
    team_size,
)
from .executor import Executor, substitute
from .layouts import check_layouts
from .loop.groups import ABSENT, Team
from .problem import Problem, sizes_of
from .resources import H100, TOO_LARGE, NotResidentError, from_device, resident_programs
from .stall import WAIT_LIMIT, raise_if_stalled, status_word


def launch(problem: Problem, config: Config, device: torch.device, groups: dict[str, Any]) -> None:
    """Run `kernel_of(problem)` on the layer's groups of arguments, T, B and walk_bits; the rest is added here.

    Directions and heads whose teams do not fit on the GPU at once are several launches.

    Raises StalledError if an earlier launch on the device gave up a wait, and NotResidentError.
    """
    executor = substitute()
    launcher = current_launcher(problem, config, device, None if executor is None else executor.arch)
    if launcher.cooperative:
        raise_if_stalled(device)
    if executor is None:
        launcher.run(groups)
    else:
        launcher.interpret(executor, groups)
        raise_if_stalled(device)


def current_launcher(problem: Problem, config: Config, device: torch.device, substitute_arch: Arch | None) -> Launcher:
    """The one of these, for the cell that has the problem's name today. substitute_arch: of the executor in the GPU's
    place, if there is one."""
    launcher = launcher_of(problem, config, device, substitute_arch)
    if launcher.cell is not CELLS.get(problem.cell):  # the name was given away anew
        launcher_of.cache_clear()
        launcher = launcher_of(problem, config, device, substitute_arch)
    return launcher


@dataclass
class Fit:
    """How many programs of a kernel a device holds at once: by the kernel's own registers and shared memory, until a
    driver refuses that many. One for all batch sizes."""

    resident: int
    num_sms: int

    def refused(self, grid: int, least: int) -> None:
        """The driver did not take a grid of so many programs, of which `least` must be resident at once: count on a
        program less on each SM, and below one on half of the teams."""
        an_sm = math.ceil(grid / self.num_sms) - 1
        self.resident = min(self.resident, self.num_sms * an_sm if an_sm else grid // least // 2 * least)


_fits: dict[tuple[torch.device, Any], Fit] = {}
"""By device and compiled kernel."""


class Launcher:
    """Every launch of one problem with one config on one device, or in an executor in its place."""

    def __init__(
        self, problem: Problem, config: Config, device: torch.device, substitute_arch: Arch | None = None
    ) -> None:
        self.problem, self.config, self.device = problem, config, device
        self.kernel, self.cell = kernel_of(problem), CELLS.get(problem.cell)
        self.cooperative = config.regime == "cooperative"
        self.least, self.tiles = least_grid(problem, config), batch_tiles(problem, config)
        arch = substitute_arch or from_device(device).arch
        # For AMD Triton compiles one thing more in that is not looked at here: whether a tensor has 2 GiB.
        self.remembers = arch[0] == "cuda"
        constants = constexprs(problem, config, arch)
        self.constants = tuple(constants.values())
        self.names = tuple(name for name in self.kernel.arg_names if name not in constants)
        self.place_of_team, self.place_of_walk = self.names.index("team"), self.names.index("walk_bits")
        self.options: dict[str, Any] = {
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            **backend_options(arch[0]),
        }
        if self.cooperative:
            self.options["launch_cooperative_grid"] = True
        self.compiled_for: dict[tuple[Any, ...], tuple[Any, Fit]] = {}

    def run(self, groups: dict[str, Any]) -> None:
        """Launch on the GPU."""
        self._on_its_device(self._run, groups)

    def repeat(self, found: tuple[Any, Fit], arguments: list[Any]) -> None:
        """Launch what `remembered` found, with these arguments."""
        if self.cooperative:
            raise_if_stalled(self.device)
        self._on_its_device(self._hand_over, found, arguments)

    def remembered(self, groups: dict[str, Any]) -> tuple[tuple[Any, Fit], list[Any]] | None:
        """The compiled kernel that a launch of these groups takes, and its arguments, addresses in place of tensors;
        None where that is worked out at every launch."""
        arguments, key = _addresses(self.names, groups)
        found = self.compiled_for.get(key)
        return None if found is None else (found, arguments)

    def _on_its_device(self, start: Callable[..., None], *arguments: Any) -> None:
        active = driver.active
        current = active.get_current_device()
        if self.device.index is None or self.device.index == current:
            start(*arguments, active.get_current_stream(current))
        else:
            with torch.cuda.device(self.device):
                start(*arguments, active.get_current_stream(self.device.index))

    def interpret(self, executor: Executor, groups: dict[str, Any]) -> None:
        """Let `executor` run every program to its end."""
        constants = dict(zip(self.kernel.arg_names[len(self.names) :], self.constants, strict=True))

        def start(grid: int, team: Team, walk_bits: int) -> None:
            given = groups | {"team": team, "walk_bits": walk_bits} | constants
            executor.run(self.kernel, grid, {name: given[name] for name in self.kernel.arg_names}, **self.options)

        self._start(start, Fit(executor.resident_programs, H100.num_sms), executor.spin_limit, groups["walk_bits"])

    def _run(self, groups: dict[str, Any], stream: int) -> None:
        arguments, key = _addresses(self.names, groups)
        found = self.compiled_for.get(key)
        if found is None:
            found = self._compiled(groups)
            if self.remembers:
                self.compiled_for[key] = found
            # As tensors: Triton's launcher then asks the driver whether the GPU can read them.
            arguments = [groups.get(name) for name in self.names]
        self._hand_over(found, arguments, stream)

    def _hand_over(self, found: tuple[Any, Fit], arguments: list[Any], stream: int) -> None:
        """To Triton's launcher."""
        compiled, fit = found
        enter, leave, metadata = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, None
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):  # a profiler listens
            metadata = compiled.launch_metadata((1,), stream, *arguments, *self.constants)
        else:
            enter = leave = None

        run, handles = compiled.run, (compiled.function, compiled.packed_metadata)

        def start(grid: int, team: Team, walk_bits: int) -> None:
            arguments[self.place_of_team], arguments[self.place_of_walk] = team, walk_bits
            run(grid, 1, 1, stream, *handles, metadata, enter, leave, *arguments, *self.constants)

        self._start(start, fit, WAIT_LIMIT, arguments[self.place_of_walk])

    def _start(self, start: Callable[[int, Team, int], None], fit: Fit, spin_limit: int, walk_bits: int) -> None:
        """Start as many teams as fit, fewer if the driver does not take that many; directions in turns if need be."""
        problem, config = self.problem, self.config
        if walk_bits >> 2 & 3:  # one direction is asked for
            problem = replace(problem, directions=1)
        if not self.cooperative:
            start(problem.directions * problem.num_heads * self.tiles, _ALONE, walk_bits)
            return
        while True:
            if fit.resident < self.least:
                raise NotResidentError(
                    f"{problem.cell} with {sizes_of(problem)} needs {self.least} programs "
                    f"resident at once with {config}; {self.device} holds {fit.resident}",
                    problem,
                )
            grid = 0
            try:
                for teams, bits in turns(problem, config, fit.resident, walk_bits):
                    grid = teams * team_size(problem, config)
                    start(grid, self._team(teams, spin_limit), bits)
                return
            except RuntimeError as error:
                if TOO_LARGE not in str(error):
                    raise
                fit.refused(grid, self.least)

    def _team(self, teams: int, spin_limit: int) -> Team:
        """Counters and scratch memory as a launch of so many teams finds them."""
        arrivals = partial = None
        if self.config.exchange == "barrier":
            arrivals = torch.zeros(teams, 32, dtype=torch.int32, device=self.device)
        if words := partial_words(self.problem, self.config, teams):
            partial = torch.full((words,), -1, dtype=torch.int32, device=self.device)
        return Team(arrivals, status_word(self.device), spin_limit, partial)

    def _compiled(self, groups: dict[str, Any]) -> tuple[Any, Fit]:
        """The kernel for arguments of this kind, loaded."""
        team = _ALONE
        try:
            if self.cooperative:
                # Any int32 memory stands for the team's own, which is as large as the answer allows.
                word = status_word(self.device)
                barrier, partial = self.config.exchange == "barrier", partial_words(self.problem, self.config, teams=1)
                team = Team(word if barrier else None, word, WAIT_LIMIT, word if partial else None)
            values = [team if name == "team" else groups[name] for name in self.names]
            compiled = self.kernel.warmup(*values, *self.constants, **self.options, grid=(1,))
            check_layouts(compiled.asm["ttgir"])
            compiled._init_handles()
        except RuntimeError as error:
            if _capturing(self.device):
                raise RuntimeError(
                    "a kernel's first launch cannot be captured in a CUDA graph, as Triton has yet to compile and load "
                    "it: make the same call once before the capture, with a backward pass if that is captured too"
                ) from error
            raise
        place = self.device, compiled
        if place not in _fits:
            limits = from_device(self.device)
            resident = resident_programs(
                limits,
                registers=compiled.n_regs,
                num_warps=compiled.metadata.num_warps,
                shared=compiled.metadata.shared,
            )
            _fits[place] = Fit(resident, limits.num_sms)
        return compiled, _fits[place]


launcher_of = lru_cache(maxsize=4096)(Launcher)
_ALONE = Team()


def turns(problem: Problem, config: Config, resident: int, walk_bits: int) -> Iterator[tuple[int, int]]:
    """Teams and bits (see `walk.this_member`) of each launch: one where a team for every direction and head fits."""
    directions = directions_at_once(problem, config, resident)
    heads = heads_at_once(problem, config, resident)
    groups = num_groups(problem, config, resident)
    for turn in range(problem.directions // directions):
        bits = walk_bits if directions == problem.directions else alone(walk_bits, turn)
        for first in range(0, problem.num_heads, heads):
            some = bits if heads == problem.num_heads else bits | 1 + first << 4
            yield directions * min(heads, problem.num_heads - first) * groups, some


def alone(walk_bits: int, direction: int) -> int:
    """The bits of a launch of one of two directions (see `walk.this_member`)."""
    return walk_bits | 1 + direction << 2


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _addresses(names: tuple[str, ...], groups: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """The groups of these names with the addresses in place of tensors, None for one that is not there; and what Triton
    compiles a kernel of its own for: what is None, types (their width: the rest follows from the problem), how far
    addresses and strides are multiples; and the device. LSTM bf16 H=1024, sm_90: 180 registers where everything is
    divisible by 16, 255 where nothing is."""
    arguments: list[Any] = []
    seen: list[Any] = []
    for name in names:
        group = groups.get(name)
        if type(group) is int or group is ABSENT.get(type(group)):  # T, B, walk_bits: not specialised, below 2**31
            arguments.append(group)
            if type(group) is not int:
                seen.append(None)
            continue
        found: list[Any] = []
        for field in group:  # type: ignore[union-attr]
            if field is None:
                seen.append(None)
                found.append(None)
            elif type(field) is int:
                seen.append(4 * (field >= 2**31) + (0 if field % 16 else 2) + (field == 1))
                found.append(field)
            elif type(field) is tuple:
                addresses = [tensor.data_ptr() for tensor in field]
                seen += [_kind(tensor) for tensor in field]
                found.append(tuple(addresses))
            else:
                seen.append(_kind(field))
                found.append(field.data_ptr())
        arguments.append(tuple(found))
    return arguments, tuple(seen)


def _kind(tensor: torch.Tensor) -> int:
    return 2**20 * tensor.itemsize + 2 * tensor.get_device() + (not tensor.data_ptr() % 16)
