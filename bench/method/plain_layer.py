"""One layer of a cell that torch.nn does not have, called as torch.nn's modules are: the plain recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...cells.eager.recurrence import unroll
from ...cells.eager.reference import reference_of
from ...kernels.heads import diagonal_blocks


class PlainLayer(nn.Module):
    """Stands beside torch.nn.RNN, GRU and LSTM of one layer: same arguments, parameter names and results.

    A cell's own numbers per unit are `weight_unit_l0` [P, H].

    num_heads:  W_hh is taken to be zero outside of so many diagonal blocks, and a normalised cell's means are of each.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        num_heads: int = 1,
    ) -> None:
        super().__init__()
        if num_layers != 1:
            raise ValueError(f"num_layers should be 1 for a cell that torch.nn lacks, got {num_layers}")
        self.cell, self.batch_first, self.num_heads = cell, batch_first, num_heads
        reference = reference_of(cell)
        rows = reference.gates * hidden_size
        sizes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        if bias:
            sizes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if reference.parameters:
            sizes["weight_unit"] = (reference.parameters, hidden_size)
        self.names = [
            [f"{name}_l0{suffix}" for name in sizes] for suffix in ("", "_reverse")[: 2 if bidirectional else 1]
        ]
        for names in self.names:
            for name, size in zip(names, sizes.values(), strict=True):
                self.register_parameter(name, nn.Parameter(torch.zeros(size)))
        self.hidden_size, self.states = hidden_size, reference.states

    def forward(self, x: Tensor, hx: Tensor | tuple[Tensor, ...] | None = None) -> tuple[Tensor, object]:
        x = x.transpose(0, 1) if self.batch_first else x
        if hx is None:
            hx = (x.new_zeros(len(self.names), x.shape[1], self.hidden_size),) * self.states
        initial = (hx,) if isinstance(hx, Tensor) else hx
        outputs, finals = [], []
        for direction, names in enumerate(self.names):
            w_ih, w_hh, *rest = [self.get_parameter(name) for name in names]
            weights = [w_ih, diagonal_blocks(w_hh, self.num_heads), *rest]
            states = tuple(state[direction] for state in initial)
            y, final = unroll(self.cell, x, weights, states, reverse=direction == 1)
            outputs.append(y)
            finals.append(final)
        y = torch.cat(outputs, -1)
        states = tuple(torch.stack(of_one_state) for of_one_state in zip(*finals, strict=True))
        return y.transpose(0, 1) if self.batch_first else y, states[0] if len(states) == 1 else states
