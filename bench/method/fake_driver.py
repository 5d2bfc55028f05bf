"""A CUDA driver with no GPU behind it: Triton compiles for an H100, loads what it compiled and launches it, all through
its own code, and the driver (fake_cuda.c) takes notes. Nothing is executed, outputs keep what was in memory, unless
`fake_gpu` is told how: then the PTX runs on what arrived at the driver (kernels/ptx).

So the time of a launch on the host can be taken, its arguments looked at, and its results, on any machine.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.runtime.build import compile_module_from_src
from triton.runtime.cache import get_cache_manager

from ...autotune import select
from ...kernels import executor, launch
from ...kernels.loop.backward import backward
from ...kernels.loop.forward import forward
from ...kernels.ptx.executor import storages
from ...kernels.ptx.machine import Behaviour, Machine
from ...kernels.ptx.machine import Kernel as Code
from ...kernels.resources import H100, DeviceLimits

KERNELS = (forward, backward)
ORDINAL = 77
"""No machine has so many GPUs: what Triton caches by device stays apart from a real one's."""
STREAM = 0x5EED
LIBRARY = "libfakecuda.so"
"""A name of its own: nobody else takes it for a driver."""
MOST_PARAMETERS = 128


class Kernel(ctypes.Structure):
    """What a driver reads from a cubin."""

    _fields_ = (
        ("registers", ctypes.c_int),
        ("local_bytes", ctypes.c_int),
        ("parameters", ctypes.c_int),
        ("width", ctypes.c_int * MOST_PARAMETERS),
    )


