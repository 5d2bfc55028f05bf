"""The eager paths as one torch op, `holdfast::eager`: a whole module call in a graph of torch.compile or torch.export.

Traced, torch's own RNN ops fall apart into every time step. As an op the call stays whole: the graph serves every
length and batch size, and what runs is what runs in eager mode, to the last bit.

So does its derivative. `eager_forward` runs the call with autograd on tensors of its own, or by oneDNN's layers, and
leaves what goes backward on the storage of its last result, the token; `eager_backward` finds it there, and with the
token it goes. Where a program has copied the token (an offloaded activation, say), or goes backward twice, the call is
run once more, from the random state in the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call.records import Call, Decision, Layers, as_hx, zeros
from ..call.surroundings import in_onnx_export, only_autograd, watched
from ..eager.fused import FUSED_OPS, answer_dtypes
from ..eager.onednn import OneDNNLayers
from ..eager.onednn import available as onednn_available
from ..eager.reference import reference_of
from ..eager.run import run_eager
from ..gates import detached
from .layer import LIBRARY
from .onnx import run_onnx
from .options import declared


class Told(NamedTuple):
    """What the ops are told besides tensors: fields of `Layers` and `Call`. x is time-major, or packed.

    autocast:  what autocast turns x into, such as "bfloat16", or nothing.
    """

    cell: str
    hidden_size: int
    proj_size: int
    num_layers: int
    directions: int
    bias: bool
    dropout: float
    training: bool
    recurrent_dropout: float
    zoneout: Sequence[float]
    autocast: str
    return_gates: bool

    @property
    def noisy(self) -> bool:
        """As `Layers.noisy`."""
        return any(self.zoneout) or (self.training and self.recurrent_dropout > 0)


class Given(NamedTuple):
    """The tensors of a `Call` besides x and the weights."""

    hx: Sequence[Tensor] | None = None
    reset_hx: Sequence[Tensor] | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    batch_sizes: Tensor | None = None


def run_as_op(
    call: Call, decision: Decision, traces: list[dict[str, Tensor]] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call as one op: (output, final states), and into `traces` what `return_gates` asks for."""
    layers = call.layers
    batch_first = layers.batch_first and call.batch_sizes is None
    told, given = arguments_of(call, decision.autocast)
    x = call.x.transpose(0, 1) if batch_first else call.x
    y, *rest = torch.ops.holdfast.eager.default(x, layers.weights, *told, *given)
    if traces is not None:
        names, values = _trace_names(layers.cell), iter(rest[layers.n_states :])
        of_layers = [dict(zip(names, values, strict=False)) for _ in range(layers.num_layers)]
        traces.extend(of_layers if call.return_gates == "differentiable" else map(detached, of_layers))
    return y.transpose(0, 1) if batch_first else y, tuple(rest[: layers.n_states])


def arguments_of(call: Call, autocast: torch.dtype | None) -> tuple[Told, Given]:
    """A call in the words of the ops, but for x and the weights."""
    layers = call.layers
    told = Told(
        layers.cell,
        layers.hidden_size,
        layers.proj_size,
        layers.num_layers,
        layers.directions,
        layers.bias,
        float(layers.dropout),
        layers.training,
        float(layers.recurrent_dropout),
        [float(rate) for rate in layers.zoneout],
        "" if autocast is None else str(autocast).removeprefix("torch."),
        bool(call.return_gates),
    )
    hx, reset_hx = list(call.states) or None, list(call.reset_states) or None
    return told, Given(hx, reset_hx, call.lengths, call.resets, call.batch_sizes)


