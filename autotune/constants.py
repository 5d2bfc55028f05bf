"""The numbers that the cost model multiplies with: each with its unit, whether anybody measured it, and its source.

Sources by short name: H800 is arXiv 2501.12084 ("Dissecting the NVIDIA Hopper Architecture through Microbenchmarking");
gpu-benches is RRZE-HPC/gpu-benches; FlashGPU-Sim is that simulator's configuration SM90_H100.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..kernels.plan import Provenance
from ..kernels.resources import A100, B200, H100, H200, L4, MI300X, RTX_4090, DeviceLimits
from .files import SHIPPED, gpu_folder, replace_file

SCHEMA = 2


@dataclass(frozen=True)
class Constant:
    """provenance:  "measured" by this project on the GPU or host that `source` names, "published" by others, or
    "assumed"; source says how, by whom, or why."""

    value: float
    unit: str
    provenance: Provenance
    source: str

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit} ({self.provenance}: {self.source})"


@dataclass(frozen=True)
class Constants:
    """Of one GPU. Clocks are cycles of an SM.

    l2_clocks:      a load that misses the L1 and hits L2, in its far half: a team's slowest member waits for that.
    visible_clocks: from a store of h until a load of another SM may see it.
    failing_polls:  polls of a wait before the one that finds everything.
    arrive_clocks:  an atomic on the team's counter ("barrier").
    barrier_clocks: a block-wide barrier.
    drain_clocks:   what waiting for a row of matrix instructions costs after the last of them.
    wgmma_clocks:   an m64nNk16 with A in shared memory takes that and N / 4, or what the peak rate says.
    """

    clock_mhz: Constant
    l2_clocks: Constant
    visible_clocks: Constant
    failing_polls: Constant
    arrive_clocks: Constant
    barrier_clocks: Constant
    drain_clocks: Constant
    wgmma_clocks: Constant
    shared_bytes_per_clock: Constant
    matrix_flops_per_clock: Constant
    tf32_share: Constant
    fp32_flops_per_clock: Constant
    mma_sync_share: Constant
    l2_bytes_per_us: Constant
    sm_l2_bytes_per_clock: Constant
    dram_bytes_per_us: Constant
    launch_us: Constant

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the constants that this project has measured."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name).provenance == "measured")


_ORDER: tuple[Provenance, ...] = ("measured", "published", "assumed")


def weakest(provenances: Iterable[Provenance]) -> Provenance:
    """What may be said of a number that was made from several; "measured" of none."""
    return max(provenances, key=_ORDER.index, default="measured")


def published(value: float, unit: str, source: str) -> Constant:
    return Constant(value, unit, "published", source)


def assumed_to_be(value: float, unit: str, source: str) -> Constant:
    return Constant(value, unit, "assumed", source)


_H100 = Constants(
    clock_mhz=published(1980.0, "MHz", "gpu-benches: a lightly loaded H100 SXM"),
    l2_clocks=published(414.0, "clocks", "H800, table 4: the far half; the near one 258, an H100 SXM5 260 on average"),
    # With two polls of nothing but latency, 200 + 2 * 414, an exchange takes what H800 section 7.1 measured from SM to
    # SM through global memory: 1,110 clocks.
    visible_clocks=assumed_to_be(200.0, "clocks", "what a store takes on its way to L2"),
    failing_polls=assumed_to_be(1.0, "polls", "a first poll begins before the slowest member's store is visible"),
    arrive_clocks=assumed_to_be(414.0, "clocks", "as a load of L2: nobody has published an atomic's latency"),
    barrier_clocks=published(17.0, "clocks", "FlashGPU-Sim: 2 to issue, 15 to release"),
    drain_clocks=published(66.0, "clocks", "FlashGPU-Sim: wgmma tail"),
    wgmma_clocks=published(16.0, "clocks", "H800, table 9: 18, 20, 24 and 32 for N = 8, 16, 32 and 64"),
    shared_bytes_per_clock=published(128.0, "B/clock/SM", "CUDA guide: 32 banks of 4 bytes; 127.4 to 127.9 measured"),
    matrix_flops_per_clock=published(4096.0, "flop/clock/SM", "H100 datasheet, 16 bit, dense, over 132 SMs"),
    tf32_share=published(0.5, "of the 16-bit rate", "H100 datasheet"),
    fp32_flops_per_clock=published(256.0, "flop/clock/SM", "CUDA guide: 128 multiply-adds, outside the matrix unit"),
    mma_sync_share=published(0.629, "of the wgmma rate", "H800, section 6.2"),
    l2_bytes_per_us=assumed_to_be(5.5e6, "B/us", "what all SMs of an H100 together are said to read from L2"),
    sm_l2_bytes_per_clock=assumed_to_be(64.0, "B/clock/SM", "what one SM is said to read from L2"),
    dram_bytes_per_us=published(3.35e6, "B/us", "H100 SXM datasheet"),
    launch_us=assumed_to_be(5.0, "us", "one kernel launch, and the first load of anything"),
)


def _like_h100(**changes: Constant) -> Constants:
    """Another GPU: what nobody published of it is assumed to be as on an H100."""
    of_hopper = "as on an H100, of which it is published"
    kept = {
        f.name: replace(getattr(_H100, f.name), provenance="assumed", source=of_hopper)
        for f in fields(Constants)
        if getattr(_H100, f.name).provenance == "published" and f.name != "shared_bytes_per_clock"
    }
    return replace(_H100, **(kept | changes))


def _matrix(flops: float, name: str) -> Constant:
    return published(flops, "flop/clock/SM", f"datasheet of {name}, 16 bit, dense, by SMs and boost clock")


def _datasheet(name: str, clock_mhz: float, matrix_flops: float, dram_bytes_per_us: float) -> dict[str, Constant]:
    source = f"datasheet of {name}"
    return {
        "clock_mhz": published(clock_mhz, "MHz", source + ": boost"),
        "matrix_flops_per_clock": _matrix(matrix_flops, name),
        "tf32_share": published(0.5, "of the 16-bit rate", source),
        "dram_bytes_per_us": published(dram_bytes_per_us, "B/us", source),
    }


_MMA_SYNC = published(1.0, "of the matrix rate", "the only matrix instruction that it has")

_KNOWN = {
    H100.name: _H100,
    H200.name: replace(_H100, dram_bytes_per_us=published(4.8e6, "B/us", "H200 datasheet")),
    A100.name: _like_h100(
        **_datasheet("an A100", 1410.0, 2048.0, 2.039e6),
        fp32_flops_per_clock=published(128.0, "flop/clock/SM", "CUDA guide: 64 multiply-adds"),
        l2_clocks=published(400.0, "clocks", "gpu-benches: the far half; the near one 206"),
        mma_sync_share=_MMA_SYNC,
    ),
    B200.name: _like_h100(
        matrix_flops_per_clock=_matrix(8192.0, "a B200"),
        dram_bytes_per_us=published(8.0e6, "B/us", "datasheet of a B200"),
        l2_clocks=published(293.0, "clocks", "gpu-benches"),
    ),
    L4.name: _like_h100(**_datasheet("an L4", 2040.0, 1024.0, 0.3e6), mma_sync_share=_MMA_SYNC),
    RTX_4090.name: _like_h100(**_datasheet("an RTX 4090", 2520.0, 1024.0, 1.008e6), mma_sync_share=_MMA_SYNC),
    MI300X.name: _like_h100(
        **_datasheet("an MI300X", 2100.0, 2048.0, 5.3e6),
        l2_clocks=published(213.0, "clocks", "gpu-benches"),
        mma_sync_share=published(1.0, "of the matrix rate", "MFMA is the only matrix instruction that it has"),
    ),
}
# What stands for a GPU that is not among them, by its architecture; a newer or unknown one is taken for an H100.
_LIKE: dict[int | str, DeviceLimits] = {80: A100, 86: L4, 89: L4, 90: H100, 100: B200, 103: B200, "gfx942": MI300X}


def known(limits: DeviceLimits) -> Constants:
    """What is published or assumed of a GPU that this project has not measured."""
    if limits.name in _KNOWN:
        return _KNOWN[limits.name]
    like = _LIKE.get(limits.arch[1], H100)
    why = f"as on {like.name}: "
    return replace(
        _KNOWN[like.name],
        **{
            f.name: replace(c, provenance="assumed", source=why + c.source)
            for f in fields(Constants)
            if (c := getattr(_KNOWN[like.name], f.name)).provenance == "published"
        },
    )


def constants_file(limits: DeviceLimits, root: Path = SHIPPED) -> Path:
    return root / gpu_folder(limits.name) / "constants.json"


@lru_cache(maxsize=64)
def constants_for(limits: DeviceLimits) -> Constants:
    """The shipped measurements of this GPU over what is published or assumed.

    Raises ValueError where the shipped file is broken: it is part of the package.
    """
    path = constants_file(limits)
    return load_constants(path, limits) if path.exists() else known(limits)


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
    base = known(limits)
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
