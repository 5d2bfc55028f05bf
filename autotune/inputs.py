"""What a candidate runs on: weights as of a fresh torch.nn layer and a batch, the same for every candidate."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.extras import Extras
from ..kernels.layer import LayerWeights
from ..kernels.problem import Problem

INPUT_SIZE = 16
"""Few inputs, so that the time loop is nearly all of the call; the projection's results are as large as ever."""

RESETS = 1 / 64
"""Share of steps that begin an episode or a document."""

DROPOUT, ZONEOUT = 0.25, 0.1


class Inputs(NamedTuple):
    x: torch.Tensor
    weights: list[LayerWeights]
    extras: Extras


def inputs(problem: Problem, length: int, device: torch.device) -> Inputs:
    """x [T, B, INPUT_SIZE] (packed: [rows, INPUT_SIZE]), uniform weights and every feature that the problem names.

    Lengths are spread evenly over the upper half of [1, T], the longest first.
    """
    generator = torch.Generator().manual_seed(0)
    cell, hidden, batch, directions = (
        find_cell(problem.cell),
        problem.hidden_size,
        problem.batch_size,
        problem.directions,
    )
    bound = hidden**-0.5

    def uniform(*shape: int) -> torch.Tensor:
        numbers = torch.rand(shape, generator=generator).mul_(2 * bound).sub_(bound)
        return numbers.to(device, problem.dtype)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    rows = cell.gates * hidden
    weights = [
        LayerWeights(
            uniform(rows, INPUT_SIZE),
            uniform(rows, hidden),
            uniform(rows),
            uniform(rows),
            *((uniform(cell.parameters, hidden),) if cell.parameters else ()),
        )
        for _ in range(directions)
    ]
    has = set(problem.features)
    lengths = torch.linspace(length, (length + 1) // 2, batch).round().long()
    counts = (lengths[None, :] > torch.arange(length)[:, None]).sum(1)  # rows of each step of a packed sequence
    steps_and_rows = (int(counts.sum()),) if "packed" in has else (length, batch)
    given: dict[str, Any] = {}
    if has & {"lengths", "packed"}:
        given["lengths"] = lengths
    if "packed" in has:
        given["starts"] = counts.cumsum(0) - counts
    if "resets" in has:
        given["resets"] = draw(length, batch) < RESETS
    if "reset_state" in has:
        given["reset_state"] = tuple(draw(directions, batch, hidden) - 0.5 for _ in range(cell.states))
    if "recurrent_dropout" in has:
        given["dropout"] = (draw(directions, batch, hidden) >= DROPOUT) / (1 - DROPOUT)
    if "zoneout" in has:
        shape = (*steps_and_rows, directions * hidden)
        given["zoneout"] = tuple((draw(*shape) < ZONEOUT).to(torch.uint8) for _ in range(cell.states))
    x = torch.randn(*steps_and_rows, INPUT_SIZE, generator=generator).to(device, problem.dtype)
    extras = Extras(**{name: _to(value, device, problem.dtype) for name, value in given.items()})
    return Inputs(x, weights, extras)


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_to(each, device, dtype) for each in value)
    keeps_its_dtype = value.dtype in (torch.bool, torch.int64)
    return value.to(device) if keeps_its_dtype else value.to(device, dtype)
