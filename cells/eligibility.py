"""Why a call cannot run on the kernels: small named predicates, each returning a Reason or None.

They look at the call alone; whether the problem fits this device is `autotune.select`'s to say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ..kernels.plan import Reason
from .backend import constant_when_traced, current_backend
from .call import Call
from .dtypes import KERNEL_DTYPES
from .reference import reference_of

if TYPE_CHECKING:
    from .base import RecurrentBase

ELMAN = ("rnn_tanh", "rnn_relu")
MOST_GATES = 4
TRITON_INSTALLED = find_spec("triton") is not None


BACKEND_EAGER = Reason("backend_eager", 'holdfast.backend is "eager"; choose "auto" to allow kernels')
TRACING = Reason("tracing", "torch.jit.trace sees torch's own op; torch.compile and torch.export see the kernels")


@constant_when_traced
def _has_autocast(device_type: str) -> bool:
    """torch.amp.is_autocast_available, which Dynamo cannot trace in torch 2.11."""
    return torch.amp.is_autocast_available(device_type)


def autocast_dtype(call: Call) -> torch.dtype | None:
    """What autocast turns x into, None where it is off or leaves x alone (float64, as torch's own RNNs)."""
    device_type = call.x.device.type
    if not _has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    if not call.x.is_floating_point() or call.x.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype(device_type)


def kernel_dtype(call: Call) -> torch.dtype:
    """The dtype that a kernel computes in."""
    return autocast_dtype(call) or call.x.dtype


def _tensors(module: RecurrentBase, call: Call) -> tuple[Tensor, ...]:
    return (call.x, *call.states, *call.reset_states, *module.flat_weights())


@constant_when_traced
def interpreting() -> bool:
    """Whether CPU tensors run through the kernels in the concurrent interpreter.

    Only a program that has imported the executor can have switched it on, so asking imports nothing: on a CPU the
    modules never load Triton.
    """
    executor = sys.modules.get("holdfast.kernels.executor")
    return executor is not None and executor.interpreting()


def backend_eager(module: RecurrentBase, call: Call) -> Reason | None:
    if current_backend() != "eager":
        return None
    return BACKEND_EAGER


def tracing(module: RecurrentBase, call: Call) -> Reason | None:
    if torch.compiler.is_compiling() or not torch.jit.is_tracing():
        return None
    return TRACING


def no_triton(module: RecurrentBase, call: Call) -> Reason | None:
    if TRITON_INSTALLED:
        return None
    return Reason("no_triton", "Triton is not installed")


def in_reach_of_kernels(x: Tensor) -> bool:
    """Whether kernels could read x where it is. `forward` asks this first: on a CPU it is all there is to ask."""
    return x.is_cuda or (interpreting() and x.device.type == "cpu")


def no_gpu(module: RecurrentBase, call: Call) -> Reason | None:
    if in_reach_of_kernels(call.x):
        return None
    return Reason("no_gpu", f"x is on {call.x.device}; kernels run on a GPU, or on a CPU inside the interpreter")


def needs_grad(module: RecurrentBase, call: Call) -> bool:
    """Whether a backward pass may follow this call."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(module, call))


@constant_when_traced
def in_transform() -> bool:
    """Whether a torch.func transform is active. Dynamo enters the transforms that it traces, so it may be asked too."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def transform(module: RecurrentBase, call: Call) -> Reason | None:
    if not in_transform():
        return None
    return Reason("transform", "a torch.func transform (vmap, grad, jvp, ...) is active and cannot see into a kernel")


def forward_ad_dual(module: RecurrentBase, call: Call) -> Reason | None:
    # Inside a torch.func transform tensors cannot be asked for their tangent; `transform` speaks for it.
    if forward_ad._current_level < 0 or in_transform():
        return None
    if all(forward_ad.unpack_dual(t).tangent is None for t in _tensors(module, call)):
        return None
    return Reason("forward_ad", "a forward-mode derivative is asked for, which the kernels do not have")


def traced_packed_sequence(module: RecurrentBase, call: Call) -> Reason | None:
    if call.batch_sizes is None or not torch.compiler.is_compiling():
        return None
    return Reason("traced_packed_sequence", "the batch sizes of a PackedSequence cannot be traced; lengths= can")


def too_many_gates(module: RecurrentBase, call: Call) -> Reason | None:
    gates = reference_of(module.cell).gates
    if gates <= MOST_GATES:
        return None
    why = f"the kernels split a product into at most {MOST_GATES} gates; {module.cell} has {gates}"
    return Reason("too_many_gates", why)


def values_not_kept(module: RecurrentBase, call: Call) -> Reason | None:
    """What a cell of the user's own does not say of its values, zoneout and return_gates cannot have."""
    if not (call.return_gates or any(module.zoneout_rates)) or module.cell in ELMAN or not TRITON_INSTALLED:
        return None
    from ..kernels.cell_spec import find_cell

    if find_cell(module.cell).saved:
        return None
    return Reason("values_not_kept", f"{module.cell} was defined with saved=0, so its gates are in no kernel's memory")


def malformed_hx(module: RecurrentBase, call: Call) -> Reason | None:
    """What torch.nn leaves to its fused op to refuse, in that op's words."""
    states = module.n_states
    if call.hx is None or states == 1 or (isinstance(call.hx, (tuple, list)) and len(call.hx) == states):
        return None
    return Reason("malformed_hx", f"hx of {module.cell} is a tuple of {states} tensors, h_0 first")


def unsupported_dtype(module: RecurrentBase, call: Call) -> Reason | None:
    dtype = kernel_dtype(call)
    if dtype in KERNEL_DTYPES:
        return None
    return Reason("unsupported_dtype", f"the kernels compute in float32, bfloat16 or float16, not in {dtype}")


def mixed_dtypes(module: RecurrentBase, call: Call) -> Reason | None:
    dtypes = {t.dtype for t in _tensors(module, call)}
    if len(dtypes) == 1 or autocast_dtype(call) is not None:
        return None
    return Reason("mixed_dtypes", f"x, hx and the weights differ in dtype: {', '.join(sorted(map(str, dtypes)))}")


def mixed_devices(module: RecurrentBase, call: Call) -> Reason | None:
    devices = {t.device for t in _tensors(module, call)}
    if len(devices) == 1:
        return None
    return Reason("mixed_devices", f"x, hx and the weights are on {', '.join(sorted(map(str, devices)))}")


def not_plain_tensors(module: RecurrentBase, call: Call) -> Reason | None:
    """A kernel reads memory: FakeTensor, DTensor and the like have none or part of it, and signs may be pending."""
    if torch.compiler.is_compiling():
        return None  # tracers put tensors of their own in place of those that the op will see
    for t in _tensors(module, call):
        if type(t) not in (torch.Tensor, Parameter) or t.layout is not torch.strided or t.is_neg():
            kind = f"{type(t).__name__} of layout {t.layout}{' with a pending sign' if t.is_neg() else ''}"
            return Reason("not_plain_tensors", f"a kernel needs plain dense tensors, got {kind}")
    return None


def misshapen_weights(module: RecurrentBase, call: Call) -> Reason | None:
    """torch.nn notices a replaced weight of another shape, if at all, in its op; a kernel would read out of bounds."""
    reference = reference_of(module.cell)
    rows, hidden = reference.gates * module.hidden_size, module.hidden_size
    output = module.proj_size or hidden
    directions = 2 if module.bidirectional else 1
    names, weights = iter(module._flat_weights_names), iter(module.flat_weights())
    more: tuple[tuple[int, ...], ...] = ((rows,), (rows,)) if module.bias else ()
    more += ((output, hidden),) if module.proj_size else ()
    more += ((reference.parameters, hidden),) if reference.parameters else ()
    for layer in range(module.num_layers):
        width = module.input_size if layer == 0 else directions * output
        for shape in ((rows, width), (rows, output), *more) * directions:
            name, weight = next(names), next(weights)
            if weight.shape != shape:
                return Reason("misshapen_weights", f"{name} should be of size {shape}, got {tuple(weight.shape)}")
    return None


def empty_batch(module: RecurrentBase, call: Call) -> Reason | None:
    if call.batch_size(module.batch_first) > 0:
        return None
    return Reason("empty_batch", "a batch of 0 rows leaves nothing to compute")


Predicate = Callable[["RecurrentBase", Call], Reason | None]

# About the problem: no device has a kernel for it.
PROBLEM: tuple[Predicate, ...] = (
    no_gpu,
    no_triton,
    traced_packed_sequence,
    too_many_gates,
    values_not_kept,
    malformed_hx,
    unsupported_dtype,
    mixed_dtypes,
    mixed_devices,
    not_plain_tensors,
    misshapen_weights,
    empty_batch,
)
# About the moment of the call: the same problem may run on a kernel at another time.
MOMENT: tuple[Predicate, ...] = (backend_eager, tracing, transform, forward_ad_dual)


def reasons(module: RecurrentBase, call: Call, predicates: tuple[Predicate, ...]) -> tuple[Reason, ...]:
    """Every reason that holds."""
    found = (predicate(module, call) for predicate in predicates)
    return tuple(reason for reason in found if reason is not None)


def eligible(module: RecurrentBase, call: Call) -> bool:
    """Whether no reason holds: `forward` asks this, and the first reason ends it. Likely reasons come first."""
    for predicate in MOMENT + PROBLEM:  # noqa: SIM110  a plain loop costs microseconds less than all()
        if predicate(module, call) is not None:
            return False
    return True
