"""The eager path: torch's own fused op, called exactly as torch.nn calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .call import Call
from .eligibility import needs_grad

if TYPE_CHECKING:
    from .base import RecurrentBase


def cudnn_backward_wants_training_mode(module: RecurrentBase, call: Call) -> bool:
    """Whether cuDNN would run this forward and then refuse its backward, as torch.nn's modules in eval mode do.

    cuDNN keeps what the backward needs only in training mode. Training mode without dropout is the same function.
    """
    return call.x.is_cuda and not module.training and needs_grad(module, call)


def run_fused(module: RecurrentBase, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call on torch's op: (output, final states); output as the module's batch_first, or packed rows."""
    hx = call.hx if call.hx is not None else module.zero_state(call.x, call.batch_size(module.batch_first))
    dropout, training = module.dropout, module.training
    if cudnn_backward_wants_training_mode(module, call):
        dropout, training = 0.0, True
    options = (module.flat_weights(), module.bias, module.num_layers, dropout, training, module.bidirectional)
    if call.batch_sizes is not None:
        output, *states = module.fused_op()(call.x, call.batch_sizes, hx, *options)
    else:
        output, *states = module.fused_op()(call.x, hx, *options, module.batch_first)
    return output, tuple(states)
