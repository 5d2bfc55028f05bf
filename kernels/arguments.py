"""The groups of a time loop's arguments, from a layer's tensors. `argument_types` is their twin for compilers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .alignment import aligned, strides
from .channel import without_sentinel
from .extras import Extras, as_steps_of_y, is_one_number
from .gemm import LayerWeights
from .loop.groups import ABSENT, Dropout, Layer, Resets, Rows, Strided, Zones
from .problem import Problem

NO_OPTIONS = {"rows": ABSENT[Rows], "resets": ABSENT[Resets], "zones": ABSENT[Zones]}


def strided(tensor: torch.Tensor | None, extras: Extras) -> Strided:
    """A tensor [D, T, B, n] or [T, B, n], packed [D, rows, n] or [rows, n]."""
    if tensor is None:
        return ABSENT[Strided]
    packed = extras.starts is not None
    each = strides(tensor)
    directions = each[0] if tensor.dim() == (3 if packed else 4) else None
    return Strided(tensor, directions, 0 if packed else each[-3], each[-2])


def weights_of(weights: Sequence[LayerWeights], *, with_bias: bool) -> Layer:
    first = weights[0]
    return Layer(
        tuple([w.w_hh.contiguous() for w in weights]),
        tuple([w.b_hh.contiguous() for w in weights]) if with_bias and first.b_hh is not None else None,  # type: ignore[union-attr]
        None if first.parameters is None else tuple([w.parameters.contiguous() for w in weights]),  # type: ignore[union-attr]
    )


def options_of(extras: Extras, width: int) -> dict[str, Any]:
    """What both loops take of a call's options."""
    if extras.absent:
        return NO_OPTIONS
    return {
        "rows": Rows(extras.lengths, extras.starts),
        "resets": Resets(extras.resets, as_steps_of_y(extras.reset_state)),
        "zones": _zones(extras.zoneout, width),
    }


def _zones(shares: Sequence[torch.Tensor] | None, width: int) -> Zones:
    if shares is None:
        return ABSENT[Zones]
    if all(map(is_one_number, shares)):
        return Zones(tuple(shares), 0, 0)
    return Zones(tuple(aligned(share.contiguous()) for share in shares), width, 1)


def dropout_of(extras: Extras) -> Dropout:
    if extras.dropout is None:
        return ABSENT[Dropout]
    return Dropout(aligned(extras.dropout.transpose(0, 1).contiguous()))


def sent_initial(extras: Extras, initial: Sequence[torch.Tensor] | None) -> torch.Tensor | None:
    """h_0 times the dropout factors, as a step of y; None where it goes through W_hh as it is."""
    if extras.dropout is None or initial is None:
        return None
    return (initial[0] * extras.dropout).transpose(0, 1).contiguous()


def sent_reset(extras: Extras) -> torch.Tensor:
    """The reset state's h as it goes through W_hh."""
    assert extras.reset_state is not None
    h = extras.reset_state[0] if extras.dropout is None else extras.reset_state[0] * extras.dropout
    return without_sentinel(h.transpose(0, 1).contiguous())


def given_or_zeros(gradients: Sequence[torch.Tensor | None], dtype: torch.dtype) -> tuple[torch.Tensor, ...] | None:
    """One contiguous and aligned tensor of this dtype each, or None where all are."""
    given = next((gradient for gradient in gradients if gradient is not None), None)
    if given is None:
        return None
    return tuple(
        aligned((torch.zeros_like(given) if gradient is None else gradient).to(dtype).contiguous())
        for gradient in gradients
    )


def cast_to(
    problem: Problem, x: torch.Tensor, weights: Sequence[LayerWeights], initial: Sequence[torch.Tensor] | None
) -> tuple[torch.Tensor, list[LayerWeights], tuple[torch.Tensor, ...] | None]:
    dtype = problem.dtype
    if x.dtype is dtype and all([t is None or t.dtype is dtype for w in weights for t in w]):
        cast = list(weights)
    else:
        cast = [LayerWeights(*(None if t is None else t.to(dtype) for t in w)) for w in weights]  # type: ignore[arg-type]
        x = x.to(dtype)
    return x, cast, None if initial is None else tuple([state.to(dtype) for state in initial])


def walk_bits_of(directions: int, reverse: bool) -> int:
    return 0b10 if directions == 2 else int(reverse)
