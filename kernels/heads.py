"""Heads in the GEMMs around the time loop: each head's W_hh multiplies its own h alone, so they are batched products.

What the loops exchange lies by heads (see `loop.groups`), parameters and their gradients gate by gate as in torch.
With one head both are the same and every function here is the plain matrix product or nothing at all.

H units, N heads, G gates; W_hh is [G * H, H / N].
"""

from __future__ import annotations

import torch


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
        da = da.flatten(1)
        return da.t() @ h if earlier is None else torch.addmm(earlier, da.t(), h)
    da, h = _split(da, heads).transpose(1, 2), _split(h, heads)
    return da @ h if earlier is None else torch.baddbmm(earlier, da, h)


def of_w_hh(sums: torch.Tensor, heads: int, hidden: int) -> torch.Tensor:
    """`sums_of_products` as a gradient of W_hh, [G * H, H / N]."""
    return sums if heads == 1 else by_gates(sums.flatten(0, 1), heads, hidden)


def _split(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[rows, n], or [rows, N, n / N], as [N, rows, n / N]."""
    return (rows if rows.dim() == 3 else rows.unflatten(1, (heads, -1))).transpose(0, 1)
