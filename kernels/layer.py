"""One layer over a whole sequence, forwards and backwards: GEMMs around a persistent time loop.

Forwards: one GEMM for the input projection of all steps, then the loop. Backwards: the loop, then
GEMMs and sums over all steps for the weights and the input; no atomics, so the same bits every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch

from .cell_spec import find_cell
from .config import Config
from .exchange import SENTINEL
from .launch import launch
from .problem import Precision, Problem

Keep = Literal["nothing", "save", "recompute"]
"""What a forward pass keeps for the backward pass: nothing; the gate values of every step ("save");
or only what cannot be had again by one GEMM, an LSTM's cell states ("recompute")."""

_INTEGER = {2: torch.int16, 4: torch.int32}


class LayerWeights(NamedTuple):
    """One direction's parameters (or their gradients), in torch's layout; G gates, input size I, hidden size H."""

    w_ih: torch.Tensor  # [G * H, I]
    w_hh: torch.Tensor  # [G * H, H]
    b_ih: torch.Tensor | None  # [G * H]
    b_hh: torch.Tensor | None  # [G * H]


class Residuals(NamedTuple):
    """What the backward pass needs besides inputs and outputs."""

    kept: tuple[torch.Tensor, ...]
    """The later states of every step, [T, B, D * H] each: c for an LSTM."""

    saved: torch.Tensor | None
    """v of every step, [T, B, D * SAVED * H]; None where it is worked out again."""


class Gradients(NamedTuple):
    x: torch.Tensor | None
    weights: list[LayerWeights]
    initial: tuple[torch.Tensor, ...]


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
    """`forward_layer` for inference: y and the final states."""
    y, final, _ = forward_layer(problem, config, x, weights, initial, batch_first=batch_first, reverse=reverse)
    return y, final


def forward_layer(
    problem: Problem,
    config: Config,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None = None,
    *,
    batch_first: bool = False,
    reverse: bool = False,
    keep: Keep = "nothing",
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], Residuals]:
    """One layer over a whole sequence.

    x:        [T, B, I], or [B, T, I] with batch_first; any strides.
    weights:  one per direction.
    initial:  one tensor [D, B, H] per state of the cell, h first; None for zeros.
    reverse:  a single direction walks from T - 1 to 0. With two, the second always does.

    Returns y [T, B, D * H], contiguous, one final state [D, B, H] per state, and what the backward
    pass needs; all in `problem.dtype`, to which x, weights and initial states are cast.

    Raises StalledError if an earlier launch on the device gave up a wait, and NotResidentError.
    """
    x, weights, initial = _cast(problem, x, weights, initial)
    gx = project_input(problem, x, weights, batch_first=batch_first)
    cell = find_cell(problem.cell)
    directions, T, B, _ = gx.shape
    hidden = problem.hidden_size
    y = gx.new_empty(T, B, directions * hidden)
    final = tuple(gx.new_empty(directions, B, hidden) for _ in range(cell.states))
    kept = () if keep == "nothing" else tuple(torch.empty_like(y) for _ in range(cell.states - 1))
    saved = y.new_empty(T, B, directions * cell.saved * hidden) if keep == "save" and cell.saved else None
    if B == 0:
        return y, final, Residuals(kept, saved)
    if T > 1:  # in a single step nobody reads what the team publishes
        _prepare_channel(config, y)
    biases = [w.b_hh for w in weights if w.b_hh is not None]
    tensors = {
        "gx_ptr": gx,
        "stride_gxd": gx.stride(0),
        "stride_gxt": gx.stride(1),
        "stride_gxb": gx.stride(2),
        "w_hh": tuple(w.w_hh.contiguous() for w in weights),
        "b_hh": tuple(b.contiguous() for b in biases) or None,
        "initial": _as_steps_of_y(initial),
        "final": final,
        "y_ptr": y,
        "kept": kept or None,
        "saved_ptr": saved,
        "T": T,
        "B": B,
        "reverse_bits": _reverse_bits(directions, reverse),
    }
    launch(problem, config, gx.device, tensors)
    return y, final, Residuals(kept, saved)


