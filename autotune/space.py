"""What the tuner may try for a problem: the search space as data, filtered by the constraints, in order of promise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import triton

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config, Exchange
from ..kernels.layer import Keep, keeps_values
from ..kernels.plan import Reason
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from . import heuristic
from .constraints import TUNED_CONSTRAINTS, refusal
from .cost import Estimate, estimate


@dataclass(frozen=True)
class Space:
    """The values of each field of a Config.

    A cooperative team takes every combination; one program (`single_cta`) holds all units, so that only its batch
    tile, warps and stages are free. W_hh in shared memory or in registers is the compiler's choice and no field.
    """

    BLOCK_B: tuple[int, ...] = (16, 32, 64)
    BLOCK_H: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    BLOCK_K: tuple[int, ...] = (32, 64, 128, 256, 512)
    num_warps: tuple[int, ...] = (4, 8)
    num_stages: tuple[int, ...] = (1, 2)
    exchange: tuple[Exchange, ...] = ("dataflow", "barrier")
    SPLIT_K: tuple[int, ...] = (1, 2, 4, 8)


SPACE = Space()

LARGEST_SINGLE_CTA = 256
"""Units that one program is tried with: a W_hh of 512 units fits no SM in any dtype."""


def configs(problem: Problem, limits: DeviceLimits, space: Space = SPACE) -> Iterator[Config]:
    """Every config of the space, each once, the heuristic's own tilings among them."""
    seen = set()
    for config in itertools.chain(heuristic.candidates(problem, limits), _product(problem, space)):
        if config not in seen:
            seen.add(config)
            yield config


def _product(problem: Problem, space: Space) -> Iterator[Config]:
    block = max(16, triton.next_power_of_2(problem.hidden_size))
    if block <= LARGEST_SINGLE_CTA:
        for rows, warps, stages in itertools.product(space.BLOCK_B, space.num_warps, space.num_stages):
            yield Config("single_cta", rows, block, block, warps, stages)
    splits = space.SPLIT_K if problem.phase == "backward" else (1,)
    for values in itertools.product(
        space.BLOCK_B, space.BLOCK_H, space.BLOCK_K, space.num_warps, space.num_stages, space.exchange, splits
    ):
        yield Config("cooperative", *values)


class Ranked(NamedTuple):
    config: Config
    estimate: Estimate


class Refused(NamedTuple):
    """A config of the space that is not tried: the constraint's name, and its reason."""

    config: Config
    constraint: str
    reason: str


def search(problem: Problem, limits: DeviceLimits, space: Space = SPACE) -> tuple[list[Ranked], list[Refused]]:
    """The configs that keep all constraints, the heuristic's choice first and then by estimate; and the others."""
    ranked, refused = [], []
    for config in configs(problem, limits, space):
        broken = refusal(problem, config, limits, TUNED_CONSTRAINTS)
        if broken is None:
            ranked.append(Ranked(config, estimate(problem, config, limits)))
        else:
            refused.append(Refused(config, *broken))
    choice = heuristic.choose(problem, limits)
    default = None if isinstance(choice, Reason) else choice
    ranked.sort(key=lambda r: (r.config != default, r.estimate.step_us))
    return ranked, refused


def keeps(problem: Problem) -> tuple[Keep, ...]:
    """The ways to keep values for the backward pass that make a difference to this loop, the usual one first."""
    save: tuple[Keep, ...] = ("save",) if keeps_values(problem, "save") else ()
    # A cell with two products keeps its values whatever is asked for.
    recompute: tuple[Keep, ...] = () if keeps_values(problem, "recompute") else ("recompute",)
    if problem.phase == "backward":
        return save + recompute
    return ("nothing", *save, *(recompute if find_cell(problem.cell).states > 1 else ()))


def effective_keep(problem: Problem, keep: Keep) -> Keep:
    """The one of `keeps(problem)` that does the same as `keep`: an RNN has nothing to save beyond its outputs."""
    options = keeps(problem)
    if keep in options:
        return keep
    if keep == "recompute" and keeps_values(problem, keep):
        return "save"
    return "recompute" if problem.phase == "backward" else "nothing"
