"""Which of the eager paths a call takes that no kernel runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..call.records import Call
from ..call.surroundings import (
    autocast_dtype,
    in_transform,
    is_dual,
    may_train,
    only_autograd,
    under_nested_grad,
    under_vmap_or_jvp,
)
from .fused import FUSED_OPS

LONG = 48
"""Steps of a packed batch from which training on a CPU leaves torch's packed op: `_backward_is_quadratic`."""


def eager_path(call: Call) -> Literal["op", "fused", "ragged", "recurrence"]:
    """Torch's fused op, or the recurrence where it cannot do this or would refuse what it takes in plain eager mode.

    In a compiled or exported graph the call is one op, which chooses when it runs, or plain steps if it is one step.
    """
    layers = call.layers
    if torch.compiler.is_compiling():
        return "recurrence" if under_vmap_or_jvp() or _is_one_step(call) else "op"
    if call.return_gates or layers.cell not in FUSED_OPS or layers.noisy:
        return "recurrence"
    if call.batch_sizes is None and _fused_op_refuses(call):
        return "recurrence"
    if call.batch_sizes is not None:
        return "ragged" if _backward_is_quadratic(call, call.batch_sizes) else "fused"
    if not call.ragged:
        return "fused"
    return "recurrence" if _sizes_are_symbolic(call) or _nothing_to_walk(call) else "ragged"


def _is_one_step(call: Call) -> bool:
    """A traced call of a single step, which is a few operations for the compiler to fuse, in a graph that serves no
    other number of steps in any case.

    LSTM, B=8 H=128, forward and training on a CPU: 102 and 354 us, with the op 192 and 716, in eager mode 121 and 393.
    The op stays where random numbers are drawn, which are eager mode's then, and below float32, where plain operations
    round more often.
    """
    layers, x = call.layers, call.x
    if call.batch_sizes is not None or call.return_gates or layers.noisy or layers.drops:
        return False
    if x.dtype not in (torch.float32, torch.float64) or autocast_dtype(x) is not None:
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # 0.3 s, sympy among it

    return statically_known_true(call.steps == 1)


def _fused_op_refuses(call: Call) -> bool:
    """Transforms and forward derivatives that the op lacks."""
    if only_autograd():
        return False
    return under_vmap_or_jvp() or (call.x.is_cuda and under_nested_grad()) or is_dual(call.tensors)


def _backward_is_quadratic(call: Call, batch_sizes: Tensor) -> bool:
    """On a CPU the derivative of each step of torch's packed op fills a tensor as large as all steps (`packed`).

    From 48 steps on it is slower than what `ragged` does, whose gradients are torch's to rounding; below that, and in
    inference, results are bitwise torch.nn's. So are its masks where dropout is drawn, which is left to it.
    """
    if call.x.device.type != "cpu" or len(batch_sizes) < LONG or call.layers.drops or not only_autograd():
        return False
    return type(call.x) is Tensor and not torch.jit.is_tracing() and may_train(call.tensors)


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
