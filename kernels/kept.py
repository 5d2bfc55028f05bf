"""What passes from the forward loop to the one backwards, through memory."""

from __future__ import annotations

from typing import Literal

from .cell_spec import find_cell
from .config import Config
from .problem import Problem

Keep = Literal["nothing", "save", "recompute"]
"""What a forward pass keeps for the backward pass: nothing; the gate values of every step ("save");
or only what cannot be had again by one GEMM, an LSTM's cell states ("recompute")."""


def saved_tiles(problem: Problem) -> int:
    """Tiles of v that the loop backwards needs: zoneout's takes the new state as it was before."""
    cell = find_cell(problem.cell)
    return cell.values if "zoneout" in problem.features else cell.saved


def keeps_values(problem: Problem, keep: Keep) -> bool:
    """Whether v of every step is kept. A cell with two products always keeps it: its second product multiplies
    something that no single GEMM brings back. A normalised one never does: its v is more than what it is made of, and
    takes a GEMM for each product."""
    cell = find_cell(problem.cell)
    if not saved_tiles(problem) or keep == "nothing" or cell.normalised:
        return False
    return keep == "save" or cell.inner is not None


def writes_operands(config: Config, keep: Keep) -> bool:
    """Whether what W_hh multiplies besides y (h times dropout factors, a second product's) passes through memory: to
    the team, or to the backward pass."""
    return keep != "nothing" or config.regime == "cooperative"
