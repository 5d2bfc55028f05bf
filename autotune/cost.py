"""What a config costs by estimate, term by term: it decides what is tried first, never what is chosen once timed.

Below it the numbers that it multiplies with: each with its unit, whether anybody measured it, and where it comes from.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.describe import directions_at_once, dot_precision, split_k, team_size
from ..kernels.kept import Keep
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .constraints import alone_backwards, columns, gathered_rows, matrix_bytes, weight_bytes, weight_rows
from .files import SHIPPED, gpu_folder, replace_file


@dataclass(frozen=True)
class Estimate:
    """Microseconds of one time step of the whole batch, by cause.

    weights:   reading the resident W_hh from shared memory.
    matrix:    the matrix unit's work; it overlaps with `weights`, so only the larger counts.
    chunks:    products that wait for each other, one a chunk of W_hh.
    gates:     gate math.
    exchange:  h from one program to the others, latency.
    gather:    the same, bytes through L2.
    stream:    what the step reads and writes of device memory; it overlaps with all of the above.
    passes:    batch tiles that find no SM run one after the other.
    once:      microseconds before the first step: the launch, and W_hh from device memory.
    """

    weights: float
    matrix: float
    chunks: float
    gates: float
    exchange: float
    gather: float
    stream: float
    passes: int
    once: float

    @property
    def step_us(self) -> float:
        busy = max(self.weights, self.matrix) + self.chunks + self.gates + self.exchange + self.gather
        return max(self.passes * busy, self.stream)

    def total_us(self, length: int) -> float:
        return self.once + length * self.step_us


def estimate(
    problem: Problem,
    config: Config,
    limits: DeviceLimits,
    constants: Constants | None = None,
    keep: Keep = "nothing",
) -> Estimate:
    """The cost of a config on a GPU; without `constants`, with those of `constants_for(limits)`."""
    c = constants or constants_for(limits)
    cell = find_cell(problem.cell)
    clock = c.clock_mhz.value
    rows, k = weight_rows(problem, config), columns(problem, config)
    cooperative = config.regime == "cooperative"
    tiles = math.ceil(problem.batch_size / config.BLOCK_B)
    at_once = directions_at_once(problem, config, limits.num_sms)
    programs = at_once * team_size(problem, config)

    products = 3 if dot_precision(problem, limits.arch[0]) == "tf32x3" else 1
    rate = c.matrix_flops_per_clock.value * clock
    if problem.dtype == torch.float32:
        rate *= c.tf32_share.value
    if has_wgmma(limits) and not runs_as_wgmma(problem, config, limits):
        rate *= c.mma_sync_share.value

    exchange = gather = 0.0
    if cooperative:
        hops = (1 if cell.inner is None else 2) * (1 if split_k(problem, config) == 1 else 2)
        exchange = hops * (c.barrier_us if config.exchange == "barrier" else c.dataflow_us).value
        side_by_side = min(tiles, max(1, limits.num_sms // programs))
        words = side_by_side * programs * gathered_rows(problem, config) * k
        one = gathered_rows(problem, config) * k * problem.dtype.itemsize / (c.sm_l2_bytes_per_clock.value * clock)
        gather = max(one, words * problem.dtype.itemsize / c.l2_bytes_per_us.value)

    units = problem.batch_size * problem.directions * problem.hidden_size
    streamed = units * _streamed_numbers(problem, keep) * problem.dtype.itemsize
    return Estimate(
        weights=weight_bytes(problem, config, limits) / (c.shared_bytes_per_clock.value * clock),
        matrix=products * 2.0 * max(16, rows) * config.BLOCK_B * k / rate,
        chunks=k // config.BLOCK_K * c.chunk_us.value,
        gates=config.BLOCK_H * config.BLOCK_B * c.gate_clocks.value / clock,
        exchange=exchange,
        gather=gather,
        stream=streamed / c.dram_bytes_per_us.value,
        passes=problem.directions // at_once * math.ceil(tiles / max(1, limits.num_sms // programs)),
        once=c.launch_us.value + matrix_bytes(problem, limits) / c.dram_bytes_per_us.value,
    )


def _streamed_numbers(problem: Problem, keep: Keep) -> int:
    """Numbers per unit and row that a step moves between device memory and the chip."""
    cell = find_cell(problem.cell)
    later_states = cell.states - 1
    if problem.phase == "forward":
        kept = 0 if keep == "nothing" else later_states + (cell.saved if keep == "save" else 0)
        return cell.gates + 1 + kept  # x's gates in, h out
    # dy and h in, the gates' gradients out (x's apart where they differ), v in or what it is worked out from.
    v = 2 * cell.gates if keep == "recompute" and cell.saved else cell.saved
    return 2 + cell.gates * (2 if cell.split_gradient else 1) + later_states + v


def has_wgmma(limits: DeviceLimits) -> bool:
    """Hopper (90) has wgmma, data-centre Blackwell (100 to 110) tcgen05; consumer Blackwell (120) has neither."""
    return limits.arch[0] == "cuda" and 90 <= int(limits.arch[1]) < 120


def runs_as_wgmma(problem: Problem, config: Config, limits: DeviceLimits) -> bool:
    """Whether the matrix unit reads W_hh from shared memory by itself: 64 rows or more in one dot."""
    rows = config.BLOCK_H if alone_backwards(problem, config) else weight_rows(problem, config)
    return has_wgmma(limits) and rows >= 64


SCHEMA = 1


@dataclass(frozen=True)
class Constant:
    """provenance:  "measured" on the GPU at hand, or "assumed"; source says by what, or from where."""

    value: float
    unit: str
    provenance: Literal["assumed", "measured"]
    source: str

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit} ({self.provenance}: {self.source})"


@dataclass(frozen=True)
class Constants:
    """What `estimate` multiplies with."""

    dataflow_us: Constant
    barrier_us: Constant
    clock_mhz: Constant
    shared_bytes_per_clock: Constant
    matrix_flops_per_clock: Constant
    tf32_share: Constant
    mma_sync_share: Constant
    chunk_us: Constant
    gate_clocks: Constant
    l2_bytes_per_us: Constant
    sm_l2_bytes_per_clock: Constant
    dram_bytes_per_us: Constant
    launch_us: Constant

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the constants that somebody has measured."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name).provenance == "measured")


def _assumed(value: float, unit: str, source: str) -> Constant:
    return Constant(value, unit, "assumed", source)


_H100 = Constants(
    dataflow_us=_assumed(0.7, "us", "design.md 3: a store to its use by a polling reader, through L2"),
    barrier_us=_assumed(1.4, "us", "two round trips through L2, the counter's and the data's"),
    clock_mhz=_assumed(1755.0, "MHz", "an H100's boost clock under load"),
    shared_bytes_per_clock=_assumed(128.0, "B/clock/SM", "CUDA guide: 32 banks of 4 bytes"),
    matrix_flops_per_clock=_assumed(4096.0, "flop/clock/SM", "H100 datasheet, 16 bit, dense, over 132 SMs"),
    tf32_share=_assumed(0.5, "of the 16-bit rate", "H100 datasheet"),
    mma_sync_share=_assumed(0.6, "of the wgmma rate", "what mma.sync is said to reach on Hopper"),
    chunk_us=_assumed(0.02, "us", "one more product that waits for the sum so far, about 35 clocks"),
    gate_clocks=_assumed(0.8, "clock per unit and row", "about ten special-function results at 16 a clock"),
    l2_bytes_per_us=_assumed(5.5e6, "B/us", "what all SMs of an H100 together are said to read from L2"),
    sm_l2_bytes_per_clock=_assumed(64.0, "B/clock/SM", "what one SM is said to read from L2"),
    dram_bytes_per_us=_assumed(3.35e6, "B/us", "H100 SXM datasheet"),
    launch_us=_assumed(5.0, "us", "one kernel launch, and the first load of anything"),
)

# Dense 16-bit products per SM and clock, from the datasheets' peak rates, SM counts and boost clocks.
_MATRIX_RATES = {80: 2048.0, 86: 1024.0, 89: 1024.0, 90: 4096.0, 100: 8192.0, 103: 8192.0, "gfx942": 2048.0}


def assumed(limits: DeviceLimits) -> Constants:
    """What is assumed of a GPU that nobody has measured: an H100's numbers, but for the matrix rate."""
    arch = limits.arch[1]
    if arch not in _MATRIX_RATES or arch == 90:
        return _H100
    rate = _assumed(_MATRIX_RATES[arch], "flop/clock/SM", f"datasheet of {limits.target}, 16 bit, dense")
    return replace(_H100, matrix_flops_per_clock=rate)


