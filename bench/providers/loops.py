"""The loops that people write where torch.nn lacks something: a cell per step, by hand and through torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method.case import Phase
from ..method.numbers import TORCH, Numbers
from ..method.plain_layer import PlainLayer
from .provider import Calls, ModuleCalls, Prepared, Unavailable, refuse_stacked_heads

CELLS: dict[str, type[nn.Module]] = {"rnn_tanh": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
WHOLE_LOOP_STEPS = 32
"""torch.compile unrolls a loop over time: minutes of compilation for more steps than this."""


def _one_layer(numbers: Numbers) -> None:
    case = numbers.case
    if case.layers > 1 or case.directions > 1 or case.heads > 1:
        raise Unavailable("the loop is written for one layer, one direction and one head")


class StepLoop:
    """torch.nn's cell, called for every step, with the state masked where a row resets or has ended."""

    name = "loop of nn cells"
    is_peer = True

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        _one_layer(numbers)
        case = numbers.case
        cell: Any = CELLS[case.cell](case.inputs, case.hidden_size)
        cell.load_state_dict({name.removesuffix("_l0"): w for name, w in numbers.weights[0].items()})
        cell = cell.to(numbers.device, case.dtype)
        keep = _kept(numbers.resets, case.dtype)
        real = _real(numbers)

        def forward(x: Tensor) -> Tensor:
            zeros = x.new_zeros(case.batch_size, case.hidden_size)
            state: Any = (zeros, zeros) if case.cell == "lstm" else zeros
            ys = []
            for t, step in enumerate(x.unbind(0)):
                if keep is not None:
                    state = tuple(s * keep[t] for s in state) if case.cell == "lstm" else state * keep[t]
                state = cell(step, state)
                ys.append(state[0] if case.cell == "lstm" else state)
            y = torch.stack(ys)
            return y if real is None else y * real

        leaves = {f"{name}_l0": parameter for name, parameter in cell.named_parameters()}
        return Calls(numbers, forward, leaves, case.dtype).prepared(phase, algorithm=f"{type(cell).__name__} a step")


class ModuleLoop:
    """torch.nn's module, called for every step with a masked state: sb3-contrib's loop over episodes."""

    name = "nn module a step"
    is_peer = True

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        _one_layer(numbers)
        case = numbers.case
        if case.cell not in TORCH or case.sequences == "ragged":
            raise Unavailable(f"the loop is written for torch.nn's cells and full rows, not {case}")
        module: Any = numbers.module(TORCH[case.cell], case.dtype)
        keep = _kept(numbers.resets, case.dtype)

        def forward(x: Tensor) -> Tensor:
            zeros = x.new_zeros(1, case.batch_size, case.hidden_size)
            state: Any = (zeros, zeros) if case.cell == "lstm" else zeros
            ys = []
            for t, step in enumerate(x.unbind(0)):
                if keep is not None:
                    state = tuple(s * keep[t] for s in state) if case.cell == "lstm" else state * keep[t]
                y, state = module(step.unsqueeze(0), state)
                ys.append(y)
            return torch.cat(ys)

        leaves = dict(module.named_parameters())
        return Calls(numbers, forward, leaves, case.dtype).prepared(phase, algorithm=f"{type(module).__name__} a step")


class PlainLoop:
    """A cell's own reference, step after step: what there is of a cell that torch.nn lacks."""

    name = "plain loop"
    is_peer = True

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        case = numbers.case
        if case.sequences != "dense" or case.layers > 1:
            raise Unavailable("the plain loop is written for one layer and dense batches")
        refuse_stacked_heads(case)
        module = numbers.whole(partial(PlainLayer, case.cell), case.dtype, dense=True)
        return ModuleCalls(numbers, module, case.dtype).prepared(phase, algorithm="the cell's reference a step")


class CompiledLoop:
    """torch.compile of the recurrence in plain ops: of the whole loop where it is short, else of its step."""

    name = "torch.compile"
    is_peer = True

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        _one_layer(numbers)
        case = numbers.case
        if case.sequences != "dense":
            raise Unavailable("the compiled loop is written for dense batches")
        weights = {
            name: w.to(numbers.device, case.dtype).detach().requires_grad_(phase == "training")
            for name, w in numbers.weights[0].items()
        }
        step = STEPS[case.cell]
        whole = case.length <= WHOLE_LOOP_STEPS
        torch._dynamo.reset()  # else the cases before count towards the limit of recompilations
        compiled_step = step if whole else torch.compile(step)

        def loop(x: Tensor) -> Tensor:
            gx = F.linear(x, weights["weight_ih_l0"], weights["bias_ih_l0"])
            zeros = x.new_zeros(case.batch_size, case.hidden_size)
            state: tuple[Tensor, ...] = (zeros, zeros)
            ys = []
            for row in gx.unbind(0):
                state = compiled_step(row, state, weights["weight_hh_l0"], weights["bias_hh_l0"])
                ys.append(state[0])
            return torch.stack(ys)

        forward: Callable[[Tensor], Tensor] = torch.compile(loop) if whole else loop
        what = "whole loop unrolled" if whole else "compiled step, loop in Python"
        return Calls(numbers, forward, weights, case.dtype).prepared(phase, algorithm=f"inductor, {what}")


State = tuple[Tensor, ...]


def _rnn(x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor) -> State:
    return torch.tanh(x + F.linear(state[0], w_hh, b_hh)), state[1]


def _gru(x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor) -> State:
    h = state[0]
    x_r, x_z, x_n = x.chunk(3, -1)
    a_r, a_z, a_n = F.linear(h, w_hh, b_hh).chunk(3, -1)
    n = torch.tanh(x_n + torch.sigmoid(x_r + a_r) * a_n)
    return torch.lerp(n, h, torch.sigmoid(x_z + a_z)), state[1]


def _lstm(x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor) -> State:
    i, f, g, o = (x + F.linear(state[0], w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS = {"rnn_tanh": _rnn, "gru": _gru, "lstm": _lstm}


def _kept(resets: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """[T, B, 1]: 0 where the state is reset before the step."""
    return None if resets is None else (~resets).to(dtype).unsqueeze(-1)


def _real(numbers: Numbers) -> Tensor | None:
    """[T, B, 1]: 0 past the end of a row."""
    if numbers.lengths is None:
        return None
    steps = torch.arange(numbers.case.length).unsqueeze(1)
    return (steps < numbers.lengths).to(numbers.device, numbers.case.dtype).unsqueeze(-1)
