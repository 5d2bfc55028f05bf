"""The kernels as torch ops, `holdfast::layer` and `holdfast::layer_backward`: one layer over a whole sequence.

As ops with a schema, a fake kernel and a registered derivative they pass through torch.compile, torch.export and
autograd. Neither writes to an input nor returns a view of one. The config is chosen when an op runs, not when it is
traced, so a compiled graph serves every length and batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...kernels.problem import Problem
from .derivative import differentiable_layer
from .options import schema, told, told_wanted

if TYPE_CHECKING:
    from ...kernels.config import Config
    from ...kernels.kept import Keep
    from ...kernels.layer import LayerWeights


def layer(x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor | None], *arguments: Any) -> list[Tensor]:
    """Run one layer of a recurrent network on a kernel.

    x:        [T, B, I], or [B, T, I] with batch_first; any strides. Packed: [rows, I].
    weights:  w_ih [G*H, I], w_hh [G*H, H] and, or not, b_ih, b_hh [G*H], and the cell's own numbers [P, H] where it
              has any, of each direction in turn (G gates).
    initial:  a tensor [directions, B, H] per state of the cell, h first; a None each for zeros.
    arguments: `Options`; keep, see `kernels.layer.Keep`; `Extras`.

    Returns y [T, B, directions*H] (packed: [rows, directions*H]), a final state [directions, B, H] per state, then
    what the backward pass needs besides inputs and y: nothing with keep="nothing", which makes it impossible. Only y
    and the final states have gradients.

    Raises RuntimeError where this device has no kernel for the problem, ValueError where no kernel has the dtype.
    """
    from ...autotune.pin import remember_pin
    from ...kernels.layer import forward_layer

    options, keep, extras = told(arguments)
    problem = options.problem(x, weights, extras, "forward")
    y, final, residuals = forward_layer(
        problem,
        _config(problem, x.device, keep, options.steps(x, extras)),
        x,
        by_direction(weights, options.directions),
        given(initial),
        batch_first=options.batch_first,
        keep=keep,
        extras=extras,
    )
    if keep == "nothing":
        return [y, *final]
    remember_pin(y)
    return [y, *final, *residuals.kept, *(t for t in residuals[1:] if t is not None)]


def fake_layer(x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor | None], *arguments: Any) -> list[Tensor]:
    from ...kernels.cell_spec import find_cell
    from ...kernels.kept import keeps_values, saved_tiles

    options, keep, extras = told(arguments)
    problem = options.problem(x, weights, extras, "forward")
    spec, directions = find_cell(options.cell), options.directions
    rows = (x.shape[1], x.shape[0]) if options.batch_first and extras.starts is None else x.shape[:-1]

    def of_every_step(width: int) -> Tensor:
        return x.new_empty(*rows, directions * width * problem.hidden_size, dtype=problem.dtype)

    def of_every_row() -> Tensor:
        return x.new_empty(directions, problem.batch_size, problem.hidden_size, dtype=problem.dtype)

    results = [of_every_step(1), *(of_every_row() for _ in range(spec.states))]
    if keep == "nothing":
        return results
    widths = [1] * (spec.states - 1)
    widths += [saved_tiles(problem)] if keeps_values(problem, keep) else []
    widths += [1] * ((spec.inner is not None) + (extras.dropout is not None))
    return results + [of_every_step(width) for width in widths]


def layer_backward(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    y: Tensor,
    residuals: Sequence[Tensor],
    dy: Tensor | None,
    d_final: Sequence[Tensor | None],
    *arguments: Any,
) -> list[Tensor]:
    """Gradients of `layer`'s tensors from those of its results.

    initial:       as for `layer`, but empty for zeros.
    y, residuals:  the first and the last results of `layer` with keep="save" or "recompute".
    dy, d_final:   gradients of y and of each final state, any strides; None where nothing used it.
    arguments:     `Options`; needs_dx; `Extras`; wanted: bit i says whether the gradient of the i-th of weights,
                   initial and reset_state, one after the other, is asked for.

    Returns the gradients that are, each in its tensor's dtype, in this order, and last, with needs_dx, that of x.

    Raises RuntimeError where this device has no kernel for the problem, ValueError where no kernel has the dtype.
    """
    from ...autotune.pin import pin_of
    from ...kernels.cell_spec import find_cell
    from ...kernels.gemm import Wanted
    from ...kernels.layer import Residuals, backward_layer

    options, needs_dx, extras = told(arguments)
    problem = options.problem(x, weights, extras, "backward")
    spec, rest = find_cell(options.cell), list(residuals)
    sent = rest.pop() if extras.dropout is not None else None
    inner = rest.pop() if spec.inner is not None else None
    saved = rest.pop() if len(rest) == spec.states else None
    keep: Keep = "recompute" if saved is None else "save"
    own, like = by_direction(weights, options.directions), (*weights, *initial, *(extras.reset_state or ()))
    wanted = _flags(arguments, len(like))
    of_weights, of_states = by_direction(wanted[: len(weights)], options.directions), wanted[len(weights) :]
    found = backward_layer(
        problem,
        _config(problem, x.device, keep, options.steps(x, extras), pin_of(y)),
        x,
        own,
        initial or None,
        y,
        Residuals(tuple(rest), saved, inner, sent),
        dy,
        d_final,
        batch_first=options.batch_first,
        wanted=Wanted._make(
            (
                needs_dx,
                *map(any, zip(*of_weights, strict=True)),
                any(of_states[: len(initial)]),
                any(of_states[len(initial) :]),
            )
        ),
        extras=extras,
    )
    nothing = (None,) * spec.states
    gradients = [
        *(g for of_w, w in zip(found.weights, own, strict=True) for g, t in zip(of_w, w, strict=True) if t is not None),
        *((found.initial or nothing) if initial else ()),
        *((found.reset_state or nothing) if extras.reset_state else ()),
    ]
    results = [g.to(t.dtype) for g, t, asked in zip(gradients, like, wanted, strict=True) if asked and g is not None]
    return results if found.x is None else [*results, found.x.to(x.dtype)]


def fake_layer_backward(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    y: Tensor,
    residuals: Sequence[Tensor],
    dy: Tensor | None,
    d_final: Sequence[Tensor | None],
    *arguments: Any,
) -> list[Tensor]:
    options, needs_dx, extras = told(arguments)
    tensors = (*weights, *initial, *(extras.reset_state or ()))
    wanted = _flags(arguments, len(tensors))
    gradients = [t.new_empty(t.shape) for t, asked in zip(tensors, wanted, strict=True) if asked]
    if needs_dx:
        dx = x.new_empty(*y.shape[:-1], x.shape[-1])
        gradients.append(dx.transpose(0, 1) if options.batch_first and extras.starts is None else dx)
    return gradients


def _flags(arguments: Sequence[Any], count: int) -> list[bool]:
    bits = told_wanted(arguments)
    return [bool(bits >> index & 1) for index in range(count)]


def given(initial: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The initial states, or None where they are zeros."""
    # Not an empty list for zeros: AOTInductor hands that on as None, which the schema refuses.
    return None if any(state is None for state in initial) else cast("list[Tensor]", initial)


