"""torch.lstm in float32 on a CPU and its derivative without autograd: the layers of oneDNN that both consist of.

An op that states its own derivative has no use for autograd's graph of one, and a small step pays for it: T=16, B=8,
H=128, forward and backward 0.81 ms on one thread, with a graph 0.98. Every bit is torch.lstm's and autograd's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..call.records import zeros

LSTM = 2
"""oneDNN's number of the cell."""

_layer: Any = torch.mkldnn_rnn_layer
_layer_backward = torch.ops.aten.mkldnn_rnn_layer_backward.default


def available() -> bool:
    """Whether torch.lstm of float32 on a CPU is oneDNN's here and now: `torch.backends.mkldnn.flags` may forbid it."""
    return torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()  # type: ignore[attr-defined]


class OneDNNLayers:
    """A dense call of torch.lstm without projection and without dropout between layers, to be differentiated once.

    What it is given and what it gives away is not kept: a result that autograd of the program leads back to this call
    from would keep it alive.
    """

    def __init__(self, hidden_size: int, num_layers: int, directions: int, bias: bool) -> None:
        self.hidden_size, self.num_layers, self.directions = hidden_size, num_layers, directions
        self.bias, self.each = bias, 4 if bias else 2
        self.zeros: Sequence[Tensor] = ()
        self.inputs: list[Tensor] = []  # of every layer but the first
        self.rows: list[Sequence[Tensor]] = []  # of each layer and direction y, h, c and oneDNN's workspace

    def forward(self, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor] | None) -> list[Tensor]:
        """y [T, B, D*H], h and c [layers*D, B, H].

        x [T, B, I], not empty; weights in torch's order; hx h and c, each [layers*D, B, H], or None for zeros.
        """
        if hx is None:
            hx = self.zeros = zeros(x, self.num_layers * self.directions, x.shape[1], self.hidden_size, 0, 2)
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():  # a workspace is for those who may go back
            for layer in range(self.num_layers):
                if layer > 0:
                    self.inputs.append(x)
                found = [self._forward(x, weights, hx, row) for row in self._rows_of(layer)]
                x = found[0][0] if self.directions == 1 else torch.cat([y for y, *_ in found], -1)
                self.rows += found
            y = x.clone() if self.directions == 1 else x
            return [y, *(torch.stack([row[state] for row in self.rows]) for state in (1, 2))]

    def gradients(
        self, grads: Sequence[Tensor | None], x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """Of x, of each of the weights and, if given, of hx, from those of y, h and c, None where nothing used one.

        x, weights and hx are what `forward` was given.
        """
        if all(grad is None for grad in grads):
            return [torch.zeros_like(t) for t in (x, *weights, *(hx or ()))]
        dy: Any
        dy, *of_states = grads
        states = hx or self.zeros
        found: list[Sequence[Tensor]] = []  # the last row first
        with torch._C._AutoDispatchBelowAutograd():
            for layer in reversed(range(self.num_layers)):
                layer_x = self.inputs.pop() if layer > 0 else x
                for row in reversed(self._rows_of(layer)):
                    side = dy if dy is None or self.directions == 1 else dy.chunk(2, -1)[row % 2]
                    of_row = [side, *(None if grad is None else grad[row] for grad in of_states)]
                    found.append(self._backward(layer_x, weights, states, row, of_row))
                dy = found[-1][0] if self.directions == 1 else found[-1][0] + found[-2][0]
            found.reverse()
            # oneDNN has one gradient for both biases.
            of_weights = [g for _, w, u, b, *_ in found for g in (w, u, b, b.clone())[: self.each]]
            return [dy, *of_weights, *(torch.stack([row[state] for row in found]) for state in (5, 6) if hx)]

    def _forward(self, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], row: int) -> Sequence[Tensor]:
        options = (LSTM, self.hidden_size, self.num_layers, self.bias, self.directions == 2, False, True)
        return _layer(*self._given(x, weights, hx, row), row % self.directions > 0, [], *options)

    def _backward(
        self, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], row: int, grads: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        *results, workspace = self.rows.pop()
        given = (*self._given(x, weights, hx, row), *results, *grads)
        options = (LSTM, self.hidden_size, self.num_layers, self.bias, True, self.directions == 2)
        return _layer_backward(*given, row % self.directions > 0, *options, [], False, workspace)

    def _given(self, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], row: int) -> list[Tensor]:
        """What oneDNN takes of one row: contiguous x, four weights, h and c."""
        of_row = list(weights[row * self.each : (row + 1) * self.each])
        biases = of_row[2:] or [torch.zeros_like(weight) for weight in of_row]  # torch's, where there are none
        return [x.contiguous(), *of_row[:2], *biases, *(state[row].contiguous() for state in hx)]

    def _rows_of(self, layer: int) -> range:
        return range(layer * self.directions, (layer + 1) * self.directions)