class LastLaunch(ctypes.Structure):
    """What arrived with the last launch."""

    _fields_ = (
        ("stream", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("cooperative", ctypes.c_uint32),
        ("attributes", ctypes.c_uint32),
        ("value", ctypes.c_uint64 * MOST_PARAMETERS),
    )


class FakeDriver(nvidia.CudaDriver):
    """Triton's NVIDIA driver over fake_cuda.c."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self.get_current_device = lambda: ORDINAL
        self.get_current_stream = lambda device: STREAM
        self.get_device_capability = lambda device: (9, 0)
        self.kernels: dict[int, tuple[str, Kernel, bytes]] = {}
        """By handle: name, what its cubin says, the cubin."""
        self.behaviour: Behaviour | None = None
        """How launches are executed; None: not at all."""
        self.executed = 0
        """Launches, in this block."""
        self.launcher_cls = self._launcher_of
        self._library = library
        self._library.fake_last_launch.restype = ctypes.POINTER(LastLaunch)
        self._load = self.utils.load_binary
        self.utils.load_binary = self._load_binary

    def last_launch(self) -> LastLaunch:
        return self._library.fake_last_launch().contents

    def admit(self, programs: int) -> None:
        """Take cooperative grids of at most so many programs; 0 for any."""
        self._library.fake_admit(programs)

    def refuse_to_load(self, refuses: bool) -> None:
        """Load no kernel, as while a CUDA graph is captured."""
        self._library.fake_refuse_to_load(int(refuses))

    def _launcher_of(self, source: Any, metadata: Any) -> Callable[..., None]:
        launcher, behaviour = nvidia.CudaLauncher(source, metadata), self.behaviour
        if behaviour is None:  # nothing of ours in the time of a launch
            return launcher

        def launched(grid_x: int, grid_y: int, grid_z: int, stream: int, function: int, *arguments: Any) -> None:
            launcher(grid_x, grid_y, grid_z, stream, function, *arguments)
            self._execute(metadata, function, behaviour)

        return launched

    def _execute(self, metadata: Any, function: int, behaviour: Behaviour) -> None:
        """Run the PTX of the last launch on the parameters that the driver got."""
        launch, kernel = self.last_launch(), self.kernels[function][1]
        values = launch.value[: kernel.parameters]
        kept = get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")
        code = _decoded(Path(str(kept)).read_text(), launch.block[0] // 32, launch.shared)
        found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
        seen = [tensor for tensor in found if tensor.is_cpu and tensor.layout == torch.strided]
        memory = [(at, data) for at, data in storages(seen) if any(at <= value < at + data.size for value in values)]
        Machine(code, launch.grid[0], values, memory, behaviour).run()
        self.executed += 1

    def _load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, ...]:
        kernel = read_cubin(cubin)
        self._library.fake_next_kernel(ctypes.byref(kernel))
        handles = self._load(name, cubin, shared, device)
        self.kernels[handles[1]] = (name, kernel, cubin)
        return handles


def missing() -> str | None:
    """Why there is no fake driver here."""
    if _compiler() is None or not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Triton's launcher needs a C compiler and Python.h"
    return None


Replace = Callable[[object, str, Any], None]
"""Puts a value in an attribute's place, also where there was none, until further notice: monkeypatch.setattr."""


@contextmanager
def fake_gpu(limits: DeviceLimits = H100, behaviour: Behaviour | None = None) -> Iterator[FakeDriver]:
    """CPU tensors go through the kernel path to the fake driver in this block. It concerns the whole process.

    behaviour:  how launches are executed; None: not at all.
    """
    with ExitStack() as stack:

        def replace(target: object, name: str, value: Any) -> None:
            stack.enter_context(patch.object(target, name, value, create=True))

        driver = on_the_fake_driver(replace)
        in_place_of_a_gpu(replace, driver, limits)
        for module in (executor, select):
            replace(module, "interpreting", lambda: True)  # a CPU is in reach of the kernels
        replace(driver, "behaviour", behaviour)
        replace(driver, "executed", 0)
        yield driver


def in_place_of_a_gpu(replace: Replace, driver: Any, limits: DeviceLimits) -> None:
    """Make `driver` Triton's, for a GPU of these limits, with nothing remembered from before."""
    replace(triton.runtime.driver, "_active", driver)
    for kernel in KERNELS:
        replace(kernel, "device_caches", defaultdict(kernel.create_binder))
    replace(torch.version, "hip", None if limits.arch[0] == "cuda" else "7.0")
    replace(launch, "from_device", lambda device: limits)
    replace(launch, "_fits", {})
    replace(launch, "launcher_of", lru_cache(launch.Launcher))


def on_the_fake_driver(replace: Replace) -> FakeDriver:
    """Let Triton compile its C for the fake library in place of libcuda.so.1."""

    def from_src(src: str, name: str, **options: Any) -> Any:
        return compile_module_from_src(src=src.replace("libcuda.so.1", LIBRARY), name=name, **options)

    def from_file(src_path: str, name: str, **options: Any) -> Any:
        return from_src(Path(src_path).read_text(), name, **options)

    replace(nvidia, "compile_module_from_src", from_src)
    replace(nvidia, "compile_module_from_file", from_file)
    replace(nvidia, "libraries", [LIBRARY])
    replace(nvidia, "library_dirs", lambda: [str(_library().parent)])
    driver = _driver()
    driver.admit(0)
    driver.refuse_to_load(False)
    return driver


_decoded = lru_cache(Code)


@cache
def _driver() -> FakeDriver:
    return FakeDriver(ctypes.CDLL(str(_library())))


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


@cache
def _library() -> Path:
    """fake_cuda.c as a shared library, kept where Triton keeps the C that it compiles."""
    source = Path(__file__).with_name("fake_cuda.c")
    kept = get_cache_manager(hashlib.sha256(source.read_bytes() + triton.__version__.encode()).hexdigest())
    if (path := kept.get_file(LIBRARY)) is None:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, LIBRARY)
            flags = ["-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", *(f"-I{path}" for path in nvidia.include_dirs)]
            subprocess.run([str(_compiler()), str(source), *flags, "-o", str(target)], check=True)
            path = kept.put(target.read_bytes(), LIBRARY, binary=True)
    return Path(path)


def read_cubin(cubin: bytes) -> Kernel:
    """What a driver reads from it, by cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "-elf", "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    parameters = re.findall(r"Ordinal : 0x(\w+)\s+Offset\s+: 0x\w+\s+Size\s+: 0x(\w+)", text)
    widths = {int(ordinal, 16): int(size, 16) for ordinal, size in parameters}
    assert usage is not None
    assert sorted(widths) == list(range(len(widths)))
    return Kernel(int(usage[1]), int(usage[2]), len(widths), tuple(widths[i] for i in range(len(widths))))
