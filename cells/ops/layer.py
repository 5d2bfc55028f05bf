"""The kernels as torch ops, `holdfast::layer` and `holdfast::layer_backward`: one layer over a whole sequence.

As ops with a schema, a fake kernel and a registered derivative they pass through torch.compile, torch.export and
autograd. Neither writes to an input nor returns a view of one. The config is chosen when an op runs, not when it is
traced, so a compiled graph serves every length and batch size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...autotune import current_mode
from ...kernels.extras import Extras, is_one_number
from ...kernels.given import GivenBackwards
from ...kernels.problem import Phase, Problem
from ...kernels.refused import FailedFirstUseError
from ..backend import current_backend
from ..call.surroundings import interpreting
from .derivative import differentiable_layer, plain_gradients
from .options import Options, dtype_named, schema, told, told_wanted
from .plain import plain_layer

if TYPE_CHECKING:
    from ...kernels.again import BackwardAgain, ForwardAgain
    from ...kernels.config import Config
    from ...kernels.gemm import Wanted
    from ...kernels.kept import Keep
    from ...kernels.layer import Gradients, LayerWeights


def layer(x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor | None], *arguments: Any) -> list[Tensor]:
    """Run one layer of a recurrent network on a kernel.

    x:        [T, B, I], or [B, T, I] with batch_first; any strides. Packed: [rows, I].
    weights:  w_ih [G*H, I], w_hh [G*H, H / heads] and, or not, b_ih, b_hh [G*H], and the cell's own numbers [P, H]
              where it has any, of each direction in turn (G gates).
    initial:  a tensor [directions, B, H] per state of the cell, h first; a None each for zeros.
    arguments: `Options`; keep, see `kernels.layer.Keep`; `Extras`.

    Returns y [T, B, directions*H] (packed: [rows, directions*H]), a final state [directions, B, H] per state, then
    what the backward pass needs besides inputs and y: nothing with keep="nothing", which makes it impossible. Only y
    and the final states have gradients.

    A kernel that fails its first use leaves the call, which may be of a compiled graph, to plain torch ops.

    Raises RuntimeError where this device has no kernel for the problem, ValueError where no kernel has the dtype.
    """
    options, keep, extras = told(arguments)
    try:
        return run_forward(x, weights, initial, options, keep, extras)
    except FailedFirstUseError as error:
        _may_fall_back(error, x.device)
        results = plain_layer(x, weights, none_or_all(initial) or (), options, dtype_named(options.dtype), extras)
        # Shaped as the graph expects them; the backward pass goes through plain ops as well and reads none.
        return results + [t.zero_() for t in fake_layer(x, weights, initial, *arguments)[len(results) :]]


def _may_fall_back(error: FailedFirstUseError, device: torch.device) -> None:
    """Remember the refusal. Raises it where the config is pinned, or nothing but kernels is allowed."""
    if not _select().refuse(error, device) or current_backend() == "triton":
        raise error


def run_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor | None],
    options: Options,
    keep: Keep,
    extras: Extras,
    notes: list[ForwardAgain | None] | None = None,
) -> list[Tensor]:
    """`layer` with its arguments in their records; notes: gets what repeats the call, None where nothing can."""
    states = none_or_all(initial)
    problem, config = _chosen(x, weights, options, extras, "forward", keep, (states is not None,))
    launches: list[dict[str, Any]] | None = None if notes is None else []
    own, batch_first = by_direction(weights, options.directions), options.batch_first
    more = {"batch_first": batch_first, "keep": keep, "extras": extras, "noted": launches}
    y, final, residuals = results = _kernels().forward_layer(problem, config, x, own, states, **more)
    if notes is not None:
        from ...kernels.again import ForwardAgain, noted

        notes.append(noted(ForwardAgain, launches or (), problem, config, keep, weights, results, batch_first))
    if keep == "nothing":
        return [y, *final]
    _select().remember_pin(y)
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
    options, needs_dx, extras = told(arguments)
    wanted = needs_dx, *flags_of(told_wanted(arguments), len(weights) + len(initial) + len(extras.reset_state or ()))
    # Of a forward pass that failed its first use: it kept nothing that a kernel could go on with.
    if not _select().failed_here(options.problem(x, weights, extras, "forward"), x.device):
        try:
            given = GivenBackwards(x, weights, initial, y, residuals, dy, d_final)
            return _of_op(run_backward(given, options, extras, wanted))
        except FailedFirstUseError as error:
            _may_fall_back(error, x.device)
    return _of_op(plain_gradients(x, weights, initial, dy, d_final, options, extras, wanted))


def _of_op(gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """As the op returns them: those that are, that of x last."""
    dx, *each = gradients
    return [gradient for gradient in (*each, dx) if gradient is not None]


def run_backward(
    given: GivenBackwards,
    options: Options,
    extras: Extras,
    wanted: Sequence[bool],
    notes: list[BackwardAgain | None] | None = None,
) -> list[Tensor | None]:
    """`layer_backward` with its arguments in their records: the gradients of x, the weights, the initial states and the
    reset state, None for those that are not wanted; notes: as for `run_forward`."""
    kernels, pin_of = _kernels(), _select().pin_of
    x, weights, initial, y, residuals, dy, d_final = given
    spec, rest, reset_state = kernels.find_cell(options.cell), list(residuals), extras.reset_state or ()
    sent = rest.pop() if extras.dropout is not None else None
    inner = rest.pop() if spec.inner is not None else None
    saved = rest.pop() if len(rest) == spec.states else None
    kept = kernels.Residuals(tuple(rest), saved, inner, sent)
    keep: Keep = "recompute" if saved is None else "save"
    own, batch_first = by_direction(weights, options.directions), options.batch_first
    of_kinds = _wanted(tuple(wanted), len(weights), len(initial), options.directions)
    there = bool(initial), dy is not None, tuple([d is not None for d in d_final]), of_kinds
    pin = pin_of(y)
    if pin is None:
        problem, config = _chosen(x, weights, options, extras, "backward", keep, there)
    else:
        problem, config = options.problem(x, weights, extras, "backward"), pin
        with _select().pinned(pin):
            _try(problem, config, keep, weights, options, extras, there, x.device)
    launches: list[dict[str, Any]] | None = None if notes is None else []
    more = {"batch_first": batch_first, "wanted": of_kinds, "extras": extras, "noted": launches}
    found = kernels.backward_layer(problem, config, x, own, initial or None, y, kept, dy, d_final, **more)
    if notes is not None:
        from ...kernels.again import BackwardAgain, noted

        notes.append(noted(BackwardAgain, launches or (), problem, config, given, of_kinds, batch_first))
    like = (x, *weights, *initial, *reset_state)
    gradients = flat(found, own, len(initial), len(reset_state))
    return [
        g if g is None or g.dtype is t.dtype else g.to(t.dtype)
        for g, t in zip(only(wanted, gradients), like, strict=True)
    ]


def flat(found: Gradients, weights: Sequence[LayerWeights], initial: int, reset_state: int = 0) -> list[Tensor | None]:
    """All gradients as `run_backward` returns them, wanted or not; initial, reset_state: how many there are."""
    of_weights = [g for of_w, w in zip(found.weights, weights) for g, t in zip(of_w, w) if t is not None]  # noqa: B905  0.5 us
    return [found.x, *of_weights, *(found.initial or (None,) * initial), *(found.reset_state or (None,) * reset_state)]


def only(wanted: Sequence[bool], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What is wanted in any direction is computed in both."""
    return [gradient if asked else None for gradient, asked in zip(gradients, wanted)]  # noqa: B905  0.2 us


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
    wanted = flags_of(told_wanted(arguments), len(tensors))
    gradients = [t.new_empty(t.shape) for t, asked in zip(tensors, wanted, strict=True) if asked]
    if needs_dx:
        dx = x.new_empty(*y.shape[:-1], x.shape[-1])
        gradients.append(dx.transpose(0, 1) if options.batch_first and extras.starts is None else dx)
    return gradients


