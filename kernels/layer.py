"""One layer over a whole sequence, forwards and backwards: GEMMs around a persistent time loop.

Forwards: one GEMM for the input projection of all steps, then the loop. Backwards: the loop, then
GEMMs and sums over all steps for the weights and the input; no atomics, so the same bits every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from .cell_spec import find_cell
from .channel import fill_channel, without_sentinel
from .config import Config
from .describe import saved_tiles
from .extras import Extras, as_steps_of_y, is_one_number
from .gemm import History, LayerWeights, gradients_of_weights, project_input, project_state
from .launch import launch
from .problem import Problem

Keep = Literal["nothing", "save", "recompute"]
"""What a forward pass keeps for the backward pass: nothing; the gate values of every step ("save");
or only what cannot be had again by one GEMM, an LSTM's cell states ("recompute")."""

PLAIN = Extras()


class Residuals(NamedTuple):
    """What the backward pass needs besides inputs and outputs; all laid out as y."""

    kept: tuple[torch.Tensor, ...]
    """The later states of every step, H wide for each direction: c for an LSTM."""

    saved: torch.Tensor | None
    """v of every step, SAVED * H wide for each direction; None where it is worked out again."""

    inner: torch.Tensor | None = None
    """What the second product of a step multiplied; None for a cell with one product."""

    sent: torch.Tensor | None = None
    """h times the dropout factors; None without them."""


