"""The layers of first light: cell, dtype, hidden_size, batch size."""

from __future__ import annotations

import torch

Shape = tuple[str, torch.dtype, int, int]

_BF16, _FP16 = torch.bfloat16, torch.float16

HOME: tuple[Shape, ...] = (("lstm", _BF16, 768, 16), ("lstm", _FP16, 768, 16), ("gru", _BF16, 768, 16))
"""Where cuDNN's best kernel runs, and its neighbours."""

SMALL: Shape = ("lstm", _BF16, 64, 16)
"""One program holds it."""

WIDTHS: tuple[Shape, ...] = (("lstm", _BF16, 256, 16), ("lstm", _BF16, 1024, 16))

OTHERS: tuple[Shape, ...] = (
    *WIDTHS,
    *(("lstm", _BF16, 768, batch) for batch in (1, 64, 128, 256)),
    ("lstm", torch.float32, 1024, 256),  # in TF32
)

EVERY = (*HOME, SMALL, *OTHERS)
