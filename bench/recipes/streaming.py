"""A stream, one frame after another: Stateful.step in place of sequences of one with the state handed on by hand."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ... import LSTM, Stateful
from .recipe import Recipe


def recipes(quick: bool) -> Iterator[Recipe]:
    """Frames of 40 numbers through a detector of two layers."""
    frames, H = (5, 16) if quick else (100, 128)
    torch.manual_seed(0)
    lstm = nn.LSTM(40, H, num_layers=2).eval()
    stream = Stateful(LSTM(40, H, num_layers=2)).eval()
    stream.module.load_state_dict(lstm.state_dict())
    sound = torch.randn(frames, 1, 40)

    @torch.no_grad()
    def by_hand() -> Tensor:
        outputs, state = [], None
        for frame in sound:
            y, state = lstm(frame[None], state)
            outputs.append(y[0])
        return torch.stack(outputs)

    @torch.no_grad()
    def by_stream() -> Tensor:
        stream.reset()
        return torch.stack([stream.step(frame) for frame in sound])

    yield Recipe(f"Streaming, {frames} frames: H={H}", {"torch.nn": by_hand, "Stateful.step": by_stream})
