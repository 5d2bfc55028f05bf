"""torch's fused op on packed rows, in calls of a few steps where autograd on a CPU would make one call quadratic.

On a CPU the op slices each step out of the projected input, and the derivative of each slice fills a tensor as large as
all steps. An LSTM of 128 units over 32 rows of 128 steps, cut by resets at one step in a hundred, took 242 ms for a
forward and a backward pass in one call, 95 ms in calls of 8 steps (2 to 32 steps: 87 to 110 ms).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..call.records import Call, Decision, Layers, as_hx
from .fused import FUSED_OPS, run_fused

STEPS_A_CALL = 8


def run_packed(
    call: Call, decision: Decision, mirror: Tensor, dropped: Callable[[Tensor], Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a packed call that has an hx: (output [N, D*H], final states [layers*D, S, H]).

    mirror:   [N], for each row of the packed data the one that is as far from its sequence's other end; only two
              directions need it.
    dropped:  dropout between layers, of [N, D*H].
    """
    layers = call.layers
    quadratic = call.x.device.type == "cpu" and decision.trains
    if not (quadratic or layers.drops):
        return run_fused(call, decision)
    assert call.batch_sizes is not None
    calls = call.batch_sizes.split(STEPS_A_CALL if quadratic else len(call.batch_sizes))
    each = layers.weights_each
    data = call.x
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(layers.num_layers):
        if layer > 0 and layers.drops:
            data = dropped(data)
        outputs = []
        for direction in range(layers.directions):
            row = layer * layers.directions + direction
            own = layers.weights[row * each : (row + 1) * each]
            states = tuple(state[row : row + 1] for state in call.states)
            x = data if direction == 0 else data.index_select(0, mirror)
            y, states = _one_layer(layers, x, calls, states, own)
            outputs.append(y if direction == 0 else y.index_select(0, mirror))
            finals.append(states)
        data = torch.cat(outputs, -1)
    return data, tuple(torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True))


def _one_layer(
    layers: Layers, x: Tensor, calls: Sequence[Tensor], states: tuple[Tensor, ...], weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: y [N, H] and the final states [1, S, H], from states [1, S, H].

    calls:  the batch sizes of the steps of each call.
    """
    op = FUSED_OPS[layers.cell]
    outputs, ended = [], []
    for sizes, rows in zip(calls, x.split([int(sizes.sum()) for sizes in calls]), strict=True):
        going_on, done = int(sizes[0]), states[0].shape[1]
        if going_on < done:
            ended.append(tuple(state[:, going_on:] for state in states))
            states = tuple(state[:, :going_on] for state in states)
        y, *after = op(rows, sizes, as_hx(states), weights, layers.bias, 1, 0.0, layers.training, False)
        outputs.append(y)
        states = tuple(after)
    ended.append(states)
    # the longest sequences come first and end last
    return torch.cat(outputs), tuple(torch.cat(of_one_state, 1) for of_one_state in zip(*reversed(ended), strict=True))
