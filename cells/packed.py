"""torch's fused op on packed rows, in calls of a few steps where autograd on a CPU would make one call quadratic.

On a CPU the op slices each step out of the projected input, and the derivative of each slice fills a tensor as large as
all steps. An LSTM of 128 units over 32 rows of 128 steps, cut by resets at one step in a hundred, took 242 ms for a
forward and a backward pass in one call, 95 ms in calls of 8 steps (2 to 32 steps: 87 to 110 ms).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .eligibility import needs_grad
from .fused import run_fused

if TYPE_CHECKING:
    from .base import RecurrentBase

STEPS_A_CALL = 8


def run_packed(module: RecurrentBase, call: Call, mirror: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a packed call that has an hx: (output [N, D*H], final states [layers*D, S, H]).

    mirror:  [N], for each row of the packed data the one that is as far from its sequence's other end; only a
             bidirectional module needs it.
    """
    if call.x.device.type != "cpu" or not needs_grad(module, call):
        return run_fused(module, call)
    assert call.batch_sizes is not None
    directions = 2 if module.bidirectional else 1
    flat = module.flat_weights()
    each = len(flat) // (module.num_layers * directions)
    data = call.x
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        if layer > 0 and module.dropout > 0:
            data = F.dropout(data, module.dropout, module.training)
        outputs = []
        for direction in range(directions):
            row = layer * directions + direction
            own = flat[row * each : (row + 1) * each]
            states = tuple(state[row : row + 1] for state in call.states)
            x = data if direction == 0 else data.index_select(0, mirror)
            y, states = _one_layer(module, x, call.batch_sizes, states, own)
            outputs.append(y if direction == 0 else y.index_select(0, mirror))
            finals.append(states)
        data = torch.cat(outputs, -1)
    return data, tuple(torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True))


def _one_layer(
    module: RecurrentBase, x: Tensor, batch_sizes: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: y [N, H] and the final states [1, S, H], from states [1, S, H]."""
    calls = batch_sizes.split(STEPS_A_CALL)
    outputs, ended = [], []
    for sizes, rows in zip(calls, x.split([int(sizes.sum()) for sizes in calls]), strict=True):
        going_on, done = int(sizes[0]), states[0].shape[1]
        if going_on < done:
            ended.append(tuple(state[:, going_on:] for state in states))
            states = tuple(state[:, :going_on] for state in states)
        hx = module._join_states(states)
        y, *after = module.fused_op()(rows, sizes, hx, weights, module.bias, 1, 0.0, module.training, False)
        outputs.append(y)
        states = tuple(after)
    ended.append(states)
    # the longest sequences come first and end last
    return torch.cat(outputs), tuple(torch.cat(of_one_state, 1) for of_one_state in zip(*reversed(ended), strict=True))
