"""Which of the eager paths a call takes that no kernel runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..call.records import Call
from ..call.surroundings import in_transform, is_dual, only_autograd, under_nested_grad, under_vmap_or_jvp
from .fused import FUSED_OPS


def eager_path(call: Call) -> Literal["op", "fused", "ragged", "recurrence"]:
    """Torch's fused op, or the recurrence where it cannot do this or would refuse what it takes in plain eager mode.

    In a compiled or exported graph the call is one op, which chooses when it runs.
    """
    layers = call.layers
    if torch.compiler.is_compiling():
        return "recurrence" if under_vmap_or_jvp() else "op"
    if call.return_gates or layers.cell not in FUSED_OPS or layers.noisy:
        return "recurrence"
    if call.batch_sizes is None and _fused_op_refuses(call):
        return "recurrence"
    if not call.ragged:
        return "fused"
    return "recurrence" if _sizes_are_symbolic(call) or _nothing_to_walk(call) else "ragged"


def _fused_op_refuses(call: Call) -> bool:
    """Transforms and forward derivatives that the op lacks."""
    if only_autograd():
        return False
    return under_vmap_or_jvp() or (call.x.is_cuda and under_nested_grad()) or is_dual(call.tensors)


def _sizes_are_symbolic(call: Call) -> bool:
    """Whether the number of segments cannot be looked at: a tracer would bake it in, other tensors hold no numbers.

    Inside a torch.func transform even the sizes of a packed batch are wrapped, and the fused op reads their memory.
    """
    if torch.jit.is_tracing() or in_transform():
        return True
    given = [t for t in (call.lengths, call.resets) if t is not None]
    return any(type(t) is not Tensor or t.is_meta for t in given)


def _nothing_to_walk(call: Call) -> bool:
    """The fused op refuses a packed batch without any step."""
    return call.batch_size == 0 or (call.lengths is not None and not call.lengths.any())
