"""The GEMMs and sums around the time loop, over all steps at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import linear

from .alignment import empty_rows, in_sixteens
from .cell_spec import find_cell
from .extras import Extras, states_before
from .heads import by_gates, by_heads, linear_by_heads, of_w_hh, sums_of_products
from .problem import Problem


class LayerWeights(NamedTuple):
    """One direction's parameters (or their gradients), in torch's layout; G gates, I inputs, H units, N heads."""

    w_ih: torch.Tensor  # [G * H, I]
    w_hh: torch.Tensor  # [G * H, H / N]
    b_ih: torch.Tensor | None  # [G * H]
    b_hh: torch.Tensor | None  # [G * H]
    parameters: torch.Tensor | None = None  # [P, H]: what the cell has besides, per unit


class Wanted(NamedTuple):
    """Which gradients anybody asks for; of a weight, in any direction."""

    x: bool = True
    w_ih: bool = True
    w_hh: bool = True
    b_ih: bool = True
    b_hh: bool = True
    parameters: bool = True
    initial: bool = True
    reset_state: bool = True

    @property
    def of_input(self) -> bool:
        """Whether any needs the gradients of W_ih x + b_ih."""
        return self.x or self.w_ih or self.b_ih


ALL = Wanted()


class WeightGradients(NamedTuple):
    """One direction's, as `LayerWeights`; None where there is no such weight or nobody asks."""

    w_ih: torch.Tensor | None
    w_hh: torch.Tensor | None
    b_ih: torch.Tensor | None
    b_hh: torch.Tensor | None
    parameters: torch.Tensor | None = None


class History(NamedTuple):
    """What W_hh multiplied at every step: h before it, and for a cell with two products something else too.

    sent:     [T, B, D * H] or packed [rows, D * H]: h after every step, as it went through W_hh.
    inner:    as sent: what the second product multiplied; None for cells with one.
    initial:  [D, B, H] per state; None for zeros.
    reverse:  a single direction walks from its end to 0. With two, the second always does.
    """

    sent: torch.Tensor
    inner: torch.Tensor | None
    initial: Sequence[torch.Tensor] | None
    extras: Extras
    reverse: bool

    def walks_back(self, direction: int) -> bool:
        return direction == 1 or self.reverse

    def shifts(self, direction: int, *, bounded: bool) -> bool:
        """Whether h before a step is that of its neighbour in memory, or the step's gradient is zero and that h finite.

        bounded:  see `CellSpec`. With lengths the step after a row's last one, where the gradient is zero, has the last
                  one's h for a neighbour.
        """
        extras = self.extras
        if extras.resets is not None or extras.starts is not None:
            return False
        return extras.lengths is None or (self.initial is None if self.walks_back(direction) else bounded)

    def of(self, tensor: torch.Tensor, direction: int, hidden: int) -> torch.Tensor:
        """A direction's own part of a tensor as `sent`."""
        if tensor.shape[-1] == hidden:
            return tensor
        return tensor[..., direction * hidden : (direction + 1) * hidden]

    def before(self, direction: int, hidden: int) -> torch.Tensor:
        """What W_hh's (first) product multiplied at every step of a direction, [rows, H]."""
        own = self.of(self.sent, direction, hidden)
        extras = self.extras
        initial = self._through_dropout(None if self.initial is None else self.initial[0], direction)
        reset = self._through_dropout(None if extras.reset_state is None else extras.reset_state[0], direction)
        steps, batch_size = extras.extent(own.shape)
        back = self.walks_back(direction)
        rows = own.reshape(-1, hidden)
        return states_before(rows, initial, reset, extras, steps=steps, batch_size=batch_size, reverse=back)

    def _through_dropout(self, h: torch.Tensor | None, direction: int) -> torch.Tensor | None:
        """[D, B, H] -> [B, H] of one direction, times its factors."""
        if h is None or self.extras.dropout is None:
            return None if h is None else h[direction]
        return h[direction] * self.extras.dropout[direction]


def project_input(
    problem: Problem, x: torch.Tensor, weights: Sequence[LayerWeights], *, batch_first: bool
) -> torch.Tensor:
    """W_ih x + b_ih of every step and direction, [D, T, B, G * H] by strides: one GEMM a direction, no copy of x.

    Of a packed x, [rows, I], it is [D, rows, G * H].
    """
    packed = x.dim() == 2
    if (gx := project_once(problem, x, weights)) is not None:
        gx = gx.unsqueeze(0)
        return gx.transpose(1, 2) if batch_first and not packed else gx
    if not packed and not x.is_contiguous() and x.transpose(0, 1).is_contiguous():
        x, batch_first = x.transpose(0, 1), not batch_first
    width = weights[0].w_ih.shape[0]
    with in_precision(problem, x.device):
        rows = x.reshape(-1, x.shape[-1])
        gx = empty_rows(x, len(weights), *x.shape[:-1], width)
        for out, w in zip(gx.flatten(1, -2), weights, strict=True):
            _linear(rows, w.w_ih, w.b_ih, out)
    return gx.transpose(1, 2) if batch_first and not packed else gx


