"""A PackedSequence in and out, as a call that can be timed: packing before the time begins, padding after it ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .numbers import Numbers, Results, named
from .providers import Calls, Unavailable


class PackedCalls(Calls):
    """The two phases of a module on the real steps of a ragged batch.

    Raises Unavailable where the batch is not ragged.
    """

    def __init__(self, numbers: Numbers, module: Any, dtype: torch.dtype) -> None:
        if numbers.lengths is None:
            raise Unavailable("only ragged batches are packed")
        self.lengths, self.steps = numbers.lengths, numbers.case.length
        layout = self._pack(numbers.xs[0])

        def forward(data: Tensor) -> Tensor:
            return module(layout._replace(data=data))[0].data

        super().__init__(numbers, forward, {named(name, 0): p for name, p in module.named_parameters()}, dtype)
        self.layout = layout
        self.xs = [self._pack(x).data.detach() for x in self.xs]
        self.dy = self._pack(self.dy).data

    def results(self) -> Results:
        found = super().results()
        return found | {name: self._pad(found[name]) for name in ("x", "y") if name in found}

    def _pack(self, values: Tensor) -> PackedSequence:
        return pack_padded_sequence(values, self.lengths, enforce_sorted=False)

    def _pad(self, data: Tensor) -> Tensor:
        return pad_packed_sequence(self.layout._replace(data=data), total_length=self.steps)[0]
