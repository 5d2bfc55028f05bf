"""What a config needs of a GPU and must satisfy to run there: a model of one program, and named predicates.

A predicate says None or the reason against a config. They judge by the model and cost microseconds; what passes them is
compiled, and the compiler has the last word. The compile gate holds the model against it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import triton

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.describe import (
    chunks,
    dot_precision,
    exchange_of,
    least_grid,
    loop_of,
    part_of_product,
    parts_of_sums,
    split_k,
)
from ..kernels.loop.groups import Loop
from ..kernels.loop.parts import loop_of_product
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits


@dataclass(frozen=True)
class Footprint:
    """What one program keeps: bytes in shared memory, 32-bit registers per thread for the big tiles."""

    shared: int
    registers: int


def footprint(problem: Problem, config: Config, limits: DeviceLimits) -> Footprint:
    """A model of what the compiler allocates.

    NVIDIA: W_hh and the other operand lie in shared memory; what is polled also passes through registers.
    AMD: both lie in registers, and shared memory serves one chunk's change of layout.
    """
    width = operand_bytes(problem, limits)
    k = max(padded_sums(problem, config, limits))
    rows = weight_rows(problem, config)
    gathered = gathered_rows(problem, config)
    weights = weight_bytes(problem, config, limits)
    thread_bytes = 4 * config.num_warps * limits.warp_size
    if limits.arch[0] == "hip":
        chunk = max(rows, gathered) * config.BLOCK_K * width
        return Footprint(shared=chunk, registers=(weights + config.BLOCK_B * k * width) // thread_bytes)
    if config.regime == "single_cta":
        # The accumulator changes layout on its way to the gate math, through at most its own size.
        scratch = min(rows * config.BLOCK_B * 4, 12 * 1024)
        return Footprint(weights + gathered * k * width + scratch, rows * config.BLOCK_B * 4 // thread_bytes)
    # What is polled comes all at once; behind a barrier a chunk follows the other through the same memory.
    operand = gathered * (k if config.exchange == "dataflow" else chunk_columns(problem, config, limits)) * width
    polled = gathered * k * problem.dtype.itemsize if config.exchange == "dataflow" else 0
    return Footprint(shared=weights + operand + 64, registers=polled // thread_bytes)


def weight_rows(problem: Problem, config: Config) -> int:
    """Rows of the product with W_hh in one program: its units' gates, backwards the units of all who share it."""
    split = split_k(problem, config)
    if problem.phase == "backward" and config.regime == "cooperative":
        return split * config.BLOCK_H
    return split * find_cell(problem.cell).padded_gates * config.BLOCK_H


def columns(problem: Problem, config: Config) -> int:
    """Numbers that one row of the product sums up in one program, padded to whole chunks."""
    if config.regime == "single_cta":
        return config.BLOCK_H
    return math.ceil(part_of_product(problem, config) / config.BLOCK_K) * config.BLOCK_K


def products(problem: Problem, config: Config, limits: DeviceLimits) -> tuple[Loop, ...]:
    """The numbers of each product that has rows of its own: two where `loop.parts` cuts their sums."""
    loop, cell = loop_of(problem, config, limits.arch), find_cell(problem.cell)
    if loop.PARTS == 1:
        return (loop,)
    return tuple(loop_of_product(loop, gates) for gates in (cell.outer_gates, cell.gates - cell.outer_gates))


def padded_sums(problem: Problem, config: Config, limits: DeviceLimits) -> tuple[int, ...]:
    """`columns` of each product, all parts of a sum together."""
    if parts_of_sums(problem, config, limits.arch) == 1:
        return (columns(problem, config),)
    return tuple(p.PARTS * p.CHUNKS * p.BLOCK_K for p in products(problem, config, limits))


def chunk_columns(problem: Problem, config: Config, limits: DeviceLimits) -> int:
    """Numbers of a gathered row that a product reads at once behind a barrier: a chunk of every part."""
    if parts_of_sums(problem, config, limits.arch) == 1:
        return min(config.BLOCK_K, columns(problem, config))
    return max(p.PARTS * p.BLOCK_K for p in products(problem, config, limits))


def chunks_in_turn(problem: Problem, config: Config, limits: DeviceLimits) -> float:
    """Tiles of W_hh that a product runs over, one after the other; of two products their mean."""
    if parts_of_sums(problem, config, limits.arch) == 1:
        return chunks(problem, config)
    return mean(p.CHUNKS for p in products(problem, config, limits))


def gathered_rows(problem: Problem, config: Config) -> int:
    """Rows of the other operand: a batch tile; for one program backwards one of every gate's gradient."""
    return config.BLOCK_B * (find_cell(problem.cell).padded_gates if alone_backwards(problem, config) else 1)


