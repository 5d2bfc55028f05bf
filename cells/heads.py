"""W_hh of several heads as the block-diagonal matrix that torch.nn's modules would need for the same, and back.

With num_heads=N unit u belongs to head u // (H / N) and sees that head's h alone. So of each row of W_hh only H / N
numbers are there: `weight_hh_l{k}` is [G * H, H / N].
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_diagonal(w_hh: Tensor, heads: int) -> Tensor:
    """[G * H, H / N] -> [G * H, H], zero where a unit would see another head's; differentiable."""
    if heads == 1:
        return w_hh
    # A choice and no product with zeros: it keeps a weight that is infinite in its own block, and every tracer and
    # exporter knows it.
    head_size = w_hh.shape[1]
    unit = torch.arange(heads * head_size, device=w_hh.device)
    row = torch.arange(w_hh.shape[0], device=w_hh.device)
    same = (row // head_size % heads)[:, None] == unit // head_size
    return torch.where(same, w_hh.repeat(1, heads), 0)


def diagonal_blocks(dense: Tensor, heads: int) -> Tensor:
    """Back from `block_diagonal`: [G * H, H] -> [G * H, H / N]; what lies outside of the blocks is left out."""
    if heads == 1:
        return dense
    head_size = dense.shape[1] // heads
    by_heads = dense.unflatten(0, (-1, heads, head_size)).unflatten(-1, (heads, head_size))
    return by_heads.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(0, 2)
