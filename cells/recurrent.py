"""holdfast.Recurrent: a module for any cell that has a name, such as one of your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .base import RecurrentBase
from .call.records import State
from .eager.fused import FUSED_OPS
from .eager.reference import reference_of


class Recurrent(RecurrentBase):
    """One or more layers of the cell called `cell`: one given to `holdfast.define_cell`, or a built-in one, such as
    "gru_reset_before" or "lstm(relu,hard_sigmoid)".

    Parameters are named as in torch.nn: weight_ih_l{k} [G*H, I], weight_hh_l{k} [G*H, H / num_heads], bias_ih_l{k}
    and bias_hh_l{k} [G*H] for a cell of G gates, with _reverse for the other direction; and weight_unit_l{k} [P, H]
    for a cell whose units have P numbers of their own. All are drawn as torch.nn draws them.

    forward(input, hx=None, *, lengths=None, resets=None, reset_state=None, return_gates=False) -> (output, h_n),
    with D = 2 if bidirectional else 1
        input:  [T, B, input_size], [B, T, input_size] if batch_first, [T, input_size], or a PackedSequence.
        hx:     [D*num_layers, B, hidden_size] for a cell of one state, for more a tuple of as many; without B for
                unbatched input; None is zeros.
        output: as input, with D*hidden_size features; h_n: as hx.
        lengths, resets, reset_state, return_gates: see `forward`.
    recurrent_dropout, zoneout, learn_initial_state, num_heads: as for `holdfast.LSTM`; zoneout also as a tuple, one
    probability per state.

    Raises ValueError where no cell has this name; else as torch.nn's modules.
    """

    _cell: str = ""
    _rank_error = "Recurrent: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, ...] = 0.0,
        learn_initial_state: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        num_heads: int = 1,
    ) -> None:
        reference = reference_of(cell)
        # torch.nn's checks, names and attributes for one gate, with nothing allocated and no number drawn.
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__("RNN_TANH", *sizes, device="meta", dtype=dtype)
        self._cell = cell
        self.mode = cell.upper() if cell in FUSED_OPS else cell  # torch's word where it has one
        for name, one_gate in list(self.named_parameters()):
            rows, *columns = one_gate.shape
            weight = torch.empty(reference.gates * rows, *columns, device=device, dtype=dtype)
            setattr(self, name, Parameter(weight))
        self._init_flat_weights()
        self.reset_parameters()
        self._set_options(
            device,
            dtype,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            learn_initial_state=learn_initial_state,
            num_heads=num_heads,
        )
        if reference.parameters:
            self._add_unit_weights("weight_unit", reference.parameters, device, dtype)

    @property
    def cell(self) -> str:
        """The cell's name."""
        return self._cell

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return reference_of(self._cell).state_names

    def flatten_parameters(self) -> None:
        """torch.nn's: lay the weights out for cuDNN, which only knows torch's cells."""
        if self._cell in FUSED_OPS:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        return f"{self._cell!r}, {super().extra_repr()}"

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        if self.n_states == 1:
            return super().check_forward_args(input, hidden, batch_sizes)
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        for k, state in enumerate(hidden):
            self.check_hidden_size(state, expected, f"Expected hidden[{k}] size {{}}, got {{}}")

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        permute = super().permute_hidden
        return hx if permutation is None else self._map_state(lambda state: permute(state, permutation), hx)

    def _check_rank(self, hx: Any, batched: bool) -> None:
        if self.n_states == 1:
            return super()._check_rank(hx, batched)
        if not isinstance(hx, (tuple, list)) or len(hx) != self.n_states:
            got = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
            raise ValueError(f"hx of the cell {self._cell!r} should be a tuple of {self.n_states} tensors, got {got}")
        for state in hx:
            super()._check_rank(state, batched)

    def _map_state(self, function: Callable[[Tensor], Tensor], hx: Any) -> State:
        return function(hx) if self.n_states == 1 else tuple(function(state) for state in hx)
