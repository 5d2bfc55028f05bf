"""What is to be computed: everything about one layer's time loop that a config may depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .hashed_once import hashed_once

Precision = Literal["ieee", "tf32"]
Phase = Literal["forward", "backward"]
FEATURES = ("lengths", "packed", "recurrent_dropout", "reset_state", "resets", "zoneout")


@hashed_once
@dataclass(frozen=True)
class Problem:
    """The time loop of one layer.

    cell:        a name that `cell_spec.find_cell` knows: "rnn_tanh", "rnn_relu", "gru", "lstm", ...
    dtype:       dtype of x, h and the weights on the kernel's side (after autocast).
    precision:   what a float32 product may be rounded to; "ieee" for the 16-bit dtypes.
    directions:  1, or 2 for both directions of a bidirectional layer in one launch.
    phase:       "forward", or "backward" for the loop that carries the gradients.
    features:    names from `FEATURES` of what the loop does besides, sorted: each is compiled in only where asked for.
    num_heads:   recurrences beside each other: unit u belongs to head u // head_size and sees that one's h alone.

    The sequence length is left out on purpose: no choice depends on it, so a new T retunes nothing. It recompiles
    nothing either where gates * hidden_size is a multiple of 16; elsewhere Triton makes up to three kernels, as the
    strides of a batch size and length are multiples of 16 or not.
    """

    cell: str
    dtype: torch.dtype
    hidden_size: int
    batch_size: int
    directions: int = 1
    precision: Precision = "ieee"
    phase: Phase = "forward"
    features: tuple[str, ...] = ()
    num_heads: int = 1

    @property
    def head_size(self) -> int:
        """Units of a head."""
        return self.hidden_size // self.num_heads


def sizes_of(problem: Problem) -> str:
    """What messages call a layer by: its units, and its heads where it has several."""
    heads = f" num_heads={problem.num_heads}" if problem.num_heads > 1 else ""
    return f"hidden_size={problem.hidden_size}{heads}"
