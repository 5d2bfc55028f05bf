"""What a time loop needs to know of a cell, and the registry of cells."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from . import cell_math


@dataclass(frozen=True)
class CellSpec:
    """A recurrent cell.

    name:            key in `CELLS`.
    gates:           rows of W_hh are gates * hidden_size, stacked gate by gate in torch's order.
    states:          tiles carried from step to step; the first is h, the only one that other units read.
    saved:           tiles of v that the step backwards needs; 0 where the states alone will do.
    split_gradient:  whether x and a have different gradients.
    gates_of, update, gradients:  the jitted functions (see `cell_math`), injected into the time loops.
    """

    name: str
    gates: int
    states: int
    saved: int
    split_gradient: bool
    gates_of: triton.JITFunction
    update: triton.JITFunction
    gradients: triton.JITFunction

    @property
    def padded_gates(self) -> int:
        """Gates as stacked in the M dimension of the dot: Triton's tiles are powers of two."""
        return triton.next_power_of_2(self.gates)


CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec(
            "rnn_tanh",
            gates=1,
            states=1,
            saved=0,
            split_gradient=False,
            gates_of=cell_math.rnn_gates,
            update=cell_math.rnn_tanh_update,
            gradients=cell_math.rnn_tanh_gradients,
        ),
        CellSpec(
            "rnn_relu",
            gates=1,
            states=1,
            saved=0,
            split_gradient=False,
            gates_of=cell_math.rnn_gates,
            update=cell_math.rnn_relu_update,
            gradients=cell_math.rnn_relu_gradients,
        ),
        CellSpec(
            "gru",
            gates=3,
            states=1,
            saved=4,
            split_gradient=True,
            gates_of=cell_math.gru_gates,
            update=cell_math.gru_update,
            gradients=cell_math.gru_gradients,
        ),
        CellSpec(
            "lstm",
            gates=4,
            states=2,
            saved=4,
            split_gradient=False,
            gates_of=cell_math.lstm_gates,
            update=cell_math.lstm_update,
            gradients=cell_math.lstm_gradients,
        ),
    )
}


def find_cell(name: str) -> CellSpec:
    """The cell of this name. KeyError where there is none."""
    return CELLS[name]
