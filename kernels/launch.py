"""Run one layer: input projection, allocation, the co-residency check, the launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from .cell_spec import CELLS
from .config import Config
from .describe import backend_options, batch_tiles, constexprs, kernel_of, least_grid, num_groups
from .exchange import SENTINEL
from .executor import substitute
from .problem import Precision, Problem
from .resources import from_device, resident_programs
from .stall import raise_if_stalled, status_word

# Polls before a wait is given up. An L2 round trip is near half a microsecond (design estimate), so about a second.
SPIN_LIMIT = 1 << 21

_INTEGER = {2: torch.int16, 4: torch.int32}


class LayerWeights(NamedTuple):
    """One direction's parameters, in torch's layout; G gates, input size I, hidden size H."""

    w_ih: torch.Tensor  # [G * H, I]
    w_hh: torch.Tensor  # [G * H, H]
    b_ih: torch.Tensor | None  # [G * H]
    b_hh: torch.Tensor | None  # [G * H]


class NotResidentError(RuntimeError):
    """The programs of a cooperative launch do not fit on the GPU at the same time."""


def run_layer(
    problem: Problem,
    config: Config,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None = None,
    *,
    batch_first: bool = False,
    reverse: bool = False,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """One layer over a whole sequence, forward only.

    x:        [T, B, I], or [B, T, I] with batch_first; any strides.
    weights:  one per direction.
    initial:  one tensor [D, B, H] per state of the cell, h first; None for zeros.
    reverse:  a single direction walks from T - 1 to 0. With two, the second always does.

    Returns y [T, B, D * H], contiguous, and one final state [D, B, H] per state; all in
    `problem.dtype`, to which x, weights and initial states are cast.

    Raises StalledError if an earlier launch on the device gave up a wait, and NotResidentError.
    """
    x = x.to(problem.dtype)
    weights = [_cast(direction, problem.dtype) for direction in weights]
    with torch.autocast(x.device.type, enabled=False), _matmul_precision(x, problem.precision):
        gx = project_input(x, weights, batch_first=batch_first)
    return time_loop(problem, config, gx, weights, initial, reverse=reverse)


def _cast(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    w_ih, w_hh, b_ih, b_hh = weights
    return LayerWeights(
        w_ih.to(dtype),
        w_hh.to(dtype),
        None if b_ih is None else b_ih.to(dtype),
        None if b_hh is None else b_hh.to(dtype),
    )


def project_input(x: torch.Tensor, weights: Sequence[LayerWeights], *, batch_first: bool) -> torch.Tensor:
    """W_ih x + b_ih of every step and direction, [D, T, B, G * H] by strides: one GEMM a direction, no copy of x."""
    if not x.is_contiguous() and x.transpose(0, 1).is_contiguous():
        x, batch_first = x.transpose(0, 1), not batch_first
    rows = x.reshape(-1, x.shape[2])
    gx = x.new_empty(len(weights), *x.shape[:2], weights[0].w_ih.shape[0])
    for out, (w_ih, _, b_ih, _) in zip(gx.flatten(1, 2), weights, strict=True):
        if b_ih is None:
            torch.mm(rows, w_ih.t(), out=out)
        else:
            torch.addmm(b_ih, rows, w_ih.t(), out=out)
    return gx.transpose(1, 2) if batch_first else gx


def time_loop(
    problem: Problem,
    config: Config,
    gx: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None,
    *,
    reverse: bool = False,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The persistent kernel over gx [D, T, B, G * H]; returns as `run_layer`."""
    directions, T, B, _ = gx.shape
    hidden = problem.hidden_size
    y = gx.new_empty(T, B, directions * hidden)
    final = tuple(gx.new_empty(directions, B, hidden) for _ in range(CELLS[problem.cell].states))
    if B == 0:
        return y, final
    if config.exchange == "dataflow" and config.regime == "cooperative" and T > 1:
        y.view(_INTEGER[y.element_size()]).fill_(SENTINEL)
    arguments: dict[str, Any] = {
        "gx_ptr": gx,
        "stride_gxd": gx.stride(0),
        "stride_gxt": gx.stride(1),
        "stride_gxb": gx.stride(2),
        "w_hh": tuple(w.w_hh.contiguous() for w in weights),
        "b_hh": None if weights[0].b_hh is None else tuple(w.b_hh.contiguous() for w in weights),  # type: ignore[union-attr]
        "initial": None if initial is None else tuple(_as_step_of_y(s.to(problem.dtype)) for s in initial),
        "final": final,
        "y_ptr": y,
        "status_ptr": status_word(gx.device),
        "T": T,
        "B": B,
        "reverse_bits": 0b10 if directions == 2 else int(reverse),
    }
    _launch(problem, config, gx.device, arguments)
    return y, final


def _as_step_of_y(state: torch.Tensor) -> torch.Tensor:
    """[D, B, H] -> [B, D, H], contiguous; no copy for one direction. Equal strides save the loop 30 registers."""
    return state.transpose(0, 1).contiguous()


def _launch(problem: Problem, config: Config, device: torch.device, arguments: dict[str, Any]) -> None:
    kernel = kernel_of(config)
    executor = substitute()
    platform = "hip" if torch.version.hip else "cuda"
    arguments |= constexprs(problem, config, platform)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **backend_options(platform)}
    if config.regime == "cooperative":
        raise_if_stalled(device)
        arguments |= {
            "num_groups": 1,
            "spin_limit": executor.spin_limit if executor else SPIN_LIMIT,
            "arrivals_ptr": None,
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
        grid = groups * least_grid(problem, config)
        options["launch_cooperative_grid"] = True
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
    problem: Problem, config: Config, device: torch.device, arguments: dict[str, Any], options: dict[str, int]
) -> int:
    """Programs of the compiled kernel that the device holds at once, by its own registers and shared memory."""
    has_bias, has_initial = arguments["b_hh"] is not None, arguments["initial"] is not None
    key = (device.index, replace(problem, batch_size=0), config, has_bias, has_initial)
    if key not in _resident_cache:
        kernel = kernel_of(config)
        if "arrivals_ptr" in kernel.arg_names and config.exchange == "barrier":
            arguments = arguments | {"arrivals_ptr": arguments["status_ptr"]}
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


@contextmanager
def _float32_matmul_precision(precision: Precision) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _matmul_precision(x: torch.Tensor, precision: Precision) -> Any:
    """The input projection follows torch's TF32 setting for RNNs, not the one for matmuls, as cuDNN's does."""
    if x.device.type == "cuda" and x.dtype == torch.float32:
        return _float32_matmul_precision(precision)
    return nullcontext()
