"""What a machine has: the facts that `holdfast info` and the demo print."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass


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
    import torch

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
    import torch

    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} (sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs)"