def eager(x: Tensor, weights: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    """Run a module's call on the eager paths.

    x:          [T, B, I], or packed [rows, I]; weights in torch's order.
    arguments:  `Told`; `Given`.

    Returns y [T, B, D*H] (packed: [rows, D*H]), a final state [layers*D, B, H] per state, and with return_gates for
    each layer every gate and state [T, B, D*H]. All contiguous, none shares memory with an input.
    """
    told, given = Told(*arguments[: len(Told._fields)]), Given(*arguments[len(Told._fields) :])
    with torch.no_grad():
        return [t.contiguous() for t in _run(x, weights, told, given, trains=False)]


def eager_forward(x: Tensor, weights: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    """`eager` with a derivative: its results and the token.

    arguments:  `Told`; needs, which of x, weights, hx and reset_hx wants a gradient; `Given`.
    """
    told, needs, given = _taken_apart(arguments)
    before = _random_state(x, told)
    results, graph = _run_to_go_back(x, weights, told, needs, given)
    token = torch.zeros(1, dtype=torch.uint8) if before is None else before
    token.untyped_storage().graph = graph  # type: ignore[attr-defined]
    return [*results, token]


def eager_backward(
    token: Tensor, grads: Sequence[Tensor | None], x: Tensor, weights: Sequence[Tensor], *arguments: Any
) -> list[Tensor]:
    """Gradients of what `needs` them from those of the results of `eager`, None where nothing used one."""
    told, needs, given = _taken_apart(arguments)
    storage = token.untyped_storage()
    graph = getattr(storage, "graph", None)
    # Used once, so that autograd frees what it has read: a second backward pass runs the call anew.
    storage.graph = None  # type: ignore[attr-defined]
    if graph is None:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            if _draws(told):
                _set_random_state(x, token)
            _, graph = _run_to_go_back(x, weights, told, needs, given)
    found = graph.gradients(grads, x, weights, given.hx)
    return [g.contiguous() for g, need in zip(found, needs, strict=True) if need]


def _run_to_go_back(
    x: Tensor, weights: Sequence[Tensor], told: Told, needs: Sequence[bool], given: Given
) -> tuple[list[Tensor], _Graph | OneDNNLayers]:
    """The results, which nobody else has, and what has the gradients."""
    if _is_onednn(x, weights, told, given):
        layers = OneDNNLayers(told.hidden_size, told.num_layers, told.directions, told.bias)
        return layers.forward(x, weights, given.hx), layers
    graph = _Graph(x, weights, told, needs, given)
    # Copies: a compiler may write over a result that nothing reads any more.
    return [t.detach().clone(memory_format=torch.contiguous_format) for t in graph.results], graph


class _Graph:
    """A call on tensors of its own and autograd's graph of it.

    Copies, also of the inputs: compiled code may write over what the graph would read in the backward pass. Not of
    leaves that want a gradient: they are the program's own, parameters, and autograd sees where it changes one.
    """

    def __init__(self, x: Tensor, weights: Sequence[Tensor], told: Told, needs: Sequence[bool], given: Given) -> None:
        n, hx, reset_hx = 1 + len(weights), given.hx or (), given.reset_hx or ()
        with _autograd_on():
            self.own = own = [
                Tensor._make_subclass(Tensor, t if t.requires_grad and t.is_leaf else t.clone(), need)
                for t, need in zip((x, *weights, *hx, *reset_hx), needs, strict=True)
            ]
            own_hx, own_reset = own[n : n + len(hx)], own[n + len(hx) :]
            cuts = (None if t is None else t.clone() for t in given[2:])
            self.results = _run(own[0], own[1:n], told, Given(own_hx or None, own_reset or None, *cuts), trains=True)

    def gradients(self, grads: Sequence[Tensor | None], *_given_again: Any) -> list[Tensor | None]:
        """Once. By backward, as the tensors are nobody else's: autograd.grad first looks which of the nodes lead to
        its inputs, and a GRU has ten for each step (16 of 119 ms at T=1024)."""
        used = [(t, g) for t, g in zip(self.results, grads, strict=False) if g is not None and t.requires_grad]
        if used:
            results, of_results = zip(*used, strict=True)
            with _autograd_on():
                torch.autograd.backward(results, of_results)
        return [t.grad if t.grad is not None or not t.requires_grad else torch.zeros_like(t) for t in self.own]


def fake_eager(x: Tensor, weights: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    told, given = Told(*arguments[: len(Told._fields)]), Given(*arguments[len(Told._fields) :])
    call, autocast = _call(x, weights, told, given), _autocast(told)
    output, dtypes = told.proj_size or told.hidden_size, answer_dtypes(call, autocast)
    steps = x.shape[0] if given.batch_sizes is None else given.batch_sizes.shape[0]
    batch: Any
    if given.hx:
        batch = given.hx[0].shape[1]
    else:
        batch = x.shape[1] if given.batch_sizes is None else torch.library.get_ctx().new_dynamic_size()
    rows, sizes = told.num_layers * told.directions, (output, *[told.hidden_size] * (len(told.zoneout) - 1))
    results = [x.new_empty(*x.shape[:-1], told.directions * output, dtype=dtypes[0])]
    results += [x.new_empty(rows, batch, size, dtype=dtype) for size, dtype in zip(sizes, dtypes[1:], strict=True)]
    if told.return_gates:
        of_layer = [output if name == "h" else told.hidden_size for name in _trace_names(told.cell)] * told.num_layers
        dtype = autocast or x.dtype
        results += [x.new_empty(steps, batch, told.directions * size, dtype=dtype) for size in of_layer]
    return results


def fake_eager_forward(x: Tensor, weights: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    told, _, given = _taken_apart(arguments)
    state = _random_state(x, told)
    token = x.new_empty(1 if state is None else len(state), dtype=torch.uint8, device="cpu")
    return [*fake_eager(x, weights, *told, *given), token]


def fake_eager_backward(
    token: Tensor, grads: Sequence[Tensor | None], x: Tensor, weights: Sequence[Tensor], *arguments: Any
) -> list[Tensor]:
    _, needs, given = _taken_apart(arguments)
    tensors = (x, *weights, *(given.hx or ()), *(given.reset_hx or ()))
    return [t.new_empty(t.shape) for t, need in zip(tensors, needs, strict=True) if need]


def differentiable_eager(x: Tensor, weights: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    """`holdfast::eager` as autograd sees it."""
    told, given = Told(*arguments[: len(Told._fields)]), Given(*arguments[len(Told._fields) :])
    if in_onnx_export():  # of an ExportedProgram: the exporter runs its graph once more, to decompose it
        y, states = run_onnx(_call(x, weights, told, given))
        return [y, *states]
    tensors = (x, *weights, *(given.hx or ()), *(given.reset_hx or ()))
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        counts = (1 + len(weights), len(given.hx or ()))
        return list(_Eager.apply(told, given._replace(hx=None, reset_hx=None), counts, *tensors))
    if not watched() and all([type(t) in (Tensor, torch.nn.Parameter) for t in tensors]):
        return eager(x, weights, *arguments)  # without the way there and back through the dispatcher
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.holdfast.eager.default(x, weights, *arguments)


class _Eager(torch.autograd.Function):
    """Flat, because autograd sees only tensors that are arguments themselves."""

    @staticmethod
    def forward(ctx: Any, told: Told, cuts: Given, counts: tuple[int, int], *tensors: Tensor) -> Any:
        ctx.told, ctx.counts, ctx.needs = told, counts, list(ctx.needs_input_grad[3:])
        x, weights, given = _parted(tensors, counts, cuts)
        with torch._C._AutoDispatchBelowAutograd():
            *results, token = torch.ops.holdfast.eager_forward.default(x, weights, *told, ctx.needs, *given)
        ctx.set_materialize_grads(False)
        ctx.n = len(tensors)
        ctx.given = [t is not None for t in cuts[2:]]
        ctx.save_for_backward(*tensors, token, *(t for t in cuts[2:] if t is not None))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        tensors, token, rest = saved[: ctx.n], saved[ctx.n], iter(saved[ctx.n + 1 :])
        x, weights, given = _parted(
            tensors, ctx.counts, Given(None, None, *(next(rest) if there else None for there in ctx.given))
        )
        of_results = list(grads)
        if torch.is_grad_enabled() and not torch.compiler.is_dynamo_compiling():  # to be differentiated again
            wanted = [t for t, need in zip(tensors, ctx.needs, strict=True) if need]
            found = iter(_differentiable_gradients(of_results, wanted, x, weights, ctx.told, given))
        else:
            found = iter(
                torch.ops.holdfast.eager_backward.default(token, of_results, x, weights, *ctx.told, ctx.needs, *given)
            )
        return None, None, None, *(next(found) if need else None for need in ctx.needs)


def _differentiable_gradients(
    grads: Sequence[Tensor | None],
    wanted: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    told: Told,
    given: Given,
) -> Sequence[Tensor]:
    if _draws(told):
        raise RuntimeError("holdfast::eager has no second derivative where it draws random numbers")
    results = _run(x, weights, told, given, trains=True)
    used = [(t, g) for t, g in zip(results, grads, strict=False) if g is not None]
    return torch.autograd.grad(
        [t for t, _ in used],
        wanted,
        [g for _, g in used],
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _parted(tensors: Sequence[Tensor], counts: tuple[int, int], cuts: Given) -> tuple[Tensor, list[Tensor], Given]:
    n, n_hx = counts
    hx, reset_hx = list(tensors[n : n + n_hx]), list(tensors[n + n_hx :])
    return tensors[0], list(tensors[1:n]), cuts._replace(hx=hx or None, reset_hx=reset_hx or None)


def _taken_apart(arguments: Sequence[Any]) -> tuple[Told, list[bool], Given]:
    n = len(Told._fields)
    return Told(*arguments[:n]), arguments[n], Given(*arguments[n + 1 :])


def _call(x: Tensor, weights: Sequence[Tensor], told: Told, given: Given) -> Call:
    sizes = (told.hidden_size, told.proj_size, told.num_layers, told.directions)
    noise = (told.recurrent_dropout, tuple(told.zoneout))
    layers = Layers(
        told.cell,
        weights[0].shape[1],
        *sizes,
        False,
        told.bias,
        told.dropout,
        told.training,
        *noise,
        1,  # of several heads the op gets the block-diagonal matrix
        None,
        list(weights),
        [],
    )
    return Call(
        layers,
        x,
        as_hx(tuple(given.hx)) if given.hx else None,
        batch_sizes=given.batch_sizes,
        lengths=given.lengths,
        resets=given.resets,
        reset_hx=as_hx(tuple(given.reset_hx)) if given.reset_hx else None,
        return_gates="differentiable" if told.return_gates else False,
    )


def _is_dense(x: Tensor, told: Told, given: Given) -> bool:
    """Whether a call is torch's op as it stands. `run_eager` would find that out too, but 20 us later where its code
    has left the caches, as it has between compiled functions: 16 steps of an LSTM take 350."""
    if given[1:] != _NO_CUTS or told.cell not in FUSED_OPS or told.return_gates or told.autocast or x.is_cuda:
        return False
    return not told.noisy and not torch.is_autocast_enabled(x.device.type) and only_autograd()


def _is_onednn(x: Tensor, weights: Sequence[Tensor], told: Told, given: Given) -> bool:
    """Whether a call is `OneDNNLayers`: torch.lstm would do the same."""
    if told.cell != "lstm" or told.proj_size or x.device.type != "cpu" or _draws(told) or not _is_dense(x, told, given):
        return False
    hx = given.hx or ()
    if not x.numel() or any(t.dtype != torch.float32 for t in (x, *weights, *hx)):
        return False
    return onednn_available() and all(state.shape[1] == x.shape[1] for state in hx)


def _zeros(x: Tensor, told: Told) -> tuple[Tensor, ...]:
    """The initial states of a dense call."""
    sizes = (told.hidden_size, told.proj_size, len(told.zoneout))
    return zeros(x, told.num_layers * told.directions, x.shape[1], *sizes)


def _run(x: Tensor, weights: Sequence[Tensor], told: Told, given: Given, *, trains: bool) -> Sequence[Tensor]:
    if _is_dense(x, told, given):
        hx = as_hx(tuple(given.hx or _zeros(x, told)))
        sizes = (told.bias, told.num_layers, told.dropout, told.training, told.directions == 2)
        return FUSED_OPS[told.cell](x, hx, weights, *sizes, False)
    call, autocast = _call(x, weights, told, given), _autocast(told)
    if call.batch_sizes is not None and call.hx is not None and told.cell != "lstm":  # torch.nn's LSTM broadcasts it
        _check_packed_hx(call)
    traces: list[dict[str, Tensor]] | None = [] if told.return_gates else None
    with _cast_to(autocast, x.device.type):
        y, states = run_eager(call, trains=trains, autocast=autocast, traces=traces)
    return [y, *states, *(value for layer in traces or () for value in layer.values())]


def _cast_to(dtype: torch.dtype | None, device_type: str) -> AbstractContextManager[Any]:
    """Autocast as it was when the call was traced. Entering it takes as long as torch.rnn_tanh of one small step."""
    if dtype is None and not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)


def _check_packed_hx(call: Call) -> None:
    """torch.nn's check, which a traced graph leaves to the op: how many sequences there are is a number in a tensor."""
    expected, found = (call.states[0].shape[0], call.batch_size, call.states[0].shape[2]), tuple(call.states[0].shape)
    if found != expected:
        raise RuntimeError(f"Expected hidden size {expected}, got {[*found]}")


def _autocast(told: Told) -> torch.dtype | None:
    return getattr(torch, told.autocast) if told.autocast else None


def _trace_names(cell: str) -> tuple[str, ...]:
    reference = reference_of(cell)
    return (*reference.gate_names, *reference.state_names)


def _draws(told: Told) -> bool:
    between_layers = told.dropout > 0 and told.num_layers > 1
    return told.training and (between_layers or told.noisy)


def _random_state(x: Tensor, told: Told) -> Tensor | None:
    """Torch's generator as it is, where a call draws from it."""
    if not _draws(told):
        return None
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


def _set_random_state(x: Tensor, state: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.set_rng_state(state, x.device)
    else:
        torch.set_rng_state(state)


class _autograd_on:  # noqa: N801  a context like torch's own
    """Record a graph inside of an op, which compiled code calls below autograd."""

    def __enter__(self) -> None:
        self.guard = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
        self.guard.__enter__()
        self.before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)

    def __exit__(self, *exception: Any) -> None:
        torch._C._set_grad_enabled(self.before)
        self.guard.__exit__(*exception)


_NO_CUTS = (None,) * (len(Given._fields) - 1)
_TENSORS = "Tensor x, Tensor[] weights"
SCHEMAS = {
    "eager": f"({_TENSORS}, {declared(Told)}, {declared(Given)}) -> Tensor[]",
    "eager_forward": f"({_TENSORS}, {declared(Told)}, bool[] needs, {declared(Given)}) -> Tensor[]",
    "eager_backward": f"(Tensor token, Tensor?[] grads, {_TENSORS}, {declared(Told)}, bool[] needs, {declared(Given)})"
    " -> Tensor[]",
}

# nondeterministic_seeded: two calls with dropout are not one, and none is run again in place of being kept.
for op, fake in ((eager, fake_eager), (eager_forward, fake_eager_forward), (eager_backward, fake_eager_backward)):
    tags = [torch.Tag.pt2_compliant_tag]
    tags += [torch.Tag.nondeterministic_seeded] if op is not eager_backward else []
    LIBRARY.define(op.__name__ + SCHEMAS[op.__name__], tags=tags)
    LIBRARY.impl(op.__name__, op, "CompositeExplicitAutograd")
    torch.library.register_fake(f"holdfast::{op.__name__}", fake, lib=LIBRARY)
LIBRARY.impl("eager", differentiable_eager, "Autograd")
for below in ("eager_forward", "eager_backward"):  # torch's own stand-in looks at every tensor
    LIBRARY.impl(below, torch.library.fallthrough_kernel, "Autograd")
