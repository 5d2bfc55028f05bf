"""What a config must satisfy to run on a GPU: named predicates, each None or the reason against it.

They judge by a model and cost microseconds; what passes them is compiled, and the compiler has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import triton

from ..kernels.config import Config
from ..kernels.describe import least_grid, part_of_product
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .footprint import columns, footprint, gathered_rows, operand_bytes, weight_rows

Constraint = Callable[[Problem, Config, DeviceLimits], str | None]


def is_matrix_shape(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """The matrix unit's smallest tile has 16 rows. For one program alone the gates share a dot only forwards."""
    if problem.phase == "backward" and config.regime == "single_cta" and config.BLOCK_H < 16:
        return f"{config.BLOCK_H} units are below the matrix unit's 16 rows"
    if weight_rows(problem, config) < 16:
        return f"{weight_rows(problem, config)} rows of W_hh are below the matrix unit's 16"
    return None


def fits_shared(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    need = footprint(problem, config, limits).shared
    if need > limits.shared_per_block:
        return f"a program needs {need} bytes of shared memory, {limits.shared_per_block} are there"
    return None


def may_fit_shared(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """W_hh and one chunk of the other operand at least; how many chunks more is the compiler's choice.

    Of 16 random candidates each for sm_80, sm_90 and sm_100, those that exchange by a barrier took up to 53,000 bytes
    less than `footprint` says, and one took 8,000 bytes more.
    """
    width = operand_bytes(problem, limits)
    weights = weight_rows(problem, config) * columns(problem, config) * width
    chunk = gathered_rows(problem, config) * min(config.BLOCK_K, columns(problem, config)) * width
    if limits.arch[0] == "cuda" and weights + chunk > limits.shared_per_block:
        return (
            f"W_hh and a chunk of h take {weights + chunk} bytes of shared memory, {limits.shared_per_block} are there"
        )
    return None


def fits_registers(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    need = footprint(problem, config, limits).registers
    budget = 300 if limits.arch[0] == "hip" else 96
    if need > budget:
        return f"its big tiles take {need} registers a thread; more than {budget} spill"
    return None


def is_co_resident(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """One program an SM is certain to run; more is decided at launch, from the compiled kernel."""
    need = least_grid(problem, config)
    if need > limits.num_sms:
        return f"its {need} programs of {config.BLOCK_H} units must run at once, on {limits.num_sms} SMs"
    return None


def may_be_co_resident(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """As many programs an SM as its shared memory and threads may take; registers are the compiler's to say."""
    need = least_grid(problem, config)
    weights = weight_rows(problem, config) * columns(problem, config) * operand_bytes(problem, limits)
    if limits.arch[0] == "hip":  # there W_hh lies in registers
        weights = footprint(problem, config, limits).shared
    shared = weights + limits.shared_reserved_per_block
    threads = config.num_warps * limits.warp_size
    per_sm = min(limits.shared_per_sm // shared, limits.max_threads_per_sm // threads, limits.max_blocks_per_sm)
    if need > per_sm * limits.num_sms:
        return f"its {need} programs must run at once, and {limits.num_sms} SMs take {per_sm} each"
    return None


def fills_its_rows(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """A batch tile twice as large as the batch computes and gathers rows that nobody asked for."""
    enough = max(16, triton.next_power_of_2(problem.batch_size))
    if enough < config.BLOCK_B:
        return f"batch tiles of {config.BLOCK_B} rows for a batch of {problem.batch_size}"
    return None


def fills_its_columns(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """Padding costs resident bytes, shared-memory reads and gathered words; up to a quarter may pay for itself."""
    if config.regime == "single_cta":
        return None
    needed = part_of_product(problem, config) if problem.phase == "backward" else problem.hidden_size
    least = max(32, math.ceil(needed / 32) * 32)
    padded = columns(problem, config)
    if padded > least and padded > 1.25 * needed:
        return f"chunks of {config.BLOCK_K} pad {needed} columns to {padded}"
    return None


def fills_its_units(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """A team has at least two members; one alone has nobody to exchange with."""
    if config.regime == "cooperative" and problem.hidden_size <= config.BLOCK_H:
        return f"{config.BLOCK_H} units a program leave no team of {problem.hidden_size}"
    return None


def splits_backwards(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """Forwards a program has its units' gates to sum up, and no part of a sum."""
    if config.SPLIT_K > 1 and (problem.phase == "forward" or config.regime == "single_cta"):
        return f"SPLIT_K={config.SPLIT_K} is for a team's loop backwards"
    return None


def reads_after_the_wait(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """A pipelined loop issues loads ahead of the step they belong to, and a team's h is not there before its wait."""
    if config.regime == "cooperative" and config.num_stages != 1:
        return f"{config.num_stages} stages would load h ahead of the wait for it"
    return None


CONSTRAINTS: tuple[Constraint, ...] = (is_matrix_shape, fills_its_columns, fits_shared, fits_registers, is_co_resident)
"""What the heuristic's tilings must satisfy; they are known to compile."""

TUNED_CONSTRAINTS: tuple[Constraint, ...] = (
    splits_backwards,
    is_matrix_shape,
    reads_after_the_wait,
    fills_its_units,
    fills_its_rows,
    fills_its_columns,
    may_fit_shared,
    fits_registers,
    may_be_co_resident,
)
"""What a candidate of the search space must satisfy to be compiled; the cheap and telling ones come first."""


def refusal(
    problem: Problem, config: Config, limits: DeviceLimits, constraints: Sequence[Constraint]
) -> tuple[str, str] | None:
    """The first constraint that a config breaks, as (name, reason); None where it keeps them all."""
    for constraint in constraints:
        reason = constraint(problem, config, limits)
        if reason is not None:
            return constraint.__name__, reason
    return None
