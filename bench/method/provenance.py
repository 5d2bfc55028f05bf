"""What a machine has, as `holdfast info` prints it; and where figures come from: that, code, clocks, command line."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ... import __version__

FILE = "provenance.json"
_ROOT = Path(__file__).parents[2]
_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,driver_version"


@dataclass(frozen=True)
class Environment:
    """Versions and devices found.

    gpus:    name, compute capability and number of multiprocessors of each.
    cuda:    the CUDA that torch was built for, None for a CPU build.
    triton:  None where it is not installed.
    """

    python: str
    system: str
    cpus: int
    torch: str
    torch_threads: int
    cuda: str | None
    triton: str | None
    gpus: tuple[str, ...]


def find_environment() -> Environment:
    """Look at this machine. Needs no GPU and starts none."""
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
        cuda=torch.version.cuda,
        triton=triton_version(),
        gpus=tuple(describe_gpu(i) for i in range(torch.cuda.device_count())),
    )


def triton_version() -> str | None:
    """The Triton that would be imported. Reading its metadata would miss one put before it by PYTHONPATH."""
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def describe_gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} (sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs)"


def write_provenance(folder: Path, suite: str, **more: Any) -> None:
    """Add the provenance of a suite's run to the folder's file; those of other suites stay.

    more:  what is known at the end of the run alone; the facts from its beginning stay as they are.
    """
    path = folder / FILE
    runs = read_provenance(folder)
    runs[suite] = runs[suite] | more if more else gather()
    partial = folder / f".{FILE}.{os.getpid()}"
    partial.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """By suite; empty where the folder has none. Raises ValueError, which names the file, for one that is none."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(facts, dict) for facts in found.values()):
        raise ValueError(f"{path}: should be an object with another for each suite")
    return found


def gather() -> dict[str, Any]:
    """The facts of this process and machine, now."""
    found = find_environment()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "holdfast": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "gpu": found.gpus[0] if found.gpus else None,
        "num_sms": torch.cuda.get_device_properties(0).multi_processor_count if found.gpus else None,
        "clocks": clocks() if found.gpus else None,
        "cuda": found.cuda,
        "cudnn": torch.backends.cudnn.version() if found.gpus else None,
        "torch": found.torch,
        "triton": found.triton,
        "python": found.python,
        "threads": found.torch_threads,
        "tf32": torch.backends.cudnn.rnn.fp32_precision,  # type: ignore[attr-defined]
        "host": f"{found.system}, {_cpu()}, {found.cpus} CPUs",
        "load": [round(load, 2) for load in os.getloadavg()],
        "kernel": platform.release(),
    }


def _command(argv: Sequence[str]) -> str:
    """The command line, of absolute paths the last name alone: where a machine keeps its files is nobody's business."""
    given = [re.sub(r"(?<![^=])/(?:[^/]+/)*", "", argument) for argument in argv[1:]]
    return " ".join(["holdfast", *given])


def clocks() -> dict[str, str] | None:
    """Clocks, power limit and driver as nvidia-smi reads them; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader", "--id=0"]
    printed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    values = [value.strip() for value in printed.stdout.strip().split(",")]
    names = _CLOCKS.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else None


def _git(*arguments: str) -> str | None:
    """What git says of the source tree; None where it is not a checkout."""
    if shutil.which("git") is None:
        return None
    printed = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    return printed.stdout.strip() if printed.returncode == 0 else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