def flags_of(bits: int, count: int) -> tuple[bool, ...]:
    return tuple([bool(bits >> index & 1) for index in range(count)])


@lru_cache(maxsize=1024)
def _wanted(flags: tuple[bool, ...], weights: int, initial: int, directions: int) -> Wanted:
    """The flags of x and so many weights, initial and reset states as the kernels take them, a weight's in any
    direction."""
    needs_dx, of_weights, of_states = flags[0], by_direction(flags[1 : 1 + weights], directions), flags[1 + weights :]
    of_each = map(any, zip(*of_weights, strict=True))
    return _kernels().Wanted(needs_dx, *of_each, any(of_states[:initial]), any(of_states[initial:]))


def none_or_all(initial: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The initial states, or None where they are zeros."""
    # Not an empty list for zeros: AOTInductor hands that on as None, which the schema refuses.
    return None if any([state is None for state in initial]) else cast("list[Tensor]", initial)


def by_direction(weights: Sequence[Any], directions: int) -> list[LayerWeights]:
    """The flat weights of a layer, or something else for each, as one LayerWeights per direction."""
    make = _kernels().LayerWeights
    if len(weights) == 4 and directions == 1:
        return [make(*weights)]
    each = len(weights) // directions
    found = []
    for start in range(0, len(weights), each):
        w_ih, w_hh, *rest = weights[start : start + each]
        # Biases come in pairs: an odd one is the cell's own numbers.
        own = rest.pop() if len(rest) % 2 else None
        b_ih, b_hh = rest or (None, None)
        found.append(make(w_ih, w_hh, b_ih, b_hh, own))
    return found


def _chosen(
    x: Tensor,
    weights: Sequence[Tensor],
    options: Options,
    extras: Extras,
    phase: Phase,
    keep: Keep,
    there: tuple[Any, ...],
) -> tuple[Problem, Config]:
    """What a layer's kernel computes, and the config that it runs with here and now, tried before its first use.

    there:  of `trial.There`, from `initial` on, without `one_zone`.
    """
    select, device = _select(), x.device
    in_reach, steps = device.type == "cuda" or interpreting(), options.steps(x, extras)
    sizes = weights[1].shape, options.batch_size(x, extras), select.length_class(steps)
    kind = len(weights), extras.zoneout is not None and is_one_number(extras.zoneout[0]), there
    key = (options, sizes, phase, keep, extras.features, device, in_reach, kind, select.settings())
    found = _choices.get(key)
    if found is not None:
        return found
    if not in_reach:
        raise RuntimeError(f"holdfast's kernels run on a GPU, or on a CPU inside the interpreter; x is on {device}")
    problem = options.problem(x, weights, extras, phase)
    plan = select.select(problem, device, keep=keep, length=steps, may_tune=True)
    if plan.config is None:
        for reason in plan.reasons:
            if reason.name == FailedFirstUseError.reason:
                config = select.select(problem, device, keep=keep, length=steps, refused_too=True).config
                raise FailedFirstUseError(reason.message, problem, config)
        raise RuntimeError(f"no kernel on {device} for this call, which was planned or compiled elsewhere:\n{plan}")
    _try(problem, plan.config, keep, weights, options, extras, there, device)
    if current_mode() != "tune-on-miss":  # which asks at every call, until it is settled
        if len(_choices) >= MOST_CHOICES:
            _choices.clear()
        _choices[key] = problem, plan.config
    return problem, plan.config


def _try(
    problem: Problem,
    config: Config,
    keep: Keep,
    weights: Sequence[Tensor],
    options: Options,
    extras: Extras,
    there: tuple[Any, ...],
    device: torch.device,
) -> None:
    """`trial.try_once`, where a kernel has to have been tried."""
    if _select().has_to_be_tried():
        from .trial import there_of, try_once

        try_once(problem, config, keep, options, there_of(weights, options.directions, extras, *there), device)


MOST_CHOICES = 4096

_choices: dict[Hashable, tuple[Problem, Config]] = {}
"""By everything that they follow from, so that none goes stale."""


@cache
def _kernels() -> ModuleType:
    """`kernels.layer`, which imports Triton; once, as an import statement takes half a microsecond at every call."""
    from ...kernels import layer

    return layer


@cache
def _select() -> ModuleType:
    from ...autotune import select

    return select


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
