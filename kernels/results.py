"""What a forward pass returns and keeps, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from .alignment import empty
from .cell_spec import find_cell
from .channel import fill_channel
from .config import Config
from .extras import Extras
from .kept import Keep, keeps_values, saved_tiles, writes_operands
from .problem import Problem


class Residuals(NamedTuple):
    """What the backward pass needs besides inputs and outputs; all laid out as y."""

    kept: tuple[torch.Tensor, ...]
    """The later states of every step, H wide for each direction: c for an LSTM."""

    saved: torch.Tensor | None
    """v of every step, SAVED * H wide for each direction; None where it is worked out again."""

    inner: torch.Tensor | None = None
    """What the second product of a step multiplied; None for a cell with one product."""

    sent: torch.Tensor | None = None
    """h times the dropout factors; None without them."""


NO_RESIDUALS = Residuals((), None)


class Needs(NamedTuple):
    """The memory of a forward pass besides gx and y, whatever its length and batch size: how many final states and kept
    states, tiles of v (0: none), and whether what the second product multiplies and h times dropout lie in memory.

    residuals:  whether any of the latter four is asked for.
    waits:      a team of several programs finds out in memory what has been published.
    """

    states: int
    kept: int
    saved: int
    inner: bool
    sent: bool
    residuals: bool
    waits: bool

    def waits_for(self, steps: int) -> bool:
        """Whether anybody waits in so many steps: in one of one product nobody reads what the team publishes."""
        return self.waits and (steps > 1 or self.inner)


@lru_cache(maxsize=4096)
def needs_of(problem: Problem, config: Config, keep: Keep) -> Needs:
    cell, cooperative = find_cell(problem.cell), config.regime == "cooperative"
    shared = writes_operands(config, keep)
    kept = cell.states - 1 if keep != "nothing" else 0
    saved = saved_tiles(problem) if keeps_values(problem, keep) else 0
    inner, sent = cell.inner is not None and shared, "recurrent_dropout" in problem.features and shared
    return Needs(
        states=cell.states,
        kept=kept,
        saved=saved,
        inner=inner,
        sent=sent,
        residuals=bool(kept or saved or inner or sent),
        waits=cooperative and config.exchange == "dataflow",
    )


def allocate(
    needs: Needs, like: torch.Tensor, shape: Sequence[int], of_states: Sequence[int]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], Residuals]:
    """Memory for y of this shape, the final states [D, B, H] and what is kept, of like's dtype and device."""
    y = empty(like, shape)
    final = tuple([empty(like, of_states) for _ in range(needs.states)])
    if not needs.residuals:
        return y, final, NO_RESIDUALS
    residuals = Residuals(
        tuple([torch.empty_like(y) for _ in range(needs.kept)]),
        empty(like, (*shape[:-1], needs.saved * shape[-1])) if needs.saved else None,
        torch.empty_like(y) if needs.inner else None,
        torch.empty_like(y) if needs.sent else None,
    )
    return y, final, residuals


def fill(y: torch.Tensor, residuals: Residuals, extras: Extras, *, waits: bool) -> None:
    """Prepare what the loop writes at every step; the sentinel goes where a team reads what it publishes."""
    sent = y if residuals.sent is None else residuals.sent
    for tensor in (y, *residuals.kept, residuals.inner, residuals.sent):
        if tensor is not None:
            fill_channel(tensor, extras, sentinel=waits and (tensor is sent or tensor is residuals.inner))
