"""What every picture shares: a figure that needs no display, and colours and markers that can be told apart."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours that stay apart in grey and for colour-blind readers (Okabe and Ito); more markers than colours.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "0.4", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "*", "X", "<", ">", "p")

MODELS = {
    "RNN": ("#E69F00", "o"),
    "GRU": ("#0072B2", "s"),
    "GRU reset_after=False": ("#56B4E9", "D"),
    "LSTM": ("#009E73", "^"),
    "no memory": ("#CC79A7", "v"),
}
"""Colour and marker of each model that is trained: the same in the demo's picture and in those of the tasks."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Not pyplot's: it needs no display and leaves the caller's settings alone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def styles(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """(name, colour, marker) of each name, in order of appearance."""
    unique = list(dict.fromkeys(names))
    return [(name, _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(unique)]
