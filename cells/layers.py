"""The kernel path of a whole module: its layers one after another, dropout between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .eligibility import kernel_dtype
from .keep import keep_of
from .planning import precision

if TYPE_CHECKING:
    from .base import RecurrentBase


def run_layers(module: RecurrentBase, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call on the kernels.

    Returns (y, finals): y [T, B, D*H], or [B, T, D*H] as a view where the module is batch_first, and per state
    a tensor [layers*D, B, H], all in the kernels' dtype (under autocast that of autocast).
    """
    dtype = kernel_dtype(call)
    directions = 2 if module.bidirectional else 1
    flat = module.flat_weights()
    each = len(flat) // module.num_layers
    keep = keep_of(module, call)
    n_states = 2 if module.mode == "LSTM" else 1
    x, batch_first = call.x, module.batch_first
    finals: list[list[Tensor]] = []
    for layer in range(module.num_layers):
        rows = slice(layer * directions, (layer + 1) * directions)
        results = torch.ops.holdfast.layer.default(
            x,
            flat[layer * each : (layer + 1) * each],
            [state[rows] for state in call.states] or [None] * n_states,
            module.mode.lower(),
            directions,
            batch_first,
            dtype,
            precision(dtype),
            keep,
        )
        x = results[0]
        finals.append(results[1 : 1 + n_states])
        batch_first = False
        if layer < module.num_layers - 1 and module.training and module.dropout > 0:
            x = F.dropout(x, module.dropout, training=True)
    y = x.transpose(0, 1) if module.batch_first else x
    if len(finals) == 1:
        return y, tuple(finals[0])
    return y, tuple(torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True))
