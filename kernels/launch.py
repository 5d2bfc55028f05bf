"""Launch a time loop: the co-residency check, the team's counters, the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .config import Config
from .describe import (
    backend_options,
    batch_tiles,
    constexprs,
    kernel_of,
    least_grid,
    num_groups,
    partial_shape,
    split_k,
)
from .executor import substitute
from .problem import Problem
from .resources import from_device, resident_programs
from .stall import raise_if_stalled, status_word

# Polls before a wait is given up. An L2 round trip is near half a microsecond (design estimate), so about a second.
SPIN_LIMIT = 1 << 21


class NotResidentError(RuntimeError):
    """The programs of a cooperative launch do not fit on the GPU at the same time."""


def launch(problem: Problem, config: Config, device: torch.device, tensors: dict[str, Any]) -> None:
    """Run `kernel_of(problem, config)` on its tensors, strides and sizes; the rest is added here.

    Raises StalledError if an earlier launch on the device gave up a wait, and NotResidentError.
    """
    kernel = kernel_of(problem, config)
    executor = substitute()
    platform = "hip" if torch.version.hip else "cuda"
    arguments = tensors | constexprs(problem, config, platform)
    options: dict[str, Any] = {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **backend_options(platform),
    }
    if config.regime == "cooperative":
        raise_if_stalled(device)
        options["launch_cooperative_grid"] = True
        arguments |= {
            "num_groups": 1,
            "spin_limit": executor.spin_limit if executor else SPIN_LIMIT,
            "arrivals_ptr": None,
            "partial_ptr": None,
            "status_ptr": status_word(device),
        }
        resident = executor.resident_programs if executor else _resident(problem, config, device, arguments, options)
        if resident < least_grid(problem, config):
            raise NotResidentError(
                f"{problem.cell} with hidden_size={problem.hidden_size} needs {least_grid(problem, config)} programs "
                f"resident at once with {config}; {device} holds {resident}"
            )
        groups = num_groups(problem, config, resident)
        arguments["num_groups"] = groups
        if config.exchange == "barrier":
            arguments["arrivals_ptr"] = torch.zeros(problem.directions * groups, 32, dtype=torch.int32, device=device)
        if split_k(problem, config) > 1:
            shape = partial_shape(problem, config, groups)
            arguments["partial_ptr"] = torch.full(shape, -1, dtype=torch.int32, device=device)
        grid = groups * least_grid(problem, config)
    else:
        grid = problem.directions * batch_tiles(problem, config)
    arguments = {name: arguments[name] for name in kernel.arg_names}
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
    kernel = kernel_of(problem, config)
    looked_at = (p.name for p in kernel.params if not (p.is_constexpr or p.do_not_specialize))
    compiled_for = tuple(_specialization(arguments[name]) for name in looked_at)
    key = (device.index, replace(problem, batch_size=0), config, compiled_for)
    if key not in _resident_cache:
        if config.exchange == "barrier":
            arguments = arguments | {"arrivals_ptr": arguments["status_ptr"]}
        if split_k(problem, config) > 1:
            arguments = arguments | {"partial_ptr": arguments["status_ptr"]}
        values = {name: arguments[name] for name in kernel.arg_names}
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
