"""The derivative of `holdfast::layer`: the backward kernel, or the plain recurrence where a kernel cannot follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack

from ...kernels.extras import Extras
from ...kernels.given import GivenBackwards, is_there
from ...kernels.refused import RefusedError
from ..backend import current_backend
from ..call.surroundings import in_onnx_export, watched
from .onnx import layer_as_onnx
from .options import Options, dtype_named, told
from .plain import plain_layer

if TYPE_CHECKING:
    from ...kernels.kept import Keep


def differentiable_layer(
    x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor | None], *arguments: Any
) -> list[Tensor]:
    """`holdfast::layer` as autograd sees it."""
    options, keep, extras = told(arguments)
    if in_onnx_export():
        found = layer_as_onnx(x, weights, initial, options, extras)
        if keep == "nothing":
            return found
        # What was kept for a backward pass is dead code; the exporter tells whoever reads it that it lacks the op.
        with torch._C._AutoDispatchBelowAutograd():
            return [*found, *torch.ops.holdfast.layer.default(x, weights, initial, *arguments)[len(found) :]]
    states = [state for state in initial if state is not None]
    reset_state = list(extras.reset_state or ())
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *states, *reset_state)):
        return list(_apply(OPS, x, weights, states, len(initial), reset_state, options, keep, extras))
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.holdfast.layer.default(x, weights, initial, *arguments)


class Route(NamedTuple):
    """How a layer's forward and backward pass are called: as `layer.run_forward` and `layer.run_backward`."""

    forward: Callable[..., list[Tensor]]
    backward: Callable[[GivenBackwards, Options, Extras, Sequence[bool]], list[Tensor | None]]


def _forward_op(
    x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor | None], options: Options, keep: Keep, extras: Extras
) -> list[Tensor]:
    return torch.ops.holdfast.layer.default(x, weights, initial, *options, keep, *extras)


def _backward_op(
    given: GivenBackwards, options: Options, extras: Extras, wanted: Sequence[bool]
) -> list[Tensor | None]:
    needs_dx, *asked = wanted
    bits = sum([1 << index for index, each in enumerate(asked) if each])
    found = torch.ops.holdfast.layer_backward.default(*given, *options, needs_dx, *extras, bits)
    dx = found.pop() if needs_dx else None
    gradients = iter(found)
    return [dx, *[next(gradients) if each else None for each in asked]]


OPS = Route(_forward_op, _backward_op)
"""Through the ops, for those who look at operators."""


def run_unwatched(
    direct: Route,
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    n_states: int,
    options: Options,
    keep: Keep,
    extras: Extras,
) -> Sequence[Tensor]:
    """A layer without the ops' way through the dispatcher, which takes 35 us of a CPU core where autograd records and
    15 where it does not. For a call that nobody watches (`surroundings.watched`).

    initial:  as of `holdfast::layer`, but empty for zeros.
    """
    if keep == "nothing":
        return direct.forward(x, weights, initial or (None,) * n_states, options, keep, extras)
    # Where no transform is active Function.apply comes down to this, 3 us later.
    arguments = (direct, options, keep, extras), (len(weights), n_states, len(initial))
    return _APPLY(*arguments, x, *weights, *initial, *(extras.reset_state or ()))


def _apply(
    route: Route,
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    n_states: int,
    reset_state: Sequence[Tensor],
    options: Options,
    keep: Keep,
    extras: Extras,
) -> tuple[Tensor, ...]:
    counts = (len(weights), n_states, len(initial))
    return _Layer.apply((route, options, keep, extras), counts, x, *weights, *initial, *reset_state)  # type: ignore[no-any-return]


