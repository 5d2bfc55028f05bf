"""What to tune: a list from a file, or everything that a model's recurrent layers need."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import nn

from ...autotune.identity import LengthClass
from ...cells.base import RecurrentBase
from ...cells.call.checks import check_heads
from ...cells.call.surroundings import precision
from ...cells.ops.options import KERNEL_DTYPES
from ...kernels.cell_spec import find_cell
from ...kernels.problem import FEATURES, Phase, Precision, Problem
from ..method.case import DTYPES

PHASES: dict[str, tuple[Phase, ...]] = {
    "forward": ("forward",),
    "backward": ("backward",),
    "both": ("forward", "backward"),
}
NEEDED = {"cell", "hidden_size", "batch"}
OPTIONAL = {"dtype", "directions", "num_heads", "phase", "length", "precision", "features"}


class Wanted(NamedTuple):
    problem: Problem
    length: LengthClass = "long"


class ListError(ValueError):
    """What to tune cannot be made out; the message says where and what was expected."""


def layer(cell: str, dtype: torch.dtype, hidden_size: int, batch: int, directions: int, num_heads: int = 1) -> Problem:
    """The problem of one layer, its products as torch's settings have them.

    Raises ListError where the units are not so many heads of one size.
    """
    try:
        check_heads(num_heads, hidden_size)
    except ValueError as error:
        raise ListError(str(error)) from None
    return Problem(cell, dtype, hidden_size, batch, directions, precision(dtype), num_heads=num_heads)


def wanted(problem: Problem, phase: str, length: LengthClass) -> list[Wanted]:
    """What one layer needs, a problem a phase ("both": two)."""
    return [Wanted(replace(problem, phase=one), length) for one in PHASES[phase]]


def read_list(path: Path) -> list[Wanted]:
    """The problems of a CSV file, in its order, each once.

    Columns: cell, hidden_size and batch; and, where they are not these, dtype (bf16), directions (1), num_heads (1),
    phase (both), length (long), precision (what torch allows for an RNN here; "tf32" or "ieee"), features (none;
    names of `kernels.problem.FEATURES` with a blank between). Lines that begin with # say nothing.

    Raises ListError, which names the file and the line.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, comment="#", skipinitialspace=True, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ListError(f"{path}: cannot be read as CSV: {error}") from error
    missing, unknown = NEEDED - set(table.columns), set(table.columns) - NEEDED - OPTIONAL
    if missing or unknown:
        raise ListError(
            f"{path}: columns {', '.join(sorted(missing | unknown))} are "
            f"{'missing' if missing else 'unknown'}; a first line could be: cell,hidden_size,batch,dtype,phase"
        )
    found: list[Wanted] = []
    for number, row in enumerate(table.to_dict("records"), start=1):
        try:
            found += _from_row({str(name): value for name, value in row.items() if value != ""})
        except (KeyError, ValueError) as error:
            raise ListError(f"{path}, problem {number}: {error}") from error
    return list(dict.fromkeys(found))


def _from_row(row: dict[str, str]) -> list[Wanted]:
    def one_of(name: str, allowed: Any, default: str) -> str:
        value = row.get(name, default)
        if value not in allowed:
            raise ValueError(f"{name} should be one of {', '.join(allowed)}, got {value!r}")
        return value

    def number(name: str, default: str | None = None) -> int:
        value = row.get(name, default)
        if value is None or not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{name} should be a positive whole number, got {value!r}")
        return int(value)

    cell = row.get("cell", "")
    try:
        find_cell(cell)
    except KeyError:
        raise ValueError(f"cell should be one such as lstm, gru, rnn_tanh, got {cell!r}") from None
    if number("directions", "1") > 2:
        raise ValueError(f"directions should be 1 or 2, got {row['directions']}")
    dtype = DTYPES[one_of("dtype", DTYPES, "bf16")]
    sizes = (number("hidden_size"), number("batch"), number("directions", "1"), number("num_heads", "1"))
    problem = layer(cell, dtype, *sizes)
    changes: dict[str, Any] = {}
    if "precision" in row:
        changes["precision"] = one_of("precision", get_args(Precision), "ieee")
    if "features" in row:
        changes["features"] = tuple(sorted(set(row["features"].split())))
        if unknown := set(changes["features"]) - set(FEATURES):
            raise ValueError(f"features should be of {', '.join(FEATURES)}, got {', '.join(sorted(unknown))}")
    length = cast(LengthClass, one_of("length", get_args(LengthClass), "long"))
    return wanted(replace(problem, **changes), one_of("phase", PHASES, "both"), length)


def load_model(name: str) -> nn.Module:
    """What the factory "module:function" returns; the current folder is looked in too.

    Raises ListError where there is no such function or it returns no module.
    """
    module_name, colon, function = name.partition(":")
    if not (module_name and colon and function):
        raise ListError(f"--from-model should be module:factory, such as train:make_model, got {name!r}")
    sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), function)
        model = factory()
    except Exception as error:  # the user's own code may raise anything
        raise ListError(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(model, nn.Module):
        raise ListError(f"{name} should return a torch.nn.Module, got {type(model).__name__}")
    return model


def of_model(model: nn.Module, batch: int, phase: str, length: LengthClass) -> tuple[list[Wanted], list[str]]:
    """What all recurrent layers of a model need, each problem once; and which layers run no kernel, with the reason."""
    found: list[Wanted] = []
    left_out = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase):
            continue
        dtype = cast(torch.Tensor, module.weight_hh_l0).dtype
        if dtype not in KERNEL_DTYPES:
            left_out.append(f"{name or 'the model'}: {dtype} has no kernel")
        else:
            cell = module.cell if isinstance(module, RecurrentBase) else module.mode.lower()
            directions = 2 if module.bidirectional else 1
            # With proj_size the loop is that of the layer without it: `cells.ops.projection`.
            heads = getattr(module, "num_heads", 1)
            found += wanted(layer(cell, dtype, module.hidden_size, batch, directions, heads), phase, length)
    return list(dict.fromkeys(found)), left_out
