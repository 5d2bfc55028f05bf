"""A layer of the ops in plain torch: what stands in for a kernel, and what one is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.extras import Extras
from ...kernels.packed_rows import PackedRows
from ..eager.recurrence import unroll
from ..eager.reference import reference_of
from .options import Options


def plain_layer(
    x: Tensor,
    weights: Sequence[Tensor],
    initial: Sequence[Tensor],
    options: Options,
    dtype: torch.dtype,
    extras: Extras,
) -> list[Tensor]:
    """y and the final states of `holdfast::layer` by the recurrence step by step, differentiable.

    initial:  as of `holdfast::layer`, but empty for zeros.
    dtype:    to compute in, whatever `options.dtype` says.
    """
    xs, own = x.to(dtype), [weight.to(dtype) for weight in weights]
    rows = None if extras.starts is None else PackedRows.of(extras.starts, extras.lengths, xs.shape[0])
    if rows is not None:
        xs = rows.padded(xs)
    elif options.batch_first:
        xs = xs.transpose(0, 1)
    directions, each = options.directions, len(weights) // options.directions
    hidden = weights[1].shape[0] // reference_of(options.cell).gates
    zeros = (xs.new_zeros(xs.shape[1], hidden),) * reference_of(options.cell).states
    zones = [z.to(dtype) if rows is None else rows.padded(z.to(dtype)) for z in extras.zoneout or ()]
    outputs = []
    for direction in range(directions):
        states = tuple(state[direction].to(dtype) for state in initial)
        outputs.append(
            unroll(
                options.cell,
                xs,
                own[direction * each : (direction + 1) * each],
                states or zeros,
                reverse=direction == 1,
                lengths=extras.lengths,
                resets=extras.resets,
                reset_states=tuple(state[direction].to(dtype) for state in extras.reset_state or ()),
                dropout=None if extras.dropout is None else extras.dropout[direction].to(dtype),
                zoneout=[z[..., direction * hidden : (direction + 1) * hidden] for z in zones],
            )
        )
    y = torch.cat([hs for hs, _ in outputs], -1)
    y = y if rows is None else rows.packed(y)
    return [y, *(torch.stack(of_one) for of_one in zip(*(states for _, states in outputs), strict=True))]
