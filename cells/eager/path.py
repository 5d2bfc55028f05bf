"""Which of the eager paths a call takes that no kernel runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..call.records import Call
from ..call.surroundings import in_transform, is_dual, may_train, only_autograd, under_nested_grad, under_vmap_or_jvp
from .fused import FUSED_OPS


def eager_path(call: Call) -> Literal["fused", "ragged", "recurrence"]:
    """Torch's fused op, or the recurrence where it cannot do this or would refuse what it takes in plain eager mode."""
    layers = call.layers
    if call.return_gates or layers.cell not in FUSED_OPS or layers.noisy:
        return "recurrence"
    compiling = torch.compiler.is_compiling()
    if call.batch_sizes is None and _fused_op_refuses(call, compiling):
        return "recurrence"
    if not call.ragged:
        return "fused"
    return "recurrence" if _sizes_are_symbolic(call, compiling) or _nothing_to_walk(call) else "ragged"


def _fused_op_refuses(call: Call, compiling: bool) -> bool:
    """Transforms and forward derivatives that the op lacks, and one that AOTAutograd cannot compile."""
    if compiling:
        return under_vmap_or_jvp() or _compiled_cpu_lstm_training(call)
    if only_autograd():
        return False
    return under_vmap_or_jvp() or (call.x.is_cuda and under_nested_grad()) or is_dual(call.tensors)


def _compiled_cpu_lstm_training(call: Call) -> bool:
    """AOTAutograd asserts on the None that oneDNN's LSTM saves for its backward ("tensors_saved_with_vc_check")."""
    return call.layers.cell == "lstm" and call.x.device.type == "cpu" and may_train(call.tensors)


def _sizes_are_symbolic(call: Call, compiling: bool) -> bool:
    """Whether the number of segments cannot be looked at: a tracer would bake it in, other tensors hold no numbers.

    Inside a torch.func transform even the sizes of a packed batch are wrapped, and the fused op reads their memory.
    """
    if compiling or torch.jit.is_tracing() or in_transform():
        return True
    given = [t for t in (call.lengths, call.resets) if t is not None]
    return any(type(t) is not Tensor or t.is_meta for t in given)


def _nothing_to_walk(call: Call) -> bool:
    """The fused op refuses a packed batch without any step."""
    return call.batch_size == 0 or (call.lengths is not None and not call.lengths.any())
