"""holdfast.GRU: torch.nn.GRU on persistent kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import _VF, Tensor

from .base import RecurrentBase
from .rnn import refuse_projection


class GRU(RecurrentBase):
    """Gated recurrent unit of one or more layers, with torch's gate order (r, z, n) and formulas:
    `n = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))`, `h_t = (1 - z) * n + z * h_{t-1}`.

    Takes the place of `torch.nn.GRU`: same arguments, parameters, state_dict, results and errors. On a GPU the time
    loop of a layer is one persistent kernel where one can run (see `explain`); elsewhere it is torch's own fused op.

    forward(input, hx=None) -> (output, h_n), with D = 2 if bidirectional else 1
        input:  [T, B, input_size], [B, T, input_size] if batch_first, [T, input_size], or a PackedSequence;
                float32, bfloat16, float16 on the kernels, any dtype that torch takes on the eager path.
        hx:     [D*num_layers, B, hidden_size], [D*num_layers, hidden_size] for unbatched input; None is zeros.
        output: as input, with D*hidden_size features; h_n: as hx.
    """

    _rank_error = "GRU: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        refuse_projection(options)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **options,
        )

    def fused_op(self) -> Callable[..., tuple[Tensor, ...]]:
        return _VF.gru
