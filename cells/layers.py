"""The kernel path of a whole module: its layers one after another, dropout between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.plan import Plan
from .call import Call

if TYPE_CHECKING:
    from ..kernels.layer import LayerWeights
    from .base import RecurrentBase


def run_layers(module: RecurrentBase, call: Call, plan: Plan) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call on the kernels that `plan` names.

    Returns (y, finals): y [T, B, D*H], or [B, T, D*H] as a view where the module is batch_first, and per state
    a tensor [layers*D, B, H], all in `plan.problem.dtype`, to which run_layer casts (autocast).
    """
    from ..kernels.layer import run_layer

    problem, config = plan.problem, plan.config
    assert config is not None, "only a plan with a config comes here"
    x, batch_first = call.x, module.batch_first
    finals: list[tuple[Tensor, ...]] = []
    for layer, weights in enumerate(weights_by_layer(module)):
        rows = slice(layer * problem.directions, (layer + 1) * problem.directions)
        layer_initial = tuple(state[rows] for state in call.states) or None
        x, final = run_layer(problem, config, x, weights, layer_initial, batch_first=batch_first)
        finals.append(final)
        batch_first = False
        if layer < module.num_layers - 1 and module.training and module.dropout > 0:
            x = F.dropout(x, module.dropout, training=True)
    y = x.transpose(0, 1) if module.batch_first else x
    if len(finals) == 1:
        return y, finals[0]
    return y, tuple(torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True))


def weights_by_layer(module: RecurrentBase) -> list[list[LayerWeights]]:
    """The weights of each layer, one LayerWeights per direction, read from the module as it stands now."""
    from ..kernels.layer import LayerWeights

    flat = module.flat_weights()
    per_direction = 4 if module.bias else 2
    weights = [
        LayerWeights(*flat[start : start + per_direction], *(None,) * (4 - per_direction))
        for start in range(0, len(flat), per_direction)
    ]
    directions = 2 if module.bidirectional else 1
    return [weights[start : start + directions] for start in range(0, len(weights), directions)]
