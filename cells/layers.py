"""The kernel path of a whole module: its layers one after another, dropout between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.extras import Extras
from ..kernels.packed_rows import PackedRows
from .activations import find_activation
from .call import Call
from .dtypes import DTYPE_NAMES
from .eligibility import ELMAN, kernel_dtype
from .keep import keep_of
from .noise import Noise, draw, has_noise
from .planning import precision
from .projection import Projected
from .reference import reference_of

if TYPE_CHECKING:
    from .base import RecurrentBase


def run_layers(
    module: RecurrentBase, call: Call, traces: list[dict[str, Tensor]] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call on the kernels.

    traces:  a list that gets for each layer what every gate and state was, by name, [T, B, D*H], detached.

    Returns (y, finals): y [T, B, D*H], or [B, T, D*H] as a view where the module is batch_first, or packed rows, and
    per state a tensor [layers*D, B, H], all in the kernels' dtype (under autocast that of autocast).
    """
    dtype = kernel_dtype(call)
    directions = 2 if module.bidirectional else 1
    flat = module.flat_weights()
    each = len(flat) // module.num_layers
    keep = "save" if traces is not None else keep_of(module, call)
    noise = draw(module, call) if has_noise(module) else None
    starts, lengths = (None, call.lengths) if call.batch_sizes is None else _extent(call)
    x, batch_first = call.x, module.batch_first and call.batch_sizes is None
    finals: list[Sequence[Tensor]] = []
    for layer in range(module.num_layers):
        rows = slice(layer * directions, (layer + 1) * directions)
        weights: Sequence[Tensor] = flat[layer * each : (layer + 1) * each]
        initial: list[Tensor] | None = [state[rows] for state in call.states] or None
        reset_state = [state[rows] for state in call.reset_states] or None
        projected = None
        if module.proj_size > 0:
            x = x.transpose(0, 1) if batch_first else x
            batch_first = False
            projected = Projected(x, weights, initial, reset_state, directions, dtype, lengths, starts, call.resets)
            x, weights, initial, reset_state = projected.as_plain()
        results = torch.ops.holdfast.layer.default(
            x,
            weights,
            initial or [None] * module.n_states,
            module.cell,
            directions,
            batch_first,
            DTYPE_NAMES[dtype],
            precision(dtype),
            keep,
            *_extras(lengths, starts, call.resets, reset_state, None if noise is None else noise[layer]),
        )
        y, final = results[0], results[1 : 1 + module.n_states]
        if projected is not None:
            y, final = projected.outputs(y, final)
        if traces is not None:
            residuals = results[1 + module.n_states :]
            traces.append(_trace(module, y, residuals, directions, lengths, starts))
        x = y
        finals.append(final)
        batch_first = False
        if layer < module.num_layers - 1 and module.training and module.dropout > 0:
            x = F.dropout(x, module.dropout, training=True)
    y = x.transpose(0, 1) if module.batch_first and starts is None else x
    if len(finals) == 1:
        return y, tuple(finals[0])
    return y, tuple(torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True))


def _extent(call: Call) -> tuple[Tensor, Tensor]:
    """Of a packed call, how many rows lie before those of each time, and the lengths, on the device of x."""
    sizes = call.batch_sizes
    assert sizes is not None
    starts = sizes.cumsum(0) - sizes
    lengths = (sizes > torch.arange(int(sizes[0]))[:, None]).sum(1)
    device = call.x.device
    return starts.to(device, non_blocking=True), lengths.to(device, non_blocking=True)


def _extras(
    lengths: Tensor | None,
    starts: Tensor | None,
    resets: Tensor | None,
    reset_state: list[Tensor] | None,
    noise: Noise | None,
) -> tuple[object, ...]:
    """The op's last arguments, none at all for a plain call."""
    if lengths is None and resets is None and noise is None:
        return ()
    dropout, zoneout = (None, ()) if noise is None else noise
    shares = None
    given = [share for share in zoneout if share is not None]
    if given:
        none = given[0].new_zeros(()).expand(given[0].shape)
        shares = [none if share is None else share for share in zoneout]
    return tuple(Extras(lengths, starts, resets, reset_state, dropout, shares))


def _trace(
    module: RecurrentBase,
    y: Tensor,
    residuals: Sequence[Tensor],
    directions: int,
    lengths: Tensor | None,
    starts: Tensor | None,
) -> dict[str, Tensor]:
    """Every gate and state of a layer by name, from what it kept with keep="save"."""
    reference = reference_of(module.cell)
    later = module.n_states - 1
    found: dict[str, Tensor] = {}
    if module.cell in ELMAN:
        # An RNN keeps only what zoneout needs, h before its nonlinearity.
        activation = find_activation(module.cell.removeprefix("rnn_"))
        found["n"] = activation(residuals[0]) if any(module.zoneout_rates) else y
    else:
        saved = residuals[later].unflatten(-1, (directions, -1, module.hidden_size))
        for index, name in enumerate(reference.gate_names):
            found[name] = saved[..., index, :].flatten(-2)
    found |= dict(zip(reference.state_names, (y, *residuals[:later]), strict=True))
    if starts is not None:
        packed = PackedRows.of(starts, lengths, y.shape[0])
        return {name: packed.padded(value).detach() for name, value in found.items()}
    if lengths is not None:
        ended = (torch.arange(y.shape[0], device=y.device)[:, None] >= lengths).unsqueeze(-1)
        found = {name: value.masked_fill(ended, 0) for name, value in found.items()}
    return {name: value.detach() for name, value in found.items()}