def alone_backwards(problem: Problem, config: Config) -> bool:
    """Whether one program alone runs backwards: there each gate has a dot of its own."""
    return problem.phase == "backward" and config.regime == "single_cta"


def operand_bytes(problem: Problem, limits: DeviceLimits) -> int:
    """Bytes of one number of W_hh on chip: tf32x3 keeps a large and a small part."""
    parts = 2 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1
    return problem.dtype.itemsize * parts


def weight_bytes(problem: Problem, config: Config, limits: DeviceLimits) -> int:
    """Bytes of the part of W_hh that one program keeps."""
    rows = weight_rows(problem, config)
    if parts_of_sums(problem, config, limits.arch) == 1:
        numbers = rows * columns(problem, config)
    else:  # as many rows for each product, and a part of the sum in each
        numbers = sum(rows * p.CHUNKS * p.BLOCK_K for p in products(problem, config, limits))
    return numbers * operand_bytes(problem, limits)


def matrix_bytes(problem: Problem, limits: DeviceLimits) -> int:
    """Bytes of the whole W_hh of all directions on chip."""
    rows = find_cell(problem.cell).gates * problem.hidden_size
    return problem.directions * rows * problem.head_size * operand_bytes(problem, limits)


Constraint = Callable[[Problem, Config, DeviceLimits], str | None]


def is_matrix_shape(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """The matrix unit's smallest tile has 16 rows. For one program alone the gates share a dot only forwards."""
    if alone_backwards(problem, config) and config.BLOCK_H < 16:
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
    chunk = gathered_rows(problem, config) * chunk_columns(problem, config, limits) * operand_bytes(problem, limits)
    need = weight_bytes(problem, config, limits) + chunk
    if limits.arch[0] == "cuda" and need > limits.shared_per_block:
        return f"W_hh and a chunk of h take {need} bytes of shared memory, {limits.shared_per_block} are there"
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
    in_registers = limits.arch[0] == "hip"  # there W_hh takes no shared memory
    least = footprint(problem, config, limits).shared if in_registers else weight_bytes(problem, config, limits)
    shared = least + limits.shared_reserved_per_block
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
    """Padding costs resident bytes, shared-memory reads and gathered words; up to a quarter may pay for itself, and no
    chunk is below 32 columns, one for each part of a sum: of 80 units four parts have 128."""
    if config.regime == "single_cta":
        return None
    needed = part_of_product(problem, config)
    chunk = 32 * max(p.PARTS for p in products(problem, config, limits))
    least = math.ceil(needed / chunk) * chunk
    padded = max(padded_sums(problem, config, limits))
    if padded > least and padded > 1.25 * needed:
        return f"chunks of {config.BLOCK_K} pad {needed} columns to {padded}"
    return None


def fills_its_units(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """A team has at least two members; one alone has nobody to exchange with."""
    if config.regime == "cooperative" and problem.head_size <= config.BLOCK_H:
        return f"{config.BLOCK_H} units a program leave no team of {problem.head_size}"
    return None


def shares_products(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """Elsewhere a program has its units' gates to sum up, and no part of a sum (see `describe.split_k`)."""
    if split_k(problem, config) < config.SPLIT_K:
        return f"SPLIT_K={config.SPLIT_K} is for a team's loop backwards, and forwards for float32 without TF32"
    return None


def reads_after_the_wait(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """A pipelined loop issues loads ahead of the step they belong to, and a team's h is not there before its wait."""
    if config.regime == "cooperative" and config.num_stages != 1:
        return f"{config.num_stages} stages would load h ahead of the wait for it"
    return None


def polls_with_all_threads(problem: Problem, config: Config, limits: DeviceLimits) -> str | None:
    """A portable poll asks one thread for each word (see `loop.exchange.any_of`), so each needs words of its own."""
    if exchange_of(problem, config, limits.arch[0]) != "dataflow":
        return None
    pairs = problem.dtype.itemsize == 2 and problem.head_size % 2 == 0
    words, threads = config.BLOCK_B * config.BLOCK_K // (2 if pairs else 1), config.num_warps * limits.warp_size
    return f"a chunk of {words} words for {threads} threads that poll it" if words < threads else None


CONSTRAINTS: tuple[Constraint, ...] = (
    is_matrix_shape,
    polls_with_all_threads,
    fills_its_columns,
    fits_shared,
    fits_registers,
    is_co_resident,
)
"""What the heuristic's tilings must satisfy; they are known to compile."""

TUNED_CONSTRAINTS: tuple[Constraint, ...] = (
    shares_products,
    is_matrix_shape,
    reads_after_the_wait,
    polls_with_all_threads,
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
