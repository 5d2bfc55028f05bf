"""Why a call cannot run on the kernels: small named predicates, each returning a Reason or None.

They look at the call alone; whether the problem fits this device is `autotune.select`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch.nn import Parameter

from ...kernels.plan import Reason
from ..eager.reference import reference_of
from ..ops.options import KERNEL_DTYPES
from .records import Call
from .surroundings import Facts, in_reach_of_kernels, in_transform, is_dual

ELMAN = ("rnn_tanh", "rnn_relu")
MOST_GATES = 4
TRITON_INSTALLED = find_spec("triton") is not None

BACKEND_EAGER = Reason("backend_eager", 'holdfast.backend is "eager"; choose "auto" to allow kernels')
TRACING = Reason("tracing", "torch.jit.trace sees torch's own op; torch.compile and torch.export see the kernels")


def backend_eager(call: Call, facts: Facts) -> Reason | None:
    return BACKEND_EAGER if facts.backend == "eager" else None


def tracing(call: Call, facts: Facts) -> Reason | None:
    return TRACING if not facts.compiling and torch.jit.is_tracing() else None


def transform(call: Call, facts: Facts) -> Reason | None:
    if not in_transform():
        return None
    return Reason("transform", "a torch.func transform (vmap, grad, jvp, ...) is active and cannot see into a kernel")


def forward_ad_dual(call: Call, facts: Facts) -> Reason | None:
    if not is_dual(facts.tensors):
        return None
    return Reason("forward_ad", "a forward-mode derivative is asked for, which the kernels do not have")


def differentiable_gates(call: Call, facts: Facts) -> Reason | None:
    """The backward loops take a gradient of h in every step, of the other states at the end alone, of gates nowhere."""
    if call.return_gates != "differentiable" or not facts.trains:
        return None
    why = 'return_gates="differentiable": the kernels\' backward pass takes no gradients of gates or of c in every step'
    return Reason("differentiable_gates", why)


def no_gpu(call: Call, facts: Facts) -> Reason | None:
    if in_reach_of_kernels(call.x):
        return None
    return Reason("no_gpu", f"x is on {call.x.device}; kernels run on a GPU, or on a CPU inside the interpreter")


def no_triton(call: Call, facts: Facts) -> Reason | None:
    return None if TRITON_INSTALLED else Reason("no_triton", "Triton is not installed")


def traced_packed_sequence(call: Call, facts: Facts) -> Reason | None:
    if call.batch_sizes is None or not facts.compiling:
        return None
    return Reason("traced_packed_sequence", "the batch sizes of a PackedSequence cannot be traced; lengths= can")


def too_many_gates(call: Call, facts: Facts) -> Reason | None:
    cell = call.layers.cell
    gates = reference_of(cell).gates
    if gates <= MOST_GATES:
        return None
    why = f"the kernels split a product into at most {MOST_GATES} gates; {cell} has {gates}"
    return Reason("too_many_gates", why)


def values_not_kept(call: Call, facts: Facts) -> Reason | None:
    """What a cell of the user's own does not say of its values, zoneout and return_gates cannot have."""
    cell = call.layers.cell
    if not (call.return_gates or any(call.layers.zoneout)) or cell in ELMAN or not TRITON_INSTALLED:
        return None
    from ...kernels.cell_spec import find_cell

    spec = find_cell(cell)
    if spec.normalised and call.return_gates:
        return Reason("values_not_kept", f"the kernels work the gates of {cell} out again, so they are in no memory")
    if spec.saved:
        return None
    return Reason("values_not_kept", f"{cell} was defined with saved=0, so its gates are in no kernel's memory")


def malformed_hx(call: Call, facts: Facts) -> Reason | None:
    """What torch.nn leaves to its fused op to refuse, in that op's words."""
    states = call.layers.n_states
    if call.hx is None or states == 1 or (isinstance(call.hx, (tuple, list)) and len(call.hx) == states):
        return None
    return Reason("malformed_hx", f"hx of {call.layers.cell} is a tuple of {states} tensors, h_0 first")


def unsupported_dtype(call: Call, facts: Facts) -> Reason | None:
    dtype = facts.loop.dtype
    if dtype in KERNEL_DTYPES:
        return None
    return Reason("unsupported_dtype", f"the kernels compute in float32, bfloat16 or float16, not in {dtype}")


def mixed_dtypes(call: Call, facts: Facts) -> Reason | None:
    dtypes = {t.dtype for t in facts.tensors}
    if len(dtypes) == 1 or facts.autocast is not None:
        return None
    return Reason("mixed_dtypes", f"x, hx and the weights differ in dtype: {', '.join(sorted(map(str, dtypes)))}")


def mixed_devices(call: Call, facts: Facts) -> Reason | None:
    devices = {t.device for t in facts.tensors}
    if len(devices) == 1:
        return None
    return Reason("mixed_devices", f"x, hx and the weights are on {', '.join(sorted(map(str, devices)))}")


def not_plain_tensors(call: Call, facts: Facts) -> Reason | None:
    """A kernel reads memory: FakeTensor, DTensor and the like have none or part of it, and signs may be pending."""
    if facts.compiling:
        return None  # tracers put tensors of their own in place of those that the op will see
    for t in facts.tensors:
        if type(t) not in (torch.Tensor, Parameter) or t.layout is not torch.strided or t.is_neg():
            kind = f"{type(t).__name__} of layout {t.layout}{' with a pending sign' if t.is_neg() else ''}"
            return Reason("not_plain_tensors", f"a kernel needs plain dense tensors, got {kind}")
    return None


def misshapen_weights(call: Call, facts: Facts) -> Reason | None:
    """torch.nn notices a replaced weight of another shape, if at all, in its op; a kernel would read out of bounds."""
    layers = call.layers
    reference = reference_of(layers.cell)
    rows, hidden = reference.gates * layers.hidden_size, layers.hidden_size
    output = layers.proj_size or hidden
    names, weights = iter(layers.names), iter(layers.weights)
    more: tuple[tuple[int, ...], ...] = ((rows,), (rows,)) if layers.bias else ()
    more += ((output, hidden),) if layers.proj_size else ()
    more += ((reference.parameters, hidden),) if reference.parameters else ()
    for layer in range(layers.num_layers):
        width = layers.input_size if layer == 0 else layers.directions * output
        for shape in ((rows, width), (rows, output // layers.num_heads), *more) * layers.directions:
            name, weight = next(names), next(weights)
            if weight.shape != shape:
                return Reason("misshapen_weights", f"{name} should be of size {shape}, got {tuple(weight.shape)}")
    return None


def empty_batch(call: Call, facts: Facts) -> Reason | None:
    return None if call.batch_size > 0 else Reason("empty_batch", "a batch of 0 rows leaves nothing to compute")


Predicate = Callable[[Call, Facts], Reason | None]

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
MOMENT: tuple[Predicate, ...] = (backend_eager, tracing, transform, forward_ad_dual, differentiable_gates)


def reasons(predicates: tuple[Predicate, ...], call: Call, facts: Facts, *, every: bool) -> tuple[Reason, ...]:
    """The first reason that holds, or every one."""
    found: tuple[Reason, ...] = ()
    for predicate in predicates:
        reason = predicate(call, facts)
        if reason is not None:
            found += (reason,)
            if not every:
                break
    return found
