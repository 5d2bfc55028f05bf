"""The kernels as torch ops, `holdfast::layer` and `holdfast::layer_backward`: one layer over a whole sequence.

As ops with a schema, a fake kernel and a registered derivative they pass through torch.compile, torch.export and
autograd. Neither writes to an input nor returns a view of one. The config is chosen when an op runs, not when it is
traced, so a compiled graph serves every length and batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..kernels.problem import Phase, Precision, Problem
from .derivative import differentiable_layer

if TYPE_CHECKING:
    from ..kernels.config import Config
    from ..kernels.layer import Keep, LayerWeights


def layer(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor | None],
    cell: str,
    directions: int,
    batch_first: bool,
    dtype: torch.dtype,
    precision: str,
    keep: str,
) -> list[Tensor]:
    """Run one layer of a recurrent network on a kernel.

    x:        [T, B, I], or [B, T, I] with batch_first; any strides.
    weights:  w_ih [G*H, I], w_hh [G*H, H] and, or not, b_ih, b_hh [G*H] of each direction in turn (G gates).
    initial:  a tensor [directions, B, H] per state of the cell, h first; a None each for zeros.
    cell:     name in `kernels.cell_spec.CELLS`.
    dtype:    what to compute in: x, weights and initial are cast to it, and all results are of it.
    precision, keep:  see `kernels.problem.Precision` and `kernels.layer.Keep`.

    Returns y [T, B, directions*H], a final state [directions, B, H] per state, then what the backward pass needs
    besides inputs and y: nothing with keep="nothing", which makes it impossible. Only y and the final states have
    gradients.

    Raises RuntimeError where this device has no kernel for the problem.
    """
    from ..kernels.layer import forward_layer

    problem = _problem(x, weights, cell, directions, batch_first, dtype, precision, "forward")
    y, final, residuals = forward_layer(
        problem,
        _config(problem, x.device, cast("Keep", keep), x.shape[1 if batch_first else 0]),
        x,
        by_direction(weights, directions),
        given(initial),
        batch_first=batch_first,
        keep=cast("Keep", keep),
    )
    saved = () if residuals.saved is None else (residuals.saved,)
    return [y, *final, *residuals.kept, *saved]


def fake_layer(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor | None],
    cell: str,
    directions: int,
    batch_first: bool,
    dtype: torch.dtype,
    precision: str,
    keep: str,
) -> list[Tensor]:
    from ..kernels.cell_spec import find_cell

    spec = find_cell(cell)
    B, T = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    hidden = weights[1].shape[1]

    def of_every_step(width: int) -> Tensor:
        return x.new_empty(T, B, directions * width * hidden, dtype=dtype)

    final = [x.new_empty(directions, B, hidden, dtype=dtype) for _ in range(spec.states)]
    kept = [] if keep == "nothing" else [of_every_step(1) for _ in range(spec.states - 1)]
    saved = [of_every_step(spec.saved)] if keep == "save" and spec.saved else []
    return [of_every_step(1), *final, *kept, *saved]


def layer_backward(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    y: Tensor,
    residuals: Sequence[Tensor],
    dy: Tensor | None,
    d_final: Sequence[Tensor | None],
    cell: str,
    directions: int,
    batch_first: bool,
    dtype: torch.dtype,
    precision: str,
    needs_dx: bool,
) -> list[Tensor]:
    """Gradients of `layer`'s tensors from those of its results.

    initial:       as for `layer`, but empty for zeros.
    y, residuals:  the first and the last results of `layer` with keep="save" or "recompute".
    dy, d_final:   gradients of y and of each final state, any strides; None where nothing used it.

    Returns one gradient each, in its dtype, for weights, for initial, and, with needs_dx, for x.

    Raises RuntimeError where this device has no kernel for the problem.
    """
    from ..kernels.cell_spec import find_cell
    from ..kernels.layer import Residuals, backward_layer

    problem = _problem(x, weights, cell, directions, batch_first, dtype, precision, "backward")
    kept = find_cell(cell).states - 1
    found = backward_layer(
        problem,
        _config(problem, x.device, "save" if len(residuals) > kept else "recompute", y.shape[0]),
        x,
        by_direction(weights, directions),
        initial or None,
        y,
        Residuals(tuple(residuals[:kept]), residuals[kept] if len(residuals) > kept else None),
        dy,
        d_final,
        batch_first=batch_first,
        needs_dx=needs_dx,
    )
    of_weights = [g for w in found.weights for g in w if g is not None]
    gradients = [*of_weights, *(found.initial if initial else ()), *(() if found.x is None else (found.x,))]
    return [g.to(t.dtype) for g, t in zip(gradients, (*weights, *initial, x), strict=False)]


def fake_layer_backward(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    y: Tensor,
    residuals: Sequence[Tensor],
    dy: Tensor | None,
    d_final: Sequence[Tensor | None],
    cell: str,
    directions: int,
    batch_first: bool,
    dtype: torch.dtype,
    precision: str,
    needs_dx: bool,
) -> list[Tensor]:
    gradients = [t.new_empty(t.shape) for t in (*weights, *initial)]
    if needs_dx:
        dx = x.new_empty(*y.shape[:2], x.shape[2])
        gradients.append(dx.transpose(0, 1) if batch_first else dx)
    return gradients


def given(initial: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The initial states, or None where they are zeros."""
    # Not an empty list for zeros: AOTInductor hands that on as None, which the schema refuses.
    return None if any(state is None for state in initial) else cast("list[Tensor]", initial)


def by_direction(weights: Sequence[Tensor], directions: int) -> list[LayerWeights]:
    """The flat weights of a layer as one LayerWeights per direction."""
    from ..kernels.layer import LayerWeights

    each = len(weights) // directions
    starts = range(0, len(weights), each)
    return [LayerWeights(*weights[start : start + each], *(None,) * (4 - each)) for start in starts]


def _problem(
    x: Tensor,
    weights: Sequence[Tensor],
    cell: str,
    directions: int,
    batch_first: bool,
    dtype: torch.dtype,
    precision: str,
    phase: Phase,
) -> Problem:
    batch_size = x.shape[0 if batch_first else 1]
    return Problem(cell, dtype, weights[1].shape[1], batch_size, directions, cast(Precision, precision), phase)


def _config(problem: Problem, device: torch.device, keep: Keep, length: int) -> Config:
    from ..autotune.select import select
    from ..kernels.executor import interpreting

    if device.type != "cuda" and not interpreting():
        raise RuntimeError(f"holdfast's kernels run on a GPU, or on a CPU inside the interpreter; x is on {device}")
    plan = select(problem, device, keep=keep, length=length, may_tune=True)
    if plan.config is None:
        raise RuntimeError(f"no kernel on {device} for this call, which was planned or compiled elsewhere:\n{plan}")
    return plan.config


# torch.library.custom_op and register_autograd would do the same through Python of their own. It took 150 of the 625
# microseconds that a CPU core spent on a layer's forward and backward pass, launches left out.
LIBRARY = torch.library.Library("holdfast", "DEF")
for op, fake in ((layer, fake_layer), (layer_backward, fake_layer_backward)):
    schema = torch.library.infer_schema(op, mutates_args=())
    LIBRARY.define(op.__name__ + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(op.__name__, op, "CompositeExplicitAutograd")
    torch.library.register_fake(f"holdfast::{op.__name__}", fake, lib=LIBRARY)
LIBRARY.impl("layer", differentiable_layer, "Autograd")
