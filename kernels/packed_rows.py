"""Where the rows of a packed sequence belong in a padded one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PackedRows(NamedTuple):
    """The time and the row of the batch of every row of a packed sequence."""

    time: Tensor
    row: Tensor
    steps: int
    batch_size: int

    @staticmethod
    def of(starts: Tensor, lengths: Tensor | None, rows: int) -> PackedRows:
        """From the number of rows before each time and the lengths of the sequences."""
        assert lengths is not None, "a packed sequence comes with its lengths"
        index = torch.arange(rows, device=starts.device)
        time = torch.searchsorted(starts, index, right=True) - 1
        return PackedRows(time, index - starts[time], starts.shape[0], lengths.shape[0])

    def padded(self, rows: Tensor) -> Tensor:
        """[rows, n] -> [T, B, n], zeros past each sequence's end."""
        zeros = rows.new_zeros(self.steps, self.batch_size, rows.shape[-1])
        return zeros.index_put((self.time, self.row), rows)

    def packed(self, padded: Tensor) -> Tensor:
        """[T, B, n] -> [rows, n]"""
        return padded[self.time, self.row]
