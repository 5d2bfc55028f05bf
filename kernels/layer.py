"""One layer over a whole sequence, forwards and backwards: GEMMs around a persistent time loop.

Forwards: one GEMM for the input projection of all steps, then the loop. Backwards: the loop, then
GEMMs and sums over all steps for the weights and the input; no atomics, so the same bits every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .alignment import aligned_rows, empty, strides
from .arguments import (
    cast_to,
    dropout_of,
    given_or_zeros,
    options_of,
    sent_initial,
    sent_reset,
    strided,
    walk_bits_of,
    weights_of,
)
from .cell_spec import find_cell
from .channel import fill_channel
from .chunks import chunks, each_direction, in_float32, states_before
from .config import Config
from .extras import Extras, as_step_of_y, as_steps_of_y
from .gemm import (
    ALL,
    History,
    LayerWeights,
    Wanted,
    WeightGradients,
    gradients_of_weights,
    project_input,
    project_state,
)
from .kept import Keep, saved_tiles
from .launch import launch
from .loop.groups import ABSENT, LayerGradients, Outputs, Past, States, StepGradients, Strided
from .problem import Problem
from .results import Residuals, allocate, fill, needs_of
from .stall import raise_if_stalled

PLAIN = Extras()


class Gradients(NamedTuple):
    """None, or an empty tuple, for what nobody asked for."""

    x: torch.Tensor | None
    weights: list[WeightGradients]
    initial: tuple[torch.Tensor, ...]
    reset_state: tuple[torch.Tensor, ...] = ()


def run_layer(
    problem: Problem,
    config: Config,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None = None,
    *,
    batch_first: bool = False,
    reverse: bool = False,
    extras: Extras = PLAIN,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """`forward_layer` for inference: y and the final states."""
    options: dict[str, Any] = {"batch_first": batch_first, "reverse": reverse, "extras": extras}
    y, final, _ = forward_layer(problem, config, x, weights, initial, **options)
    return y, final


def forward_layer(
    problem: Problem,
    config: Config,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None = None,
    *,
    batch_first: bool = False,
    reverse: bool = False,
    keep: Keep = "nothing",
    extras: Extras = PLAIN,
    noted: list[dict[str, Any]] | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], Residuals]:
    """One layer over a whole sequence.

    x:        [T, B, I], or [B, T, I] with batch_first; any strides. Packed (`extras.starts`): [rows, I].
    weights:  one per direction.
    initial:  one tensor [D, B, H] per state of the cell, h first; None for zeros.
    reverse:  a single direction walks from T - 1 to 0. With two, the second always does.
    extras:   lengths, resets and what else the loop does; `problem.features` must name the same.
    noted:    a list that gets the groups of every launch.

    Returns y [T, B, D * H] (packed: [rows, D * H]), contiguous, one final state [D, B, H] per state, and what the
    backward pass needs; all in `problem.dtype`, to which x, weights and initial states are cast. A long, wide call is
    projected in chunks of steps (see `chunks`).

    Raises StalledError if an earlier launch on the device gave up a wait, and NotResidentError.
    """
    x, weights, initial = cast_to(problem, x, weights, initial)
    extras = extras.cast(problem.dtype)
    needs = needs_of(problem, config, keep)
    rows = (x.shape[1], x.shape[0]) if batch_first and extras.starts is None else x.shape[:-1]
    directions, (steps, batch_size) = len(weights), extras.extent(rows)
    width = directions * problem.hidden_size
    y, final, residuals = allocate(needs, x, (*rows, width), (directions, batch_size, problem.hidden_size))
    if batch_size == 0:
        return y, final, residuals
    waits = needs.waits_for(steps)
    if waits or extras.lengths is not None:
        fill(y, residuals, extras, waits=waits)
    layer = weights_of(weights, with_bias=True)

    def walk(gx: torch.Tensor, states: States, out: Outputs, extras: Extras, steps: int, walk_bits: int) -> None:
        groups = {
            "gx": strided(gx, extras),
            "layer": layer,
            "states": states,
            "out": out,
            "dropout": dropout_of(extras),
            **options_of(extras, width),
            "T": steps,
            "B": batch_size,
            "walk_bits": walk_bits,
        }
        if extras.reset_state is not None:
            groups["resets"] = groups["resets"]._replace(sent=sent_reset(extras))
        if noted is not None:
            noted.append(groups)
        launch(problem, config, x.device, groups)

    out = Outputs(y, residuals.kept or None, residuals.saved, residuals.inner, residuals.sent)
    walk_bits = walk_bits_of(directions, reverse)
    parts = chunks(problem, extras, steps, batch_size, projections=1)
    if not parts:
        gx = project_input(problem, x, weights, batch_first=batch_first)
        states = States(as_steps_of_y(initial), final, sent_initial(extras, initial))
        walk(gx, states, out, extras, steps, walk_bits)
    for direction, bits, in_order in each_direction(parts, walk_bits, directions):
        carried, own = in_float32(initial, final), [weights[direction]]
        for part in in_order:
            h = as_step_of_y(carried[0].to(problem.dtype))
            states = States(as_steps_of_y(carried), in_float32(None, final), h)
            gx = project_input(problem, part.of(x, dim=int(batch_first)), own, batch_first=batch_first)
            walk(gx, states, Outputs(*map(part.of, out)), part.extras, part.steps, bits)
            carried = states.final
        for whole, of_direction in zip(final, carried, strict=True):
            whole[direction] = of_direction[direction]
    return y, final, residuals


def backward_layer(
    problem: Problem,
    config: Config,
    x: torch.Tensor,
    weights: Sequence[LayerWeights],
    initial: Sequence[torch.Tensor] | None,
    y: torch.Tensor,
    residuals: Residuals,
    dy: torch.Tensor | None,
    d_final: Sequence[torch.Tensor | None],
    *,
    batch_first: bool = False,
    reverse: bool = False,
    wanted: Wanted = ALL,
    extras: Extras = PLAIN,
    noted: list[dict[str, Any]] | None = None,
) -> Gradients:
    """Gradients of `forward_layer`'s x, weights, initial and reset states, from those of y and the final states.

    y, residuals:  what `forward_layer` returned with keep="save" or "recompute".
    dy:            as y, any strides, or None where nothing used y.
    d_final:       one [D, B, H] per state, or None for each that nothing used.
    wanted:        which of all gradients are computed; of initial and reset states only where such are given.
    noted:         a list that gets the groups of every launch.
    """
    x, weights, initial = cast_to(problem, x, weights, initial)
    extras = extras.cast(problem.dtype)
    cell = find_cell(problem.cell)
    directions, hidden = len(weights), problem.hidden_size
    width = directions * hidden
    steps, batch_size = extras.extent(y.shape)

    def of_states() -> tuple[torch.Tensor, ...]:
        return tuple([empty(y, (directions, batch_size, hidden)) for _ in range(cell.states)])

    d_initial = of_states() if initial is not None and wanted.initial else None
    d_reset = of_states() if extras.reset_state is not None and wanted.reset_state else None
    da = empty(y, (*y.shape[:-1], cell.gates * width))
    dx = torch.empty_like(da) if cell.split_gradient and wanted.of_input else None
    d_parameters = None
    if cell.parameters and wanted.parameters:
        tiles = (batch_size + config.BLOCK_B - 1) // config.BLOCK_B
        d_parameters = y.new_empty(tiles, directions, cell.parameters, hidden, dtype=torch.float32)
    history = History(y if residuals.sent is None else residuals.sent, residuals.inner, initial, extras, reverse)
    layer, walk_bits = weights_of(weights, with_bias=False), walk_bits_of(directions, reverse)

    def walk(
        dy: torch.Tensor | None,
        gradients: LayerGradients,
        past: Past,
        projected: tuple[torch.Tensor, torch.Tensor] | None,
        out: StepGradients,
        extras: Extras,
        steps: int,
        walk_bits: int,
    ) -> None:
        gx, ga = projected or (None, None)
        groups = {
            # A direction's part of dy lies beside the other's, as in y.
            "dy": strided(dy, extras)._replace(direction=None),
            "gradients": gradients,
            "layer": layer,
            "past": past,
            "gx": strided(gx, extras),
            "ga": ABSENT[Strided] if ga is None else Strided(ga, strides(ga)[0]),
            "out": out,
            "dropout": dropout_of(extras),
            **options_of(extras, width),
            "T": steps,
            "B": batch_size,
            "walk_bits": walk_bits,
        }
        if noted is not None:
            noted.append(groups)
        launch(problem, config, y.device, groups)

    if batch_size == 0:
        da.zero_()
    else:
        if dy is not None:
            dy = aligned_rows(dy.to(problem.dtype))
        waits = config.regime == "cooperative" and config.exchange == "dataflow"
        fill_channel(da, extras, sentinel=waits)
        if dx is not None:
            fill_channel(dx, extras, sentinel=False)
        past = Past(as_steps_of_y(initial), y, residuals.kept or None, residuals.saved)
        out = StepGradients(da, dx)
        again = residuals.saved is None and saved_tiles(problem) > 0
        # Sums over all steps of a cell's own numbers would round otherwise in chunks.
        parts = chunks(problem, extras, steps, batch_size, projections=2) if again and d_parameters is None else []
        if not parts:
            projected = None
            if again:
                gx = project_input(problem, x, weights, batch_first=batch_first)
                projected = gx, project_state(problem, weights, history)
            gradients = LayerGradients(given_or_zeros(d_final, y.dtype), d_initial, d_reset, d_parameters)
            walk(dy, gradients, past, projected, out, extras, steps, walk_bits)
        for direction, bits, in_order in each_direction(parts, walk_bits, directions):
            like = of_states()
            carried = in_float32(given_or_zeros(d_final, y.dtype), like)
            begun = past.initial or [as_step_of_y(torch.zeros_like(state)) for state in like]
            own = [weights[direction]]
            for part in reversed(in_order):
                back = walk_bits >> direction & 1 == 1
                started = states_before(part, (y, *residuals.kept), begun, extras.lengths, back=back)
                there = [state.transpose(0, 1) for state in started]
                past_h = History(part.of(history.sent), part.of(history.inner), there, part.extras, reverse)
                gx = project_input(problem, part.of(x, dim=int(batch_first)), own, batch_first=batch_first)
                projected = gx, project_state(problem, weights, past_h, [direction])
                gradients = LayerGradients(carried, in_float32(None, like))
                seen, into = Past(started, *map(part.of, past[1:])), StepGradients(*map(part.of, out))
                walk(part.of(dy), gradients, seen, projected, into, part.extras, part.steps, bits)
                carried = gradients.initial
            for whole, of_direction in zip(d_initial or (), carried, strict=False):
                whole[direction] = of_direction[direction]
    grad_x, of_weights = gradients_of_weights(
        problem, x, weights, history, da, da if dx is None else dx, batch_first=batch_first, wanted=wanted
    )
    if d_parameters is not None:
        summed = (own.sum(0).to(problem.dtype) for own in d_parameters.unbind(1))
        of_weights = [w._replace(parameters=own) for w, own in zip(of_weights, summed, strict=True)]
    if config.regime == "cooperative":
        raise_if_stalled(y.device)  # nothing may be launched after a backward pass that would say so
    return Gradients(grad_x, of_weights, d_initial or (), d_reset or ())