def by_direction(weights: Sequence[Any], directions: int) -> list[LayerWeights]:
    """The flat weights of a layer, or something else for each, as one LayerWeights per direction."""
    from ...kernels.layer import LayerWeights

    each = len(weights) // directions
    found = []
    for start in range(0, len(weights), each):
        w_ih, w_hh, *rest = weights[start : start + each]
        # Biases come in pairs: an odd one is the cell's own numbers.
        own = rest.pop() if len(rest) % 2 else None
        b_ih, b_hh = rest or (None, None)
        found.append(LayerWeights(w_ih, w_hh, b_ih, b_hh, own))
    return found


def _config(problem: Problem, device: torch.device, keep: Keep, length: int, pin: Config | None = None) -> Config:
    from ...autotune.select import select
    from ...kernels.executor import interpreting

    if device.type != "cuda" and not interpreting():
        raise RuntimeError(f"holdfast's kernels run on a GPU, or on a CPU inside the interpreter; x is on {device}")
    if pin is not None:
        return pin
    plan = select(problem, device, keep=keep, length=length, may_tune=True)
    if plan.config is None:
        raise RuntimeError(f"no kernel on {device} for this call, which was planned or compiled elsewhere:\n{plan}")
    return plan.config


SCHEMAS = {
    "layer": schema("Tensor x, Tensor[] weights, Tensor?[] initial", "str keep"),
    "layer_backward": schema(
        "Tensor x, Tensor[] weights, Tensor[] initial, Tensor y, Tensor[] residuals, Tensor? dy, Tensor?[] d_final",
        "bool needs_dx",
        ", SymInt wanted=-1",
    ),
}

# torch.library.custom_op and register_autograd would do the same through Python of their own. It took 150 of the 625
# microseconds that a CPU core spent on a layer's forward and backward pass, launches left out.
LIBRARY = torch.library.Library("holdfast", "DEF")
for op, fake in ((layer, fake_layer), (layer_backward, fake_layer_backward)):
    LIBRARY.define(op.__name__ + SCHEMAS[op.__name__], tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(op.__name__, op, "CompositeExplicitAutograd")
    torch.library.register_fake(f"holdfast::{op.__name__}", fake, lib=LIBRARY)
LIBRARY.impl("layer", differentiable_layer, "Autograd")
