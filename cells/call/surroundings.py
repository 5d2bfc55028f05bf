"""What holds around a call, apart from its arguments: transforms, autocast, the interpreter, what torch may round.

What tracers cannot look into is marked `constant_when_traced`: they ask while tracing and keep the answer.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch.autograd import forward_ad

from ...kernels.problem import Precision
from ..backend import constant_when_traced
from .records import Call, Loop


@constant_when_traced
def _has_autocast(device_type: str) -> bool:
    """torch.amp.is_autocast_available, which Dynamo cannot trace in torch 2.11."""
    return torch.amp.is_autocast_available(device_type)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast turns x into, None where it is off or leaves x alone (float64, as torch's own RNNs)."""
    if not torch._C._is_any_autocast_enabled():
        return None
    device_type = x.device.type
    if not _has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    if not x.is_floating_point() or x.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype(device_type)


@constant_when_traced
def precision(dtype: torch.dtype) -> Precision:
    """What torch allows an RNN's float32 products to be rounded to."""
    return "tf32" if dtype is torch.float32 and fp32_precision() == "tf32" else "ieee"


def fp32_precision() -> str:
    """`torch.backends.cudnn.rnn.fp32_precision`, without the 1.5 us that its way there takes.

    It answers for the older `cudnn.allow_tf32` as well, and reading it never warns or raises, which reading
    `allow_tf32` does once the two ways have been mixed.
    """
    return torch._C._get_fp32_precision_getter("cuda", "rnn")  # type: ignore[attr-defined]


@constant_when_traced
def interpreting() -> bool:
    """Whether CPU tensors run through the kernels in the concurrent interpreter.

    Only a program that has imported the executor can have switched it on, so asking imports nothing: on a CPU the
    modules never load Triton.
    """
    executor = sys.modules.get("holdfast.kernels.executor")
    return executor is not None and executor.interpreting()


@constant_when_traced
def in_onnx_export() -> bool:
    """Whether torch.onnx.export traces, by either of its ways."""
    return torch.onnx.is_in_onnx_export()


def in_reach_of_kernels(x: Tensor) -> bool:
    """Whether kernels could read x where it is."""
    return x.is_cuda or (interpreting() and x.device.type == "cpu")


@constant_when_traced
def in_transform() -> bool:
    """Whether a torch.func transform is active. Dynamo enters the transforms that it traces, so it may be asked too."""
    return peek_interpreter_stack() is not None


@constant_when_traced
def under_vmap_or_jvp() -> bool:
    """The fused ops have no batching rule, and some no forward derivative. torch.func.grad alone suits them."""
    levels = get_interpreter_stack() or ()
    return any(level.key() in (TransformType.Vmap, TransformType.Jvp) for level in levels)


def under_nested_grad() -> bool:
    """torch.func.grad of torch.func.grad, which cuDNN refuses: it has no second derivatives."""
    return sum(level.key() == TransformType.Grad for level in get_interpreter_stack() or ()) > 1


def only_autograd() -> bool:
    """Whether derivatives can be asked for in no other way than by a backward pass."""
    return forward_ad._current_level < 0 and get_interpreter_stack() is None


def watched() -> bool:
    """Whether a tracer, a mode, a transform or a profiler looks at the operators of a call: then it should see
    `holdfast::layer`, and not what that consists of."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch.autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
        or peek_interpreter_stack() is not None
    )


def is_dual(tensors: tuple[Tensor, ...]) -> bool:
    """Whether one of these has a tangent. Inside a torch.func transform they cannot be asked; `in_transform` knows."""
    if forward_ad._current_level < 0 or in_transform():
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


class Facts(NamedTuple):
    """What more than one part of a decision wants to know.

    backend:    the setting in force.
    compiling:  torch.compile or torch.export traces this call.
    tensors:    `Call.tensors`.
    trains:     a backward pass may follow.
    autocast:   what autocast turns x into, None where it does not.
    loop:       what a kernel would compute.
    """

    backend: str
    compiling: bool
    tensors: tuple[Tensor, ...]
    trains: bool
    autocast: torch.dtype | None
    loop: Loop


def facts_of(call: Call, backend: str) -> Facts:
    layers, tensors, autocast = call.layers, call.tensors, autocast_dtype(call.x)
    dtype = autocast or call.x.dtype
    sizes = (layers.hidden_size, layers.directions)
    loop = Loop(layers.cell, dtype, *sizes, precision(dtype), call.features, layers.num_heads)
    return Facts(backend, torch.compiler.is_compiling(), tensors, may_train(tensors), autocast, loop)


def may_train(tensors: tuple[Tensor, ...]) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
