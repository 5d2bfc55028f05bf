"""The eager path: torch's own fused op, called exactly as torch.nn calls it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import _VF, Tensor

from ..call.records import Call, Decision, as_hx

FUSED_OPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "rnn_tanh": _VF.rnn_tanh,
    "rnn_relu": _VF.rnn_relu,
    "gru": _VF.gru,
    "lstm": _VF.lstm,
}
"""The cells that torch has an op for: one for the whole module."""


def cudnn_backward_wants_training_mode(call: Call, decision: Decision) -> bool:
    """Whether cuDNN would run this forward and then refuse its backward, as torch.nn's modules in eval mode do.

    cuDNN keeps what the backward needs only in training mode. Training mode without dropout is the same function.
    """
    return call.x.is_cuda and not call.layers.training and decision.trains


def answer_dtype(call: Call, autocast: torch.dtype | None) -> torch.dtype:
    """The dtype of all results: autocast's, but torch's own GRU steps on a CPU mix what it cast with h as it is."""
    if autocast is None:
        return call.x.dtype
    if call.layers.cell != "gru" or call.x.device.type != "cpu":
        return autocast
    return torch.promote_types(autocast, call.x.dtype if call.hx is None else call.states[0].dtype)


def run_fused(call: Call, decision: Decision) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call on torch's op: (output, final states); output as the layers' batch_first, or packed rows."""
    layers = call.layers
    hx = call.hx if call.hx is not None else as_hx(layers.zeros(call.x, call.batch_size))
    dropout, training = layers.dropout, layers.training
    if cudnn_backward_wants_training_mode(call, decision):
        dropout, training = 0.0, True
    options = (layers.weights, layers.bias, layers.num_layers, dropout, training, layers.directions == 2)
    op = FUSED_OPS[layers.cell]
    if call.batch_sizes is not None:
        output, *states = op(call.x, call.batch_sizes, hx, *options)
    else:
        output, *states = op(call.x, hx, *options, layers.batch_first)
    return output, tuple(states)