def backward_layer(
    problem: Problem,
    config: Config,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None,
    y: torch.Tensor,
    residuals: Residuals,
    dy: torch.Tensor | None,
    d_final: Sequence[torch.Tensor | None],
    *,
    batch_first: bool = False,
    reverse: bool = False,
    needs_dx: bool = True,
) -> Gradients:
    """Gradients of `forward_layer`'s x, weights and initial states, from those of y and the final states.

    y, residuals:  what `forward_layer` returned with keep="save" or "recompute".
    dy:            [T, B, D * H], any strides, or None where nothing used y.
    d_final:       one [D, B, H] per state, or None for each that nothing used.
    """
    x, weights, initial = _cast(problem, x, weights, initial)
    cell = find_cell(problem.cell)
    T, B, width = y.shape
    hidden = problem.hidden_size
    directions = width // hidden
    gradients = [t for t in d_final if t is not None]
    d_initial = tuple(y.new_empty(directions, B, hidden) for _ in range(cell.states))
    da = y.new_empty(T, B, directions * cell.gates * hidden)
    dx = torch.empty_like(da) if cell.split_gradient else None
    if B == 0:
        da.zero_()
    else:
        gx = ga = None
        if residuals.saved is None and cell.saved:
            gx = project_input(problem, x, weights, batch_first=batch_first)
            ga = _project_state(problem, y, weights, initial, reverse=reverse)
        if dy is not None:
            dy = dy.to(problem.dtype)
            dy = dy if dy.stride(2) == 1 else dy.contiguous()
        _prepare_channel(config, da)
        tensors = {
            "dy_ptr": dy,
            "stride_dyt": 0 if dy is None else dy.stride(0),
            "stride_dyb": 0 if dy is None else dy.stride(1),
            "d_final": None
            if not gradients
            else tuple(
                torch.zeros_like(s) if t is None else t.to(problem.dtype).contiguous()
                for t, s in zip(d_final, d_initial, strict=True)
            ),
            "d_initial": d_initial,
            "w_hh": tuple(w.w_hh.contiguous() for w in weights),
            "initial": _as_steps_of_y(initial),
            "y_ptr": y,
            "kept": residuals.kept or None,
            "saved_ptr": residuals.saved,
            "gx_ptr": gx,
            "stride_gxd": 0 if gx is None else gx.stride(0),
            "stride_gxt": 0 if gx is None else gx.stride(1),
            "stride_gxb": 0 if gx is None else gx.stride(2),
            "ga_ptr": ga,
            "da_ptr": da,
            "dx_ptr": dx,
            "T": T,
            "B": B,
            "reverse_bits": _reverse_bits(directions, reverse),
        }
        launch(problem, config, y.device, tensors)
    return _after_the_loop(
        problem, x, weights, initial, y, da, da if dx is None else dx, d_initial, batch_first, reverse, needs_dx
    )


def project_input(
    problem: Problem, x: torch.Tensor, weights: Sequence[LayerWeights], *, batch_first: bool
) -> torch.Tensor:
    """W_ih x + b_ih of every step and direction, [D, T, B, G * H] by strides: one GEMM a direction, no copy of x."""
    if not x.is_contiguous() and x.transpose(0, 1).is_contiguous():
        x, batch_first = x.transpose(0, 1), not batch_first
    rows = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    gx = x.new_empty(len(weights), *x.shape[:2], weights[0].w_ih.shape[0])
    with _gemm(problem, x.device):
        for out, w in zip(gx.flatten(1, 2), weights, strict=True):
            _linear(rows, w.w_ih, w.b_ih, out)
    return gx.transpose(1, 2) if batch_first else gx


def _project_state(
    problem: Problem,
    y: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None,
    *,
    reverse: bool,
) -> torch.Tensor:
    """W_hh h + b_hh of every step again, [D, T, B, G * H], now that all h are known: one GEMM a direction."""
    T, B, _ = y.shape
    ga = y.new_empty(len(weights), T, B, weights[0].w_hh.shape[0])
    with _gemm(problem, y.device):
        for direction, w in enumerate(weights):
            first, rest, before = _steps(direction, y, problem.hidden_size, reverse)
            _linear(before.reshape((T - 1) * B, problem.hidden_size), w.w_hh, w.b_hh, ga[direction, rest].flatten(0, 1))
            h_0 = y.new_zeros(B, problem.hidden_size) if initial is None else initial[0][direction]
            _linear(h_0, w.w_hh, w.b_hh, ga[direction, first])
    return ga


