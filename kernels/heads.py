"""Heads outside of the time loop: W_hh as torch.nn would need it, and the GEMMs around the loops.

With num_heads=N unit u belongs to head u // (H / N) and sees that head's h alone. So of each row of W_hh only H / N
numbers are there, [G * H, H / N], and products with it are batched by heads. What the loops exchange lies by heads (see
`loop.groups`), parameters and their gradients gate by gate as in torch. With one head both are the same and every
function here is the plain matrix product or nothing at all.

H units, N heads, G gates.
"""

from __future__ import annotations

import torch


def block_diagonal(w_hh: torch.Tensor, heads: int) -> torch.Tensor:
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


def diagonal_blocks(dense: torch.Tensor, heads: int) -> torch.Tensor:
    """Back from `block_diagonal`: [G * H, H] -> [G * H, H / N]; what lies outside of the blocks is left out."""
    if heads == 1:
        return dense
    head_size = dense.shape[1] // heads
    by_heads = dense.unflatten(0, (-1, heads, head_size)).unflatten(-1, (heads, head_size))
    return by_heads.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(0, 2)


def by_heads(tensor: torch.Tensor, heads: int, hidden: int) -> torch.Tensor:
    """[G * H, ..] gate by gate -> head by head, and gate by gate within each."""
    if heads == 1:
        return tensor
    return tensor.unflatten(0, (-1, heads, hidden // heads)).transpose(0, 1).flatten(0, 2)


def by_gates(tensor: torch.Tensor, heads: int, hidden: int) -> torch.Tensor:
    """Back from `by_heads`."""
    if heads == 1:
        return tensor
    return tensor.unflatten(0, (heads, -1, hidden // heads)).transpose(0, 1).flatten(0, 2)


def linear_by_heads(
    heads: int, rows: torch.Tensor, w_hh: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """W_hh h + bias of rows [rows, H], into out [rows, G * H], by heads."""
    hidden = rows.shape[1]
    weight = by_heads(w_hh, heads, hidden).unflatten(0, (heads, -1)).transpose(1, 2)
    of_heads, out = _split(rows, heads), _split(out, heads)
    if bias is None:
        torch.bmm(of_heads, weight, out=out)
    else:
        torch.baddbmm(by_heads(bias, heads, hidden).unflatten(0, (heads, 1, -1)), of_heads, weight, out=out)


def sums_of_products(
    da: torch.Tensor, h: torch.Tensor, heads: int, earlier: torch.Tensor | None = None
) -> torch.Tensor:
    """da^T h, summed over the rows and added to earlier sums: [G * H, H], of several heads [N, G * H / N, H / N].

    da:  [rows, G * H], by heads, or [rows, N, G * H / N].
    h:   [rows, H].
    """
    if heads == 1:
        da = da.flatten(1) if da.dim() > 2 else da
        return torch.mm(da.t(), h) if earlier is None else torch.addmm(earlier, da.t(), h)
    da, h = _split(da, heads).transpose(1, 2), _split(h, heads)
    return da @ h if earlier is None else torch.baddbmm(earlier, da, h)


def of_w_hh(sums: torch.Tensor, heads: int, hidden: int) -> torch.Tensor:
    """`sums_of_products` as a gradient of W_hh, [G * H, H / N]."""
    return sums if heads == 1 else by_gates(sums.flatten(0, 1), heads, hidden)


def _split(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[rows, n], or [rows, N, n / N], as [N, rows, n / N]."""
    return (rows if rows.dim() == 3 else rows.unflatten(1, (heads, -1))).transpose(0, 1)