def project_once(problem: Problem, x: torch.Tensor, weights: Sequence[LayerWeights]) -> torch.Tensor | None:
    """W_ih x + b_ih laid out as x where the addmm of x's rows can be had through less Python, 3 us and not 7."""
    w_ih, _, b_ih, *_ = weights[0]
    if len(weights) > 1 or w_ih.shape[0] % 16 or not x.is_contiguous():
        return None
    if (precision := in_precision(problem, x.device)) is AS_IT_IS:
        return linear(x, w_ih, b_ih)
    with precision:
        return linear(x, w_ih, b_ih)


def project_state(
    problem: Problem, weights: Sequence[LayerWeights], history: History, directions: Sequence[int] | None = None
) -> torch.Tensor:
    """W_hh h + b_hh of every step again, now that all h are known: one GEMM a direction, [directions, rows, G * H], by
    heads (see `loop.groups`). The gates of a second product are W_hh's with what that multiplied: one GEMM more."""
    directions = range(len(weights)) if directions is None else directions
    sent, hidden = history.sent, problem.hidden_size
    rows = sent.numel() // sent.shape[-1]
    ga = sent.new_empty(len(directions), in_sixteens(rows), weights[0].w_hh.shape[0])[:, :rows]
    with in_precision(problem, sent.device):
        for out, direction in zip(ga, directions, strict=True):
            w = weights[direction]
            project = _linear if problem.num_heads == 1 else partial(linear_by_heads, problem.num_heads)
            if history.extras.reorders:
                project(history.before(direction, hidden), w.w_hh, w.b_hh, out)
            else:
                first, rest, before, h_0 = _shifted(history, direction, hidden)
                project(before, w.w_hh, w.b_hh, out[rest])
                project(before.new_zeros(sent.shape[1], hidden) if h_0 is None else h_0, w.w_hh, w.b_hh, out[first])
            if history.inner is not None:
                outer = find_cell(problem.cell).outer_gates
                w_hh, b_hh = w.w_hh[outer * hidden :], None if w.b_hh is None else w.b_hh[outer * hidden :]
                inner = out.new_empty(rows, w_hh.shape[0])
                project(history.of(history.inner, direction, hidden).reshape(-1, hidden), w_hh, b_hh, inner)
                of_heads = out.unflatten(1, (problem.num_heads, -1))
                of_heads[..., outer * problem.head_size :] = inner.unflatten(1, (problem.num_heads, -1))
    return ga


def _shifted(history: History, direction: int, hidden: int) -> tuple[slice, slice, torch.Tensor, torch.Tensor | None]:
    """Where h before a step is its neighbour (`History.shifts`), of all T * B rows: those of a direction's first step,
    the other steps', h before each of these [(T - 1) * B, H], without a copy, and h before the first [B, H] or None."""
    sent, lengths = history.sent, history.extras.lengths
    own, batch_size = history.of(sent.view(-1, sent.shape[-1]), direction, hidden), sent.shape[1]
    h_0 = history._through_dropout(None if history.initial is None else history.initial[0], direction)
    if h_0 is not None and lengths is not None:
        h_0 = h_0.masked_fill((lengths == 0).unsqueeze(1), 0)  # of a row without steps: it may be anything
    if history.walks_back(direction):
        return slice(-batch_size, None), slice(-batch_size), own[batch_size:], h_0
    return slice(batch_size), slice(batch_size, None), own[:-batch_size], h_0


