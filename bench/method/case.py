"""What is measured: a recurrent layer on a batch of sequences, and its name in the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ...autotune.cudnn import Stack
from ...cells.eager.reference import reference_of

Phase = Literal["forward", "training"]
Sequences = Literal["dense", "ragged", "resets", "rare resets"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Case:
    """One layer or stack of layers on one batch.

    cell:         the name of a cell, such as "gru".
    hidden_size:  H; with heads, of each head.
    batch_size, length:  B and T.
    input_size:   I; 0 stands for the width of the output of one direction, heads * H.
    heads:        independent recurrences side by side, outputs concatenated: a block-diagonal W_hh.
    sequences:    "dense": T steps in every row; "ragged": lengths between T/4 and T;
                  "resets": episodes end about every T/8 steps; "rare resets": every 50.
    """

    cell: str
    dtype: torch.dtype
    hidden_size: int
    batch_size: int
    length: int
    input_size: int = 0
    directions: int = 1
    layers: int = 1
    heads: int = 1
    sequences: Sequences = "dense"

    @property
    def inputs(self) -> int:
        return self.input_size or self.heads * self.hidden_size

    @property
    def stack(self) -> Stack:
        """The layers as torch.nn has them."""
        hidden = self.heads * self.hidden_size  # of several heads: its matrix is block-diagonal
        sizes = (hidden, self.batch_size, self.length, self.inputs, self.layers, self.directions)
        return Stack(self.cell, self.dtype, *sizes)

    @property
    def dtype_name(self) -> str:
        return DTYPE_NAMES[self.dtype]

    def columns(self) -> dict[str, object]:
        """The case as columns of the results table."""
        return {
            "cell": self.cell,
            "dtype": self.dtype_name,
            "H": self.hidden_size,
            "B": self.batch_size,
            "T": self.length,
            "I": self.inputs,
            "directions": self.directions,
            "layers": self.layers,
            "heads": self.heads,
            "sequences": self.sequences,
        }

    def __str__(self) -> str:
        extras = [
            f"{self.directions} directions" if self.directions > 1 else "",
            f"{self.layers} layers" if self.layers > 1 else "",
            f"{self.heads} heads" if self.heads > 1 else "",
            self.sequences if self.sequences != "dense" else "",
        ]
        shape = f"{self.cell} {self.dtype_name} H={self.hidden_size} B={self.batch_size} T={self.length}"
        return " ".join([shape, *filter(None, extras)])


def gates(cell: str) -> int:
    """G of a cell; 0 for one that is not loaded here, such as another user's in a table of results."""
    try:
        return reference_of(cell).gates
    except ValueError:
        return 0


def input_flops(case: Case) -> int:
    """Floating-point operations of the input projections of all layers, directions and steps, forwards."""
    rows = case.length * case.batch_size * gates(case.cell) * case.hidden_size * case.directions * case.heads
    later = (case.layers - 1) * case.directions * case.hidden_size
    return 2 * rows * (case.inputs + later)


def recurrent_flops(case: Case) -> int:
    """Floating-point operations of W_hh h of all layers, directions and steps, forwards."""
    units = gates(case.cell) * case.hidden_size**2 * case.directions * case.heads
    return 2 * case.length * case.batch_size * units * case.layers
