"""An LSTM with a projected h as one without: W_hh W_hr takes the place of W_hh, and W_hr follows the loop.

With m = o * tanh(c) and h = W_hr m the gates need W_hh h = (W_hh W_hr) m. So the loop carries m and exchanges it once a
step as ever, and h of all steps is one GEMM after it. Only a given h_0 is no W_hr m: it enters as further input
features, [x_t, h_0], that are zero at every step but a first one, with W_hh as their weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.extras import Extras
from ...kernels.packed_rows import PackedRows


class Projected:
    """One layer's arguments, in torch's order of weights for proj_size, w_hr last; x is [T, B, I] or packed [rows, I].

    H is hidden_size, P is proj_size, D the number of directions.
    """

    def __init__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        initial: list[Tensor] | None,
        extras: Extras,
        directions: int,
        dtype: torch.dtype,
    ) -> None:
        cast = [weight.to(dtype) for weight in weights]
        each = len(cast) // directions
        self.weights = [cast[start : start + each] for start in range(0, len(cast), each)]
        self.x = x.to(dtype)
        self.initial = None if initial is None else [state.to(dtype) for state in initial]
        reset_state = extras.reset_state
        self.reset_state = None if reset_state is None else [state.to(dtype) for state in reset_state]
        self.extras, self.lengths, self.resets = extras, extras.lengths, extras.resets
        self.rows = None if extras.starts is None else PackedRows.of(extras.starts, extras.lengths, x.shape[0])

    def as_plain(self) -> tuple[Tensor, list[Tensor], list[Tensor] | None, Extras]:
        """x, weights, initial states and extras of the same layer without a projection."""
        flat = []
        with torch.autocast(self.x.device.type, enabled=False):
            for direction, (w_ih, w_hh, *biases, w_hr) in enumerate(self.weights):
                if self._enters:
                    columns = [torch.zeros_like(w_hh) for _ in self.weights]
                    columns[direction] = w_hh
                    w_ih = torch.cat([w_ih, *columns], 1)
                flat += [w_ih, w_hh @ w_hr, *biases]
        x = torch.cat([self.x, *self._entering()], -1) if self._enters else self.x
        extras = self.extras._replace(reset_state=self._without_h(self.reset_state))
        return x, flat, self._without_h(self.initial), extras

    def outputs(self, m: Tensor, final: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """y [.., D*P] and the final states of the layer, from those of the plain one."""
        hidden = m.shape[-1] // len(self.weights)
        final_m, *rest = final
        with torch.autocast(m.device.type, enabled=False):
            parts = [F.linear(part, w[-1]) for part, w in zip(m.split(hidden, -1), self.weights, strict=True)]
            final_h = torch.stack([F.linear(part, w[-1]) for part, w in zip(final_m, self.weights, strict=True)])
        if self.lengths is not None and self.initial is not None:
            final_h = torch.where((self.lengths > 0)[:, None], final_h, self.initial[0])
        return torch.cat(parts, -1), [final_h, *rest]

    @property
    def _enters(self) -> bool:
        return self.initial is not None or self.reset_state is not None

    def _without_h(self, states: list[Tensor] | None) -> list[Tensor] | None:
        """The states with zeros for m."""
        return None if states is None else [torch.zeros_like(states[1]), *states[1:]]

    def _entering(self) -> list[Tensor]:
        """For each direction what W_hh multiplies besides: h_0 at its first step, the reset state's h after resets."""
        like = self.x if self.rows is None else self.rows.padded(self.x)
        steps, batch_size = like.shape[:2]
        time = torch.arange(steps, device=like.device)[:, None]
        length = time.new_full((batch_size,), steps) if self.lengths is None else self.lengths
        entering = []
        for direction in range(len(self.weights)):
            size = self.weights[direction][-1].shape[0]
            features = like.new_zeros(steps, batch_size, size)
            if self.initial is not None:
                first = time == (length - 1 if direction == 1 else 0)
                features = torch.where(first.unsqueeze(-1), self.initial[0][direction], features)
            if self.resets is not None:
                marked = self.resets
                if direction == 1:
                    marked = torch.cat([marked[1:] & (time[1:] < length), torch.zeros_like(marked[:1])])
                h = 0 if self.reset_state is None else self.reset_state[0][direction]
                features = torch.where(marked.unsqueeze(-1), h, features)
            entering.append(features if self.rows is None else self.rows.packed(features))
        return entering
