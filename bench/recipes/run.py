"""Run the recipes: every way must agree with the usual one, and then each is timed beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from ..output.tables import duration
from .recipe import Recipe

NEEDS: Mapping[str, tuple[str, ...]] = {
    "recurrent_ppo": ("sb3_contrib",),
    "torchrl_lstm": ("torchrl",),
    "tagger": (),
    "streaming": (),
    "saved_model": (),
    "deployment": ("onnxruntime", "onnxscript"),
}
"""The recipes by name, and the packages that each needs beside torch."""


def run_recipes(
    only: Sequence[str] | None = None, *, quick: bool = False, rounds: int = 15, console: Console | None = None
) -> pd.DataFrame:
    """A row for each way of each recipe but the usual one: recipe, usual and this way with their times, and the ratio.

    Times are the least of `rounds` turns, in processor time of one thread; the ways take turns one after another.
    The ratio is the usual way's time over this one's: above 1 is faster.

    Raises ValueError for an unknown recipe, ImportError where a package is missing, AssertionError where a way computes
    something else.
    """
    names = list(NEEDS) if only is None else list(only)
    if unknown := set(names) - set(NEEDS):
        raise ValueError(f"only should name some of {', '.join(NEEDS)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    rows = []
    for name in names:
        for recipe in recipes_of(name, quick):
            check(recipe)
            seconds = least(list(recipe.ways.values()), rounds)
            (usual, first), *others = zip(recipe.ways, seconds, strict=True)
            for way, taken in others:
                row = {"recipe": recipe.name, "usual way": usual, "takes": duration(first * 1e6)}
                rows.append(row | {"way": way, "it takes": duration(taken * 1e6), "ratio": f"{first / taken:.2f}"})
                if console is not None:
                    console.print(" · ".join(map(str, rows[-1].values())), markup=False)
    return pd.DataFrame(rows)


def recipes_of(name: str, quick: bool = False) -> Iterator[Recipe]:
    """The recipes of a file."""
    return import_module(f".{name}", __package__).recipes(quick)


def check(recipe: Recipe) -> None:
    """Raise AssertionError where the ways do not agree."""
    (usual, expected), *others = ((way, run()) for way, run in recipe.ways.items())
    for way, computed in others:
        try:
            torch.testing.assert_close(computed, expected, rtol=0, atol=recipe.tolerance)
        except AssertionError as error:
            raise AssertionError(f"{recipe.name}: {way} and {usual} differ\n{error}") from None


def least(runs: Sequence[Callable[[], Tensor]], rounds: int) -> list[float]:
    """The least processor time in seconds of each, which take turns, in another order each time."""
    seconds = [float("inf")] * len(runs)
    for turn in range(rounds):
        for index in range(len(runs))[:: 1 if turn % 2 else -1]:
            before = time.process_time()
            runs[index]()
            seconds[index] = min(seconds[index], time.process_time() - before)
    return seconds