def constants_file(limits: DeviceLimits, root: Path = SHIPPED) -> Path:
    return root / gpu_folder(limits.name) / "constants.json"


@lru_cache(maxsize=64)
def constants_for(limits: DeviceLimits) -> Constants:
    """The shipped measurements of this GPU over what is assumed.

    Raises ValueError where the shipped file is broken: it is part of the package.
    """
    path = constants_file(limits)
    return load_constants(path, limits) if path.exists() else assumed(limits)


def load_constants(path: Path, limits: DeviceLimits) -> Constants:
    """What a file that `save_constants` wrote says was measured, over what is assumed.

    Raises ValueError, which names the file and the field, where anything in it is not as it should be.
    """

    def wrong(what: str) -> ValueError:
        return ValueError(f"{path}: {what}. Write it anew with autotune.cost.save_constants, or remove it.")

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise wrong(f"cannot be read as JSON ({error})") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise wrong(f"schema should be {SCHEMA}, got {found.get('schema') if isinstance(found, dict) else found!r}")
    if found.get("gpu") != limits.name:
        raise wrong(f"gpu should be {limits.name!r}, got {found.get('gpu')!r}")
    base = assumed(limits)
    measured: Any = found.get("measured")
    if not isinstance(measured, dict):
        raise wrong(f"measured should be an object, got {measured!r}")
    changes = {}
    for name, entry in measured.items():
        if name not in {f.name for f in fields(base)}:
            raise wrong(f"{name!r} is no constant; known: {', '.join(f.name for f in fields(base))}")
        value, source = (entry.get("value"), entry.get("source")) if isinstance(entry, dict) else (None, None)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise wrong(f"{name}.value should be a positive number, got {value!r}")
        if not isinstance(source, str) or not source:
            raise wrong(f"{name}.source should say how it was measured, got {source!r}")
        changes[name] = Constant(float(value), getattr(base, name).unit, "measured", source)
    return replace(base, **changes)


def save_constants(measured: dict[str, tuple[float, str]], limits: DeviceLimits, path: Path) -> None:
    """Write measured constants of a GPU: name -> (value in the unit of `Constants`, how it was measured).

    Raises ValueError for what `load_constants` would refuse, and then leaves the file as it was.
    """
    content = {
        "schema": SCHEMA,
        "gpu": limits.name,
        "measured": {name: {"value": value, "source": source} for name, (value, source) in measured.items()},
    }
    replace_file(path, json.dumps(content, indent=1) + "\n", check=lambda new: load_constants(new, limits))
