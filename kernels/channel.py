"""Memory that a team of programs hands values through: what lies in it before a launch."""

from __future__ import annotations

import torch

from .extras import Extras
from .loop.exchange import SENTINEL

_INTEGER = {2: torch.int16, 4: torch.int32}


def without_sentinel(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with another NaN where it holds the dataflow sentinel: it will be read by a team that waits."""
    bits = _bits(tensor)
    return bits.masked_fill(bits == SENTINEL, torch.iinfo(bits.dtype).max).view(tensor.dtype)


def fill_channel(channel: torch.Tensor, extras: Extras, *, sentinel: bool) -> None:
    """Prepare what a loop writes step by step: zeros where lengths leave steps out, the sentinel for a team that waits
    for the others."""
    if extras.lengths is None or extras.starts is not None:
        if sentinel:
            _bits(channel).fill_(SENTINEL)
        return
    channel.zero_()
    if sentinel:
        steps = torch.arange(channel.shape[0], device=channel.device)
        _bits(channel).masked_fill_((steps[:, None] < extras.lengths)[..., None], SENTINEL)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_INTEGER[tensor.element_size()])
