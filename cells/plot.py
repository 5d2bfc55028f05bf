"""holdfast.plot_gates: the gates and states of a recurrent module over one sequence, as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .base import RecurrentBase
from .call.checks import Lengths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_gates(
    module: RecurrentBase,
    x: Tensor,
    hx: Any = None,
    *,
    row: int = 0,
    units: slice | Sequence[int] | None = None,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw every gate and state of `module(x, hx)` over time, for one row of the batch.

    A column of panels per layer and direction, a row of panels per gate and state; time runs to the right, units
    downwards. Gates that stay in [0, 1] are drawn from dark to light, all else around zero. Dotted lines mark resets.

    x, hx, lengths, resets:  as for the module; x is no PackedSequence. Nothing past the row's end is drawn.
    row:    of the batch; 0 for unbatched input.
    units:  which units to draw, a slice or indices; None for all.
    path:   where to save the figure as well; the suffix decides the format.

    Returns a matplotlib Figure. Raises ImportError without matplotlib, TypeError where module is none of holdfast's or
    x is no tensor, ValueError for a row outside of the batch; else as the module.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("plot_gates draws with matplotlib, which is not installed: pip install matplotlib") from error
    values, cuts = _values(module, x, hx, row, lengths, resets)
    columns = _columns(module, values)
    names = list(values[0])
    # A Figure of our own, not pyplot's: it needs no display and leaves the caller's settings alone.
    figure = Figure(figsize=(1.2 + 3.2 * len(columns), 0.4 + 1.3 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(columns), sharex=True, sharey="row", squeeze=False)
    chosen = slice(None) if units is None else units
    for of_name, name in zip(axes, names, strict=True):
        shown = [column[name][:, chosen] for column in columns.values()]
        numbers = torch.arange(next(iter(columns.values()))[name].shape[1])[chosen].tolist()
        colours = _colours(shown)
        for ax, title, value in zip(of_name, columns, shown, strict=True):
            image = ax.imshow(value.t().numpy(), aspect="auto", interpolation="nearest", **colours)
            for t in cuts:
                ax.axvline(t - 0.5, color="black", linewidth=0.8, linestyle=":")
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            if name == names[0]:
                ax.set_title(title)
            if name == names[-1]:
                ax.set_xlabel("step")
        of_name[0].set_ylabel(f"{name}\nunit")
        of_name[0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        of_name[0].yaxis.set_major_formatter(partial(_unit, numbers))
        figure.colorbar(image, ax=list(of_name), pad=0.01, aspect=8)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _values(
    module: RecurrentBase, x: Tensor, hx: Any, row: int, lengths: Lengths | None, resets: Tensor | None
) -> tuple[list[dict[str, Tensor]], list[int]]:
    """By layer and name what the row's gates and states were, [T, D*H] on the CPU, and the steps of its resets."""
    if not isinstance(module, RecurrentBase):
        raise TypeError(f"module should be a holdfast.RNN, GRU, LSTM or Recurrent, got {type(module).__name__}")
    if isinstance(x, PackedSequence) or not isinstance(x, Tensor):
        raise TypeError(f"x should be a tensor, with lengths where it is padded, got {type(x).__name__}")
    with torch.no_grad():
        gates = module(x, hx, lengths=lengths, resets=resets, return_gates=True)[2]
    batched = x.dim() == 3
    batch_dim = module._batch_dim
    B = x.size(batch_dim) if batched else 1
    if not 0 <= row < B:
        raise ValueError(f"row should be one of the batch's {B} rows, 0 to {B - 1}, got {row}")
    T = x.size(1 - batch_dim) if batched else x.size(0)
    if lengths is not None:
        T = max(1, int(torch.as_tensor(lengths).flatten()[row]))

    def of_row(value: Tensor) -> Tensor:
        return (value.select(batch_dim, row) if batched else value)[:T].float().cpu()

    cuts = [] if resets is None else of_row(resets).nonzero().flatten().tolist()
    return [{name: of_row(value) for name, value in layer.items()} for layer in gates], cuts


def _columns(module: RecurrentBase, values: list[dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """By title, each layer and direction apart."""
    if not module.bidirectional:
        return {f"layer {k}": layer for k, layer in enumerate(values)}
    return {
        f"layer {k}, {arrow}": {name: value.chunk(2, -1)[direction] for name, value in layer.items()}
        for k, layer in enumerate(values)
        for direction, arrow in enumerate(("forward", "reverse"))
    }


def _unit(numbers: list[int], place: float, _: int | None = None) -> str:
    """The unit that is drawn at this place of an axis."""
    return str(numbers[int(place)]) if place in range(len(numbers)) else ""


def _colours(values: list[Tensor]) -> dict[str, Any]:
    """The colour scale that these panels share."""
    low = min((float(value.min()) for value in values if value.numel()), default=0.0)
    high = max((float(value.max()) for value in values if value.numel()), default=1.0)
    if low >= 0 and high <= 1:
        return {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}
    bound = max(1e-6, -low, high)
    return {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