class Gradients(NamedTuple):
    x: torch.Tensor | None
    weights: list[LayerWeights]
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
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], Residuals]:
    """One layer over a whole sequence.

    x:        [T, B, I], or [B, T, I] with batch_first; any strides. Packed (`extras.starts`): [rows, I].
    weights:  one per direction.
    initial:  one tensor [D, B, H] per state of the cell, h first; None for zeros.
    reverse:  a single direction walks from T - 1 to 0. With two, the second always does.
    extras:   lengths, resets and what else the loop does; `problem.features` must name the same.

    Returns y [T, B, D * H] (packed: [rows, D * H]), contiguous, one final state [D, B, H] per state, and what the
    backward pass needs; all in `problem.dtype`, to which x, weights and initial states are cast.

    Raises StalledError if an earlier launch on the device gave up a wait, and NotResidentError.
    """
    x, weights, initial = _cast(problem, x, weights, initial)
    extras = extras.cast(problem.dtype)
    gx = project_input(problem, x, weights, batch_first=batch_first)
    cell = find_cell(problem.cell)
    directions, hidden = len(weights), problem.hidden_size
    steps, batch_size = extras.extent(gx[0])
    width = directions * hidden
    y = gx.new_empty(*gx.shape[1:-1], width)
    final = tuple(gx.new_empty(directions, batch_size, hidden) for _ in range(cell.states))
    kept = () if keep == "nothing" else tuple(torch.empty_like(y) for _ in range(cell.states - 1))
    residuals = Residuals(
        kept,
        _saved(problem, y, width) if keeps_values(problem, keep) else None,
        torch.empty_like(y)
        if cell.inner is not None and (keep != "nothing" or config.regime == "cooperative")
        else None,
        torch.empty_like(y)
        if extras.dropout is not None and (keep != "nothing" or config.regime == "cooperative")
        else None,
    )
    if batch_size == 0:
        return y, final, residuals
    channels = [y if residuals.sent is None else residuals.sent]
    channels += [] if residuals.inner is None else [residuals.inner]
    # In a single step of one product nobody reads what the team publishes.
    waits = config.regime == "cooperative" and config.exchange == "dataflow" and (steps > 1 or cell.inner is not None)
    for tensor in (y, *kept, residuals.inner, residuals.sent):
        if tensor is not None:
            fill_channel(tensor, extras, sentinel=waits and any(tensor is channel for channel in channels))
    biases = [w.b_hh for w in weights if w.b_hh is not None]
    sent_initial, sent_reset = _sent_states(initial, extras)
    tensors = {
        **_strided("gx", gx, extras),
        "w_hh": tuple(w.w_hh.contiguous() for w in weights),
        "b_hh": tuple(b.contiguous() for b in biases) or None,
        "parameters": _parameters(weights),
        "initial": as_steps_of_y(initial),
        "final": final,
        "y_ptr": y,
        "kept": kept or None,
        "saved_ptr": residuals.saved,
        "inner_ptr": residuals.inner,
        "sent_ptr": residuals.sent,
        "sent_initial_ptr": sent_initial,
        "sent_reset_ptr": sent_reset,
        **_extra_arguments(extras, width),
        "T": steps,
        "B": batch_size,
        "reverse_bits": _reverse_bits(directions, reverse),
    }
    launch(problem, config, gx.device, tensors)
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
    needs_dx: bool = True,
    extras: Extras = PLAIN,
) -> Gradients:
    """Gradients of `forward_layer`'s x, weights, initial and reset states, from those of y and the final states.

    y, residuals:  what `forward_layer` returned with keep="save" or "recompute".
    dy:            as y, any strides, or None where nothing used y.
    d_final:       one [D, B, H] per state, or None for each that nothing used.
    """
    x, weights, initial = _cast(problem, x, weights, initial)
    extras = extras.cast(problem.dtype)
    cell = find_cell(problem.cell)
    directions, hidden = len(weights), problem.hidden_size
    width = directions * hidden
    steps, batch_size = extras.extent(y)
    d_initial = tuple(y.new_empty(directions, batch_size, hidden) for _ in range(cell.states))
    d_reset = None if extras.reset_state is None else tuple(torch.empty_like(state) for state in d_initial)
    da = y.new_empty(*y.shape[:-1], cell.gates * width)
    dx = torch.empty_like(da) if cell.split_gradient else None
    d_parameters = None
    if cell.parameters:
        tiles = (batch_size + config.BLOCK_B - 1) // config.BLOCK_B
        d_parameters = y.new_empty(tiles, directions, cell.parameters, hidden, dtype=torch.float32)
    history = History(y if residuals.sent is None else residuals.sent, residuals.inner, initial, extras, reverse)
    if batch_size == 0:
        da.zero_()
    else:
        gx = ga = None
        if residuals.saved is None and saved_tiles(problem):
            gx = project_input(problem, x, weights, batch_first=batch_first)
            ga = project_state(problem, weights, history)
        if dy is not None:
            dy = dy.to(problem.dtype)
            dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        waits = config.regime == "cooperative" and config.exchange == "dataflow"
        fill_channel(da, extras, sentinel=waits)
        if dx is not None:
            fill_channel(dx, extras, sentinel=False)
        tensors = {
            **_strided("dy", dy, extras),
            "d_final": _given_or_zeros(d_final, d_initial),
            "d_initial": d_initial,
            "d_reset": d_reset,
            "d_parameters_ptr": d_parameters,
            "w_hh": tuple(w.w_hh.contiguous() for w in weights),
            "parameters": _parameters(weights),
            "initial": as_steps_of_y(initial),
            "y_ptr": y,
            "kept": residuals.kept or None,
            "saved_ptr": residuals.saved,
            **_strided("gx", gx, extras),
            "stride_gxd": 0 if gx is None else gx.stride(0),
            "ga_ptr": ga,
            "stride_gad": 0 if ga is None else ga.stride(0),
            "da_ptr": da,
            "dx_ptr": dx,
            **_extra_arguments(extras, width),
            "T": steps,
            "B": batch_size,
            "reverse_bits": _reverse_bits(directions, reverse),
        }
        launch(problem, config, y.device, tensors)
    grad_x, of_weights = gradients_of_weights(
        problem, x, weights, history, da, da if dx is None else dx, batch_first=batch_first, needs_dx=needs_dx
    )
    if d_parameters is not None:
        summed = (own.sum(0).to(problem.dtype) for own in d_parameters.unbind(1))
        of_weights = [w._replace(parameters=own) for w, own in zip(of_weights, summed, strict=True)]
    return Gradients(grad_x, of_weights, d_initial, d_reset or ())