class _Layer(torch.autograd.Function):
    """Flat, because autograd sees only tensors that are arguments themselves."""

    @staticmethod
    def forward(
        ctx: Any, arguments: tuple[Route, Options, Keep, Extras], counts: tuple[int, int, int], x: Tensor, *rest: Tensor
    ) -> Any:
        route, options, keep, extras = arguments
        n_weights, n_states, n_initial = counts
        weights, initial, reset_state = _parted(rest, n_weights, n_initial)
        if reset_state:
            extras = extras._replace(reset_state=reset_state)
        with torch._C._AutoDispatchBelowAutograd():
            results = route.forward(x, weights, initial or (None,) * n_states, options, keep, extras)
        if reset_state:
            extras = extras._replace(reset_state=None)
        # For a GPU autograd has a thread of its own, which does not see what a `with` block around the forward pass
        # has set: the pinned config, the interpreter.
        ctx.told = route, options, keep, extras, counts, copy_context()
        residuals = results[1 + n_states :]
        ctx.set_materialize_grads(False)
        if residuals:
            ctx.mark_non_differentiable(*residuals)
        ctx.save_for_backward(results[0], x, *rest, *residuals)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of x, the weights, the initial states and the reset state.

        Where they are to be differentiated again (create_graph=True), autograd runs under vmap (is_grads_batched), or
        the GPU turns out to have no such kernel, the plain recurrence is run and differentiated in its place.
        """
        route, options, keep, extras, (n_weights, n_states, n_initial), settings = ctx.told
        if keep == "nothing":
            raise RuntimeError('holdfast::layer kept nothing for its backward pass: it was called with keep="nothing"')
        wanted = ctx.needs_input_grad[2:]
        y, x, *rest = ctx.saved_tensors
        n_inputs = len(wanted) - 1
        weights, initial, reset_state = _parted(rest[:n_inputs], n_weights, n_initial)
        if reset_state:
            extras = extras._replace(reset_state=reset_state)
        dy, *d_final = grads[: 1 + n_states]
        # By compiled autograd, with grad mode on, though it cannot differentiate again. Neither the nested gradient of
        # the recurrence nor a context passes Dynamo: it went on without any gradient.
        traced = torch.compiler.is_dynamo_compiling()
        if not traced and (torch.is_grad_enabled() or _under_vmap(grads)):
            return None, None, *_through_recurrence(x, weights, initial, dy, d_final, options, extras)
        run = (OPS if traced or watched() else route).backward
        given = GivenBackwards(x, weights, initial, y, rest[n_inputs:], dy, d_final)
        try:
            if traced:
                found = run(given, options, extras, wanted)
            else:
                found = settings.copy().run(run, given, options, extras, wanted)
        except RefusedError as error:
            if traced or not settings.copy().run(_may_fall_back, error, x.device):
                raise
            return None, None, *_through_recurrence(x, weights, initial, dy, d_final, options, extras)
        return None, None, *found


_APPLY = super(torch.autograd.Function, _Layer).apply  # type: ignore[misc]


def _may_fall_back(error: RefusedError, device: torch.device) -> bool:
    """Whether plain torch ops may do what turned out to have no kernel on this GPU; the next call knows."""
    from ...autotune.select import refuse

    return refuse(error, device) and current_backend() != "triton"


def _parted(rest: Sequence[Tensor], n_weights: int, n_initial: int) -> tuple[Sequence[Tensor], ...]:
    """Weights, initial states and the reset state."""
    states = n_weights + n_initial
    return rest[:n_weights], rest[n_weights:states], rest[states:]


def _under_vmap(grads: Sequence[Tensor | None]) -> bool:
    """Whether this backward pass computes many gradients at once: torch.func's vmap, or autograd's own older one."""
    if peek_interpreter_stack() is not None:
        return True
    return any(map(is_legacy_batchedtensor, filter(is_there, grads)))


def _through_recurrence(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    dy: Tensor | None,
    d_final: Sequence[Tensor | None],
    options: Options,
    extras: Extras,
) -> list[Tensor | None]:
    """The gradients as a differentiable function of everything they depend on; None for what needs no gradient."""
    tensors = (x, *weights, *initial, *(extras.reset_state or ()))
    needed = tuple(t.requires_grad for t in tensors)
    return plain_gradients(x, weights, initial, dy, d_final, options, extras, needed)


def plain_gradients(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    dy: Tensor | None,
    d_final: Sequence[Tensor | None],
    options: Options,
    extras: Extras,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, weights, initial and reset state through plain torch ops; None for what is not needed."""
    create_graph, dtype = torch.is_grad_enabled(), dtype_named(options.dtype)
    reset_state = tuple(extras.reset_state or ())
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        # Aliases, so that the gradient stops at this layer's inputs and the second one goes on through them.
        inputs = [t.view_as(t) for t in (x, *weights, *initial, *reset_state)]
        for t, need in zip(inputs, needed, strict=True):
            if need and not t.requires_grad:  # as an op sees tensors, below autograd
                t.requires_grad_()
        xs, *rest = inputs
        own, starting, resetting = _parted(rest, len(weights), len(initial))
        if reset_state:
            extras = extras._replace(reset_state=resetting)
        results = plain_layer(xs, own, starting, options, dtype, extras)
        used = [(out, grad) for out, grad in zip(results, (dy, *d_final), strict=True) if grad is not None]
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in used],
                wanted,
                [grad for _, grad in used],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
        return [next(found) if need else None for need in needed]
