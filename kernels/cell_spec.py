"""What a time loop needs to know of a cell, and the registry of cells."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from . import cell_math


@dataclass(frozen=True)
class CellSpec:
    """A recurrent cell.

    name:    key in `CELLS`.
    gates:   rows of W_hh are gates * hidden_size, stacked gate by gate in torch's order.
    states:  tiles carried from step to step; the first is h, the only one that other units read.
    step:    the jitted step function (see `cell_math`), injected into the time loops.
    """

    name: str
    gates: int
    states: int
    step: triton.JITFunction

    @property
    def padded_gates(self) -> int:
        """Gates as stacked in the M dimension of the dot: Triton's tiles are powers of two."""
        return triton.next_power_of_2(self.gates)


CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("rnn_tanh", gates=1, states=1, step=cell_math.rnn_tanh_step),
        CellSpec("rnn_relu", gates=1, states=1, step=cell_math.rnn_relu_step),
        CellSpec("gru", gates=3, states=1, step=cell_math.gru_step),
        CellSpec("lstm", gates=4, states=2, step=cell_math.lstm_step),
    )
}
