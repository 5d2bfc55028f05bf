"""holdfast.LSTM: torch.nn.LSTM on persistent kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import _VF, Tensor, nn

from .base import RecurrentBase
from .call import State


class LSTM(RecurrentBase):
    """Long short-term memory of one or more layers, with torch's gate order (i, f, g, o) and formulas:
    `c_t = f * c_{t-1} + i * g`, `h_t = o * tanh(c_t)`.

    Takes the place of `torch.nn.LSTM`: same arguments, parameters, state_dict, results and errors. On a GPU the time
    loop of a layer is one persistent kernel where one can run (see `explain`); elsewhere it is torch's own fused op.

    forward(input, hx=None) -> (output, (h_n, c_n)), with D = 2 if bidirectional else 1 and P = proj_size or hidden_size
        input:  [T, B, input_size], [B, T, input_size] if batch_first, [T, input_size], or a PackedSequence;
                float32, bfloat16, float16 on the kernels, any dtype that torch takes on the eager path.
        hx:     (h_0 [D*num_layers, B, P], c_0 [D*num_layers, B, hidden_size]), without B for unbatched input;
                None is zeros.
        output: as input, with D*P features; h_n and c_n: as h_0 and c_0.
    """

    _rank_error = "LSTM: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )

    # torch's own methods for a state of two tensors.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def fused_op(self) -> Callable[..., tuple[Tensor, ...]]:
        return _VF.lstm

    def zero_state(self, x: Tensor, batch_size: int | Tensor) -> State:
        return (
            self._zeros(x, batch_size, self.proj_size or self.hidden_size),
            self._zeros(x, batch_size, self.hidden_size),
        )

    def _check_rank(self, hx: Any, batched: bool) -> None:
        rank = 3 if batched else 2
        if hx[0].dim() != rank or hx[1].dim() != rank:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {rank}-D but got "
                f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )

    def _map_state(self, function: Callable[[Tensor], Tensor], hx: Any) -> State:
        return function(hx[0]), function(hx[1])

    def _join_states(self, states: tuple[Tensor, ...]) -> State:
        return states

    def _check_packed(self, x: Tensor, hx: Any, batch_sizes: Tensor) -> None:
        """torch.nn.LSTM checks nothing of a packed call."""
