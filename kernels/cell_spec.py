"""What a time loop needs to know of a cell, and the registry of cells."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import triton

from . import cell_math


@dataclass(frozen=True, repr=False)
class CellSpec:
    """A recurrent cell, and a compile-time argument of the time loops.

    name:            key in `CELLS`.
    gates:           rows of W_hh are gates * hidden_size, stacked gate by gate in torch's order.
    states:          tiles carried from step to step; the first is h, the only one that other units read.
    values:          tiles of v.
    saved:           how many of v's first tiles the step backwards needs, 0 where the states alone will do. With
                     zoneout it needs all.
    split_gradient:  whether x and a have different gradients.
    gates_of, update, gradients:  the jitted functions (see `cell_math`), injected into the time loops.
    parameters:      rows of numbers per unit that the cell has besides its matrices and biases.
    activation, recurrent_activation:  names in `activations`, handed to the functions; "" for functions without.
    inner, outer_gradients, outer_gates:  of a cell with two products in a step (see `cell_math`).
    gate_names:      names of the first tiles of v, for those who look at gates.
    normalised:      how many calls of `normalise` the functions have, 0 for most: p is a pair then (see `cell_math`),
                     and v is always worked out again.
    bounded:         whether h is finite wherever the gradient of its step is.
    """

    name: str
    gates: int
    states: int
    values: int
    saved: int
    split_gradient: bool
    gates_of: triton.JITFunction
    update: triton.JITFunction
    gradients: triton.JITFunction
    parameters: int = 0
    activation: str = ""
    recurrent_activation: str = ""
    inner: triton.JITFunction | None = None
    outer_gradients: triton.JITFunction | None = None
    outer_gates: int = 0
    gate_names: tuple[str, ...] = ()
    normalised: int = 0
    bounded: bool = False

    @property
    def cache_key(self) -> str:
        """What Triton's caches on disk know the cell by. A jitted function's repr has its name and not its source: two
        cells whose functions have the same names would share a kernel, and an edited cell would get its old one."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return repr({name: getattr(value, "cache_key", value) for name, value in named.items()})

    def __repr__(self) -> str:
        """What Triton's cache in memory knows the cell by."""
        return f"CellSpec({self.cache_key})"

    def mangle(self) -> str:
        """The cell's part in the names of compiled functions: one kernel has those of one cell."""
        return self.name

    @property
    def padded_gates(self) -> int:
        """Gates as stacked in the M dimension of the dot: Triton's tiles are powers of two."""
        return 1 << (self.gates - 1).bit_length()


_RNN = CellSpec(
    "rnn_tanh",
    gates=1,
    states=1,
    values=1,
    saved=0,
    split_gradient=False,
    gates_of=cell_math.rnn_gates,
    update=cell_math.rnn_update,
    gradients=cell_math.rnn_gradients,
    activation="tanh",
    recurrent_activation="sigmoid",
    bounded=True,
)
_GRU = CellSpec(
    "gru",
    gates=3,
    states=1,
    values=4,
    saved=4,
    split_gradient=True,
    gates_of=cell_math.gru_gates,
    update=cell_math.gru_update,
    gradients=cell_math.gru_gradients,
    activation="tanh",
    recurrent_activation="sigmoid",
    gate_names=("r", "z", "n"),
    bounded=True,
)
_LSTM = CellSpec(
    "lstm",
    gates=4,
    states=2,
    values=4,
    saved=4,
    split_gradient=False,
    gates_of=cell_math.lstm_gates,
    update=cell_math.lstm_update,
    gradients=cell_math.lstm_gradients,
    activation="tanh",
    recurrent_activation="sigmoid",
    gate_names=("i", "f", "g", "o"),
    bounded=True,
)

CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        _RNN,
        replace(_RNN, name="rnn_relu", activation="relu", bounded=False),
        _GRU,
        replace(
            _GRU,
            name="gru_reset_before",
            values=3,
            saved=3,
            split_gradient=False,
            gates_of=cell_math.gru_reset_before_gates,
            gradients=cell_math.gru_reset_before_gradients,
            inner=cell_math.gru_reset_before_inner,
            outer_gradients=cell_math.gru_reset_before_outer_gradients,
            outer_gates=2,
        ),
        _LSTM,
        replace(
            _LSTM,
            name="lstm_peephole",
            gates_of=cell_math.lstm_peephole_gates,
            gradients=cell_math.lstm_peephole_gradients,
            parameters=3,
        ),
        CellSpec(
            "slstm",
            gates=4,
            states=4,
            values=6,
            saved=5,
            split_gradient=False,
            gates_of=cell_math.slstm_gates,
            update=cell_math.slstm_update,
            gradients=cell_math.slstm_gradients,
            gate_names=("i", "f", "z", "o"),
        ),
    )
}

NORMALISED: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        replace(
            _GRU,
            name="gru_layer_norm",
            values=11,
            saved=11,
            gates_of=cell_math.gru_layer_norm_gates,
            gradients=cell_math.gru_layer_norm_gradients,
            parameters=10,
            normalised=2,
        ),
        replace(
            _GRU,
            name="gru_reset_before_layer_norm",
            values=12,
            saved=12,
            gates_of=cell_math.gru_reset_before_layer_norm_gates,
            gradients=cell_math.gru_reset_before_layer_norm_gradients,
            inner=cell_math.gru_reset_before_layer_norm_inner,
            outer_gradients=cell_math.gru_reset_before_layer_norm_outer_gradients,
            outer_gates=2,
            parameters=10,
            normalised=4,
        ),
        replace(
            _LSTM,
            name="lstm_layer_norm",
            values=14,
            saved=14,
            split_gradient=True,
            gates_of=cell_math.lstm_layer_norm_gates,
            update=cell_math.lstm_layer_norm_update,
            gradients=cell_math.lstm_layer_norm_gradients,
            parameters=14,
            normalised=5,
        ),
    )
}
"""Built-in cells of `CellSpec.normalised`; those of others are in `CELLS`."""

_WITH_ACTIVATIONS = re.compile(r"(\w+)\((\w+),(\w+)\)")


def find_cell(name: str) -> CellSpec:
    """The cell of this name, or for "lstm(relu,hard_sigmoid)" the cell with other activations.

    Raises KeyError where there is none.
    """
    spec = CELLS.get(name) or NORMALISED.get(name)
    if spec is None:
        match = _WITH_ACTIVATIONS.fullmatch(name)
        if match is None or not (family := find_cell(match[1])).activation:
            raise KeyError(name)
        spec = replace(family, name=name, activation=match[2], recurrent_activation=match[3], bounded=False)
    return spec