def gradients_of_weights(
    problem: Problem,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    history: History,
    da: torch.Tensor,
    dx: torch.Tensor,
    *,
    batch_first: bool,
    wanted: Wanted,
) -> tuple[torch.Tensor | None, list[WeightGradients]]:
    """The gradients of x and of the weights that are wanted, from those of both preactivations at every step.

    da, dx:  of W_hh h and of W_ih x: [T, B, D * G * H] or packed [rows, D * G * H], by heads (see `loop.groups`).
    """
    hidden, width, heads = problem.hidden_size, weights[0].w_hh.shape[0], problem.num_heads
    in_time = x.transpose(0, 1) if batch_first and x.dim() == 3 else x
    rows_of_x = (_without_padding(in_time, history.extras) if wanted.w_ih else in_time).reshape(-1, x.shape[-1])
    da_rows = da.view(-1, da.shape[-1])
    dx_rows = da_rows if dx is da else dx.view(-1, dx.shape[-1])
    grad_x = None
    found = []
    with in_precision(problem, da.device):
        for direction, w in enumerate(weights):
            da_d, dx_d = da_rows, dx_rows
            if len(weights) > 1:
                columns = slice(direction * width, (direction + 1) * width)
                da_d, dx_d = da_rows[:, columns], dx_rows[:, columns]
            b_ih = by_gates(dx_d.sum(0), heads, hidden) if wanted.b_ih and w.b_ih is not None else None
            b_hh = None
            if wanted.b_hh and w.b_hh is not None:
                same = dx is da and b_ih is not None
                b_hh = b_ih.clone() if same else by_gates(da_d.sum(0), heads, hidden)  # type: ignore[union-attr]
            of_w_ih = by_gates(torch.mm(dx_d.t(), rows_of_x), heads, hidden) if wanted.w_ih else None
            w_hh = _gradient_of_w_hh(problem, history, direction, da_d, hidden) if wanted.w_hh else None
            found.append(WeightGradients(of_w_ih, w_hh, b_ih, b_hh))
            if wanted.x:
                w_ih = by_heads(w.w_ih, heads, hidden)
                grad_x = torch.mm(dx_d, w_ih) if grad_x is None else torch.addmm(grad_x, dx_d, w_ih)
    if grad_x is not None:
        grad_x = grad_x.view(*da.shape[:-1], x.shape[-1])
        grad_x = grad_x.transpose(0, 1) if batch_first and x.dim() == 3 else grad_x
    return grad_x, found


def _without_padding(x: torch.Tensor, extras: Extras) -> torch.Tensor:
    """x [T, B, I], zero past the rows' ends: what lies there may be NaN, which a gradient of zero does not mend."""
    if extras.lengths is None or extras.starts is not None:
        return x
    past = torch.arange(x.shape[0], device=x.device).unsqueeze(1) >= extras.lengths
    return x.masked_fill(past.unsqueeze(2), 0)


def _gradient_of_w_hh(
    problem: Problem, history: History, direction: int, da: torch.Tensor, hidden: int
) -> torch.Tensor:
    """da^T [G * H, rows] times what W_hh multiplied, over all steps."""
    cell, heads = find_cell(problem.cell), problem.num_heads
    if cell.inner is not None:
        assert history.inner is not None
        inner = history.of(history.inner, direction, hidden).reshape(-1, hidden)
        # Columns of the outer and of the inner gates, in every head.
        first, last = da.unflatten(1, (heads, -1)).split_with_sizes(
            [cell.outer_gates * problem.head_size, (cell.gates - cell.outer_gates) * problem.head_size], dim=2
        )
        before = history.before(direction, hidden)
        both = sums_of_products(first, before, heads), sums_of_products(last, inner, heads)
        return of_w_hh(torch.cat(both, dim=-2), heads, hidden)
    if not history.shifts(direction, bounded=cell.bounded):
        return of_w_hh(sums_of_products(da, history.before(direction, hidden), heads), heads, hidden)
    at, rest, before, h_0 = _shifted(history, direction, hidden)
    if before.shape[0] == 0:  # a single step
        sums = None if h_0 is None else sums_of_products(da, h_0, heads)
        return da.new_zeros(da.shape[1], hidden // heads) if sums is None else of_w_hh(sums, heads, hidden)
    sums = sums_of_products(da[rest], before, heads)
    if h_0 is not None:
        sums = sums_of_products(da[at], h_0, heads, sums)
    return of_w_hh(sums, heads, hidden)


def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)


def in_precision(problem: Problem, device: torch.device) -> AbstractContextManager[None]:
    """No autocast, and TF32 as torch's setting for RNNs says, not the one for matmuls: as in cuDNN's RNN.

    Where that changes nothing it is nothing: setting both takes 7 us of a CPU core."""
    wanted = None
    if problem.dtype == torch.float32 and device.type == "cuda":
        wanted = "high" if problem.precision == "tf32" else "highest"
    changes = wanted is not None and wanted != torch.get_float32_matmul_precision()
    if not (changes or torch._C._is_any_autocast_enabled()):
        return AS_IT_IS
    return _set_precision(device.type, wanted)


AS_IT_IS = nullcontext()


@contextmanager
def _set_precision(device_type: str, float32_matmul: str | None) -> Iterator[None]:
    with torch.autocast(device_type, enabled=False), _float32_matmul(float32_matmul):
        yield


@contextmanager
def _float32_matmul(precision: str | None) -> Iterator[None]:
    if precision is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