def keeps_values(problem: Problem, keep: Keep) -> bool:
    """Whether v of every step is kept. A cell with two products always keeps it: its second product multiplies
    something that no single GEMM brings back."""
    if not saved_tiles(problem) or keep == "nothing":
        return False
    return keep == "save" or find_cell(problem.cell).inner is not None


def _saved(problem: Problem, y: torch.Tensor, width: int) -> torch.Tensor:
    return y.new_empty(*y.shape[:-1], saved_tiles(problem) * width)


def _strided(name: str, tensor: torch.Tensor | None, extras: Extras) -> dict[str, Any]:
    """A tensor [.., T, B, n] or [.., rows, n] and its strides, under the kernels' names."""
    leading = {f"stride_{name}d": 0 if tensor is None else tensor.stride(0)} if name == "gx" else {}
    if tensor is None:
        return {f"{name}_ptr": None, **leading, f"stride_{name}t": 0, f"stride_{name}b": 0}
    over_time = 0 if extras.starts is not None else tensor.stride(-3)
    return {f"{name}_ptr": tensor, **leading, f"stride_{name}t": over_time, f"stride_{name}b": tensor.stride(-2)}


def _extra_arguments(extras: Extras, width: int) -> dict[str, Any]:
    one_number = extras.zoneout is not None and all(is_one_number(share) for share in extras.zoneout)
    zones = extras.zoneout
    if zones is not None and not one_number:
        zones = tuple(share.contiguous() for share in zones)
    return {
        "lengths_ptr": extras.lengths,
        "starts_ptr": extras.starts,
        "resets_ptr": extras.resets,
        "reset_state": as_steps_of_y(extras.reset_state),
        "dropout_ptr": None if extras.dropout is None else extras.dropout.transpose(0, 1).contiguous(),
        "zones": None if zones is None else tuple(zones),
        "stride_zone_row": 0 if one_number else width,
        "stride_zone_unit": 0 if one_number else 1,
    }


def _sent_states(
    initial: Sequence[torch.Tensor] | None, extras: Extras
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """h_0 and the reset state's h as they go through W_hh, where that is not what they are."""
    sent_initial = None
    if initial is not None and extras.dropout is not None:
        sent_initial = (initial[0] * extras.dropout).transpose(0, 1).contiguous()
    sent_reset = None
    if extras.reset_state is not None:
        h = extras.reset_state[0] if extras.dropout is None else extras.reset_state[0] * extras.dropout
        sent_reset = without_sentinel(h.transpose(0, 1).contiguous())
    return sent_initial, sent_reset


def _parameters(weights: Sequence[LayerWeights]) -> tuple[torch.Tensor, ...] | None:
    given = [w.parameters for w in weights if w.parameters is not None]
    return tuple(p.contiguous() for p in given) or None


def _given_or_zeros(
    gradients: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...] | None:
    """One tensor each, or None where all are."""
    if all(gradient is None for gradient in gradients):
        return None
    return tuple(
        torch.zeros_like(other) if gradient is None else gradient.to(other.dtype).contiguous()
        for gradient, other in zip(gradients, like, strict=True)
    )


def _cast(
    problem: Problem, x: torch.Tensor, weights: Sequence[LayerWeights], initial: Sequence[torch.Tensor] | None
) -> tuple[torch.Tensor, list[LayerWeights], tuple[torch.Tensor, ...] | None]:
    dtype = problem.dtype
    cast = [LayerWeights(*(None if t is None else t.to(dtype) for t in w)) for w in weights]  # type: ignore[arg-type]
    return x.to(dtype), cast, None if initial is None else tuple(state.to(dtype) for state in initial)


def _reverse_bits(directions: int, reverse: bool) -> int:
    return 0b10 if directions == 2 else int(reverse)
