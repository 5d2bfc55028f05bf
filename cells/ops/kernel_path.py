"""The kernel path of a whole module: its layers one after another, dropout between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.extras import Extras
from ...kernels.packed_rows import PackedRows
from ..call.eligibility import ELMAN
from ..call.records import Call, Decision, Layers
from ..call.surroundings import watched
from ..eager.activations import find_activation
from ..eager.noise import Noise, draw
from ..eager.reference import reference_of
from ..gates import detached
from .again import Layer, repeated
from .derivative import Route, run_unwatched
from .layer import run_backward, run_forward
from .options import DTYPE_NAMES, Options
from .projection import Projected

DIRECT = Route(run_forward, run_backward)


def run_kernels(
    call: Call, decision: Decision, traces: list[dict[str, Tensor]] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call on the kernels.

    traces:  a list that gets for each layer what every gate and state was, by name, [T, B, D*H], detached.

    Returns (y, finals): y [T, B, D*H], or [B, T, D*H] as a view where the layers are batch_first, or packed rows, and
    per state a tensor [layers*D, B, H], all in the kernels' dtype (under autocast that of autocast).
    """
    if decision.notes and traces is None and (found := repeated(call, decision)) is not None:
        return found
    layers, loop = call.layers, decision.loop
    assert loop is not None
    directions, each = loop.directions, loop.directions * layers.weights_each
    dtype_name = DTYPE_NAMES[loop.dtype]
    seen = watched()
    notes: list[Any] | None = None if decision.notes is None or decision.notes or seen else []
    noise = draw(call) if layers.noisy else None
    plain = Extras(call.lengths, None, call.resets) if call.batch_sizes is None else _packed(call)
    x, batch_first = call.x, layers.batch_first and plain.starts is None
    finals: list[Sequence[Tensor]] = []
    of_layers: list[Options] = []
    for layer in range(layers.num_layers):
        rows = slice(layer * directions, (layer + 1) * directions)
        weights: Sequence[Tensor] = layers.weights[layer * each : (layer + 1) * each]
        initial: list[Tensor] | None = None if call.hx is None else [state[rows] for state in call.states] or None
        extras = plain
        if call.reset_hx is not None:
            extras = extras._replace(reset_state=[state[rows] for state in call.reset_states])
        if noise is not None:
            dropout, zoneout = _masks(noise[layer])
            extras = extras._replace(dropout=dropout, zoneout=zoneout)
        projected = None
        if layers.proj_size > 0:
            x = x.transpose(0, 1) if batch_first else x
            batch_first = False
            projected = Projected(x, weights, initial, extras, directions, loop.dtype)
            x, weights, initial, extras = projected.as_plain()
        options = Options(loop.cell, directions, batch_first, dtype_name, loop.precision)
        of_layers.append(options)
        results: Sequence[Tensor]
        if seen:
            results = torch.ops.holdfast.layer.default(
                x,
                weights,
                initial or [None] * layers.n_states,
                *options,
                decision.keep,
                *(extras if loop.features else ()),
            )
        else:
            keep = decision.keep
            route = DIRECT if notes is None else Route(partial(run_forward, notes=notes), run_backward)
            results = run_unwatched(route, x, weights, initial or (), layers.n_states, options, keep, extras)
        y, final = results[0], results[1 : 1 + layers.n_states]
        if projected is not None:
            y, final = projected.outputs(y, final)
        if traces is not None:
            traces.append(_trace(layers, y, results[1 + layers.n_states :], extras))
        x = y
        finals.append(final)
        batch_first = False
        if layer < layers.num_layers - 1 and layers.training and layers.dropout > 0:
            x = F.dropout(x, layers.dropout, training=True)
    if notes is not None:
        decision.notes[:] = [None] if None in notes else map(Layer, notes, of_layers)  # type: ignore[index]
    y = x.transpose(0, 1) if layers.batch_first and plain.starts is None else x
    if len(finals) == 1:
        return y, tuple(finals[0])
    return y, tuple([torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True)])


def _packed(call: Call) -> Extras:
    """Of a packed call the lengths, and how many rows lie before those of each time, on the device of x."""
    sizes = call.batch_sizes
    assert sizes is not None
    starts = sizes.cumsum(0) - sizes
    lengths = (sizes > torch.arange(int(sizes[0]))[:, None]).sum(1)
    device = call.x.device
    return Extras(lengths.to(device, non_blocking=True), starts.to(device, non_blocking=True))


def _masks(noise: Noise) -> tuple[Tensor | None, list[Tensor] | None]:
    """Noise as `Extras` has it: a share for every state, or none."""
    given = [share for share in noise.zoneout if share is not None]
    if not given:
        return noise.dropout, None
    none = given[0].new_zeros(()).expand(given[0].shape)
    return noise.dropout, [none if share is None else share for share in noise.zoneout]


def _trace(layers: Layers, y: Tensor, residuals: Sequence[Tensor], extras: Extras) -> dict[str, Tensor]:
    """Every gate and state of a layer by name, from what it kept with keep="save"."""
    reference = reference_of(layers.cell)
    later = layers.n_states - 1
    found: dict[str, Tensor] = {}
    if layers.cell in ELMAN:
        # An RNN keeps only what zoneout needs, h before its nonlinearity.
        activation = find_activation(layers.cell.removeprefix("rnn_"))
        found["n"] = activation(residuals[0]) if any(layers.zoneout) else y
    else:
        saved = residuals[later].unflatten(-1, (layers.directions, -1, layers.hidden_size))
        for index, name in enumerate(reference.gate_names):
            found[name] = saved[..., index, :].flatten(-2)
    found |= dict(zip(reference.state_names, (y, *residuals[:later]), strict=True))
    if extras.starts is not None:
        packed = PackedRows.of(extras.starts, extras.lengths, y.shape[0])
        return detached({name: packed.padded(value) for name, value in found.items()})
    if extras.lengths is not None:
        ended = (torch.arange(y.shape[0], device=y.device)[:, None] >= extras.lengths).unsqueeze(-1)
        found = {name: value.masked_fill(ended, 0) for name, value in found.items()}
    return detached(found)