def _steps(direction: int, y: torch.Tensor, hidden: int, reverse: bool) -> tuple[int, slice, torch.Tensor]:
    """A direction's first step, the other steps, and its h before each of those, [T - 1, B, H]."""
    own = y[:, :, direction * hidden : (direction + 1) * hidden]
    if direction == 1 or reverse:
        return y.shape[0] - 1, slice(0, -1), own[1:]
    return 0, slice(1, None), own[:-1]


def _after_the_loop(
    problem: Problem,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None,
    y: torch.Tensor,
    da: torch.Tensor,
    dx: torch.Tensor,
    d_initial: tuple[torch.Tensor, ...],
    batch_first: bool,
    reverse: bool,
    needs_dx: bool,
) -> Gradients:
    """Everything that is a GEMM or a sum over all steps of the preactivations' gradients."""
    T, B, _ = y.shape
    hidden, rows = problem.hidden_size, weights[0].w_hh.shape[0]
    rows_of_x = (x.transpose(0, 1) if batch_first else x).reshape(T * B, x.shape[2])
    grad_x = None
    found = []
    with _gemm(problem, y.device):
        for direction, w in enumerate(weights):
            columns = slice(direction * rows, (direction + 1) * rows)
            da_d, dx_d = da[:, :, columns], dx[:, :, columns].reshape(T * B, rows)
            first, rest, before = _steps(direction, y, hidden, reverse)
            dw_hh = da_d[rest].reshape((T - 1) * B, rows).t() @ before.reshape((T - 1) * B, hidden)
            if initial is not None:
                dw_hh = torch.addmm(dw_hh, da_d[first].t(), initial[0][direction])
            found.append(
                LayerWeights(
                    dx_d.t() @ rows_of_x,
                    dw_hh,
                    None if w.b_ih is None else dx_d.sum(0),
                    None if w.b_hh is None else da_d.sum((0, 1)),
                )
            )
            if needs_dx:
                grad_x = dx_d @ w.w_ih if grad_x is None else torch.addmm(grad_x, dx_d, w.w_ih)
    if grad_x is not None:
        grad_x = grad_x.view(T, B, x.shape[2])
        grad_x = grad_x.transpose(0, 1) if batch_first else grad_x
    return Gradients(grad_x, found, d_initial)


def _cast(
    problem: Problem, x: torch.Tensor, weights: Sequence[LayerWeights], initial: Sequence[torch.Tensor] | None
) -> tuple[torch.Tensor, list[LayerWeights], tuple[torch.Tensor, ...] | None]:
    dtype = problem.dtype
    cast = [
        LayerWeights(
            w.w_ih.to(dtype),
            w.w_hh.to(dtype),
            None if w.b_ih is None else w.b_ih.to(dtype),
            None if w.b_hh is None else w.b_hh.to(dtype),
        )
        for w in weights
    ]
    return x.to(dtype), cast, None if initial is None else tuple(state.to(dtype) for state in initial)


def _as_steps_of_y(states: Sequence[torch.Tensor] | None) -> tuple[torch.Tensor, ...] | None:
    """[D, B, H] -> [B, D, H], contiguous; no copy for one direction. Equal strides save the loop 30 registers."""
    return None if states is None else tuple(state.transpose(0, 1).contiguous() for state in states)


def _prepare_channel(config: Config, channel: torch.Tensor) -> None:
    """Fill what a team publishes with the sentinel, where the sentinel is how it waits."""
    if config.regime == "cooperative" and config.exchange == "dataflow":
        channel.view(_INTEGER[channel.element_size()]).fill_(SENTINEL)


def _reverse_bits(directions: int, reverse: bool) -> int:
    return 0b10 if directions == 2 else int(reverse)


def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)


@contextmanager
def _gemm(problem: Problem, device: torch.device) -> Iterator[None]:
    """No autocast, and TF32 as torch's setting for RNNs says, not the one for matmuls: as in cuDNN's RNN."""
    is_float32 = device.type == "cuda" and problem.dtype == torch.float32
    precision: Any = _float32_matmul(problem.precision) if is_float32 else nullcontext()
    with torch.autocast(device.type, enabled=False), precision:
        yield


@contextmanager
def _float32_matmul(precision: Precision) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
