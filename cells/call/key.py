"""What a decision for the kernels follows from, as one value that can be a dict's key.

Predicates take 20 us of a CPU core, this 4. A tensor is in it by what the predicates ask it, never by its numbers or
its memory, so weights that were replaced, cast or moved are other ones at the next call.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from .records import Call
from .surroundings import autocast_dtype, fp32_precision


def key_of(call: Call, backend: str) -> Hashable | None:
    """Equal for calls of which the same is decided; None while something looks on that a decision has to ask about:
    a tracer (but torch.compile, in which nobody asks), a transform, a dispatch mode, forward-mode derivatives."""
    if torch._C._get_tracing_state() is not None:
        return None
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack():
        return None
    select = sys.modules.get("holdfast.autotune.select")
    if select is None:  # nothing has been decided for a kernel yet
        return None
    x, layers = call.x, call.layers
    tensors = (x, *layers.weights)
    return (
        backend,
        select.settings(),
        select.substitute(),
        torch.is_grad_enabled(),
        autocast_dtype(x),
        fp32_precision(),
        layers[:-2],
        None if call.batch_sizes is None else (call.batch_size, call.batch_sizes.numel()),
        call.lengths is None,
        call.resets is None,
        call.return_gates,
        _kinds(tensors),
        None if call.hx is None else (type(call.hx), _kinds(call.states)),
        None if call.reset_hx is None else _kinds(call.reset_states),
    )


_kind = attrgetter("__class__", "dtype", "shape", "device", "requires_grad", "layout")


def _kinds(tensors: Sequence[Tensor]) -> tuple[Hashable, ...]:
    return *map(_kind, tensors), *map(Tensor.is_neg, tensors)
