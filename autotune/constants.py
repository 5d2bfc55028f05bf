"""The numbers of the cost model: each with its unit, whether anybody measured it, and where it comes from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..kernels.resources import DeviceLimits
from .folders import SHIPPED, gpu_folder
from .replace_file import replace_file

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
    """What `cost.estimate` multiplies with."""

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
        return ValueError(f"{path}: {what}. Write it anew with autotune.constants.save_constants, or remove it.")

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
