"""Runs launches on compiled code: an `Executor` beside the interpreter.

with compiled(target="sm_90", seed=3):
    y, h_n = lstm(x)         # CPU tensors, through what ptxas would get
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
import triton
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget

from ..executor import executing_on
from ..layouts import check_layouts
from ..resources import A100, H100, TOO_LARGE
from .machine import Behaviour, Kernel, Machine

SPIN_LIMIT = 16 * 1024
"""Of a wait, in 1,024 ns of a clock that goes on by a microsecond whenever anybody does anything."""
GPUS = {gpu.target: gpu for gpu in (A100, H100)}
TARGETS = tuple(GPUS)


class PtxExecutor:
    """An `Executor` for CPU tensors.

    target:              "sm_80" or "sm_90": a program has the shared memory of an A100 or H100, or raises
                         triton.OutOfResources.
    resident_programs:   how many programs the imagined GPU holds at once.
    admitted_programs:   how many of a cooperative grid its driver admits; None for any number.
    edit:                changes the PTX of each kernel before it runs.
    options:             those of `Behaviour`.
    """

    spin_limit = SPIN_LIMIT

    def __init__(
        self,
        target: str = "sm_90",
        *,
        resident_programs: int = 132,
        admitted_programs: int | None = None,
        edit: Any = None,
        **options: Any,
    ) -> None:
        if target not in TARGETS:
            raise ValueError(f"target should be one of {', '.join(TARGETS)}, got {target!r}")
        self.gpu = GPUS[target]
        self.arch = self.gpu.arch
        self.resident_programs, self.admitted_programs, self.edit = resident_programs, admitted_programs, edit
        self.behaviour = Behaviour(**options)
        self.launches = 0

    def run(self, kernel: triton.JITFunction, grid: int, arguments: Mapping[str, Any], **options: Any) -> None:
        cooperative = options.get("launch_cooperative_grid")
        if cooperative and self.admitted_programs is not None and grid > self.admitted_programs:
            raise RuntimeError(TOO_LARGE)
        compiled = compile_for(int(self.arch[1]), kernel, arguments, options)
        check_layouts(compiled.asm["ttgir"])
        self.run_compiled(compiled, grid, arguments)

    def run_compiled(self, compiled: Any, grid: int, arguments: Mapping[str, Any]) -> None:
        values: list[int] = []
        tensors: dict[int, torch.Tensor] = {}
        for name, kind in compiled.src.signature.items():
            _flatten(kind, arguments.get(name), values, tensors)
        if compiled.metadata.shared > self.gpu.shared_per_block:  # as Triton says when it loads one on a GPU
            raise triton.OutOfResources(compiled.metadata.shared, self.gpu.shared_per_block, "shared memory")
        text = compiled.asm["ptx"]
        ptx = text if self.edit is None else self.edit(text)
        decoded = _decoded(ptx, compiled.metadata.num_warps, compiled.metadata.shared)
        # Triton adds scratch memory of its own, which these kernels have none of.
        values += [0] * (len(decoded.code.parameters) - len(values))
        behaviour = self.behaviour
        seeded = Behaviour(**{**vars(behaviour), "seed": behaviour.seed + self.launches})
        self.launches += 1
        Machine(decoded, grid, values, storages(tensors.values()), seeded).run()


@contextmanager
def compiled(target: str = "sm_90", **options: Any) -> Iterator[PtxExecutor]:
    """Run the kernels, compiled, on CPU tensors in this block. Options are those of `PtxExecutor`."""
    executor = PtxExecutor(target, **options)
    with executing_on(executor):
        yield executor


_decoded = lru_cache(maxsize=512)(Kernel)


@cache
def nvidia_up_to_ptx() -> Backend:
    """Without ptxas, a tenth of the time, which nothing here asks; under names of its own in Triton's cache."""
    from triton.backends.nvidia.compiler import CUDABackend  # a build of Triton for other GPUs may lack it

    class UpToPtx(CUDABackend):
        def add_stages(self, stages: dict[str, Any], *details: Any) -> None:
            super().add_stages(stages, *details)
            stages["cubin"] = lambda ptx, metadata: b""

        def hash(self) -> str:
            return f"{super().hash()}-ptx"

    return Backend(compiler=UpToPtx, driver=backends["nvidia"].driver)


def compile_for(arch: int, kernel: triton.JITFunction, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """As Triton's JIT does at a launch with these arguments on such a GPU, as far as PTX."""
    target = GPUTarget("cuda", arch, 32)
    driver = SimpleNamespace(
        get_current_target=lambda: target,
        # What the JIT remembers kernels by; no real device has such a number.
        get_current_device=lambda: 1000 + arch,
        get_current_stream=lambda device: 0,
    )
    with patch.object(triton.runtime.driver, "_active", driver), patch.dict(backends, nvidia=nvidia_up_to_ptx()):
        return kernel.warmup(*arguments.values(), **options, grid=(1,))


def storages(tensors: Sequence[torch.Tensor] | Any) -> list[tuple[int, npt.NDArray[np.uint8]]]:
    """Address and bytes of the memory that each tensor lies in, once each."""
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for storage in (tensor.untyped_storage() for tensor in tensors):
        with suppress(RuntimeError):  # what a compiler traces with has no memory
            if not storage.nbytes() or not storage.data_ptr():
                continue
            memory = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
            found[storage.data_ptr()] = np.ctypeslib.as_array(memory)
    return list(found.items())


def _flatten(kind: Any, value: Any, values: list[int], tensors: dict[int, torch.Tensor]) -> None:
    """Appends what the kernel is handed for an argument of this type."""
    if isinstance(kind, tuple):
        for element_kind, element in zip(kind, value, strict=True):
            _flatten(element_kind, element, values, tensors)
    elif kind != "constexpr":
        if isinstance(value, torch.Tensor):
            tensors[id(value)] = value
            value = value.data_ptr()
        values.append(int(value))
