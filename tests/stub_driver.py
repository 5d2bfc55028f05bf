"""Triton's launch path with no GPU: its own JIT and C launcher, on a CUDA driver that takes notes (fake_cuda.c).

`trace` stops before the compiler and shows what the JIT would compile. `run` compiles for an H100, loads what was
compiled and calls Triton's launcher, which calls cuLaunchKernelEx. Nothing is executed: outputs keep what they had.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource
from triton.runtime.build import compile_module_from_src
from triton.runtime.cache import get_cache_manager

from holdfast.autotune.offline import gpu_target, run_time_arguments
from holdfast.kernels import launch, layer
from holdfast.kernels.config import Config
from holdfast.kernels.loop.backward import backward
from holdfast.kernels.loop.forward import forward
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100, DeviceLimits

KERNELS = [forward, backward]
ORDINAL = 77
"""No machine has so many GPUs: what Triton caches by device stays apart from a real one's."""
STREAM = 0x5EED


@dataclass
class Launch:
    """What arrived at the driver.

    parameters:  of the kernel in its order: name ("gx.time" for a field), bytes, value; the two of Triton's own come
                 last, without a name.
    """

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    cooperative: bool
    stream: int
    registers: int
    parameters: list[tuple[str, int, int]]


@dataclass
class Journal:
    """What went through the launch path, in order."""

    calls: list[tuple[Problem, Config, dict[str, Any]]] = field(default_factory=list)
    """As the layer makes them to `launch`."""
    sources: list[ASTSource] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    loaded: int = 0
    devices: list[torch.device] = field(default_factory=list)
    """Made the current ones, for a warmup or a launch."""


def trace(
    monkeypatch: pytest.MonkeyPatch,
    limits: DeviceLimits = H100,
    registers: Callable[[ASTSource], int] = lambda source: 64,
) -> Journal:
    """Take the launch path up to the compiler, which returns a kernel of so many registers and no code."""
    journal = Journal()

    def compiled(source: ASTSource, target: GPUTarget, options: dict[str, Any], **_: object) -> SimpleNamespace:
        journal.sources.append(source)
        journal.options.append(options)

        def run(*arguments: Any) -> None:
            grid, block = arguments[:3], (32 * options["num_warps"], 1, 1)
            cooperative_grid = options["launch_cooperative_grid"]
            journal.launches.append(
                Launch(source.fn.__name__, grid, block, 0, cooperative_grid, arguments[3], registers(source), [])
            )

        return SimpleNamespace(
            asm={"ttgir": ""},
            n_regs=registers(source),
            metadata=SimpleNamespace(num_warps=options["num_warps"], shared=0),
            function=None,
            packed_metadata=(),
            launch_metadata=lambda *arguments: None,
            _init_handles=lambda: None,
            run=run,
        )

    driver = SimpleNamespace(
        get_current_target=lambda: gpu_target(limits.target),
        get_current_device=lambda: ORDINAL,
        get_current_stream=lambda device: STREAM,
    )
    _install(monkeypatch, journal, driver, compiled, limits)
    return journal


def run(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Take the whole launch path. Skips the test where no C compiler is, and where a GPU is, which does it for real."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA driver is here: the tests marked gpu launch on it")
    if _compiler() is None or not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("Triton's launcher needs a C compiler and Python.h")
    driver = _on_the_fake_driver(monkeypatch)
    journal = driver.journal = Journal()
    compile_for_real = triton.compiler.compile

    def compiled(source: ASTSource, target: GPUTarget, options: dict[str, Any], **more: Any) -> Any:
        journal.sources.append(source)
        journal.options.append(options)
        kernel = compile_for_real(source, target=target, options=options, **more)
        names = run_time_arguments(source.signature)
        # Triton before 3.9 names a group's fields after the argument alone.
        for name, in_code in zip(names, _names(kernel.asm["ttir"]), strict=True):
            assert in_code in (name, name.split(".")[0])
        driver.names[kernel.asm["cubin"]] = list(names)
        return kernel

    _install(monkeypatch, journal, driver, compiled, H100)
    return journal


def arguments_of(source: ASTSource) -> dict[str, list[tuple[str, Any]]]:
    """Name, of a field "gx.time", -> (type, whether known to be divisible by 16) or ("constexpr", value); several for a
    plain tuple."""
    attributes = {path: [list(pair) for pair in found] for path, found in source.attrs.items()}
    found: dict[str, list[tuple[str, Any]]] = {}

    def visit(name: str, kind: Any, path: tuple[int, ...]) -> None:
        if isinstance(kind, tuple):
            fields = getattr(kind, "_fields", None)
            for index, element in enumerate(kind):
                visit(f"{name}.{fields[index]}" if fields else name, element, (*path, index))
        elif kind == "constexpr":
            found.setdefault(name, []).append((kind, source.constants.get(path)))
        else:
            found.setdefault(name, []).append((kind, ["tt.divisibility", 16] in attributes.get(path, [])))

    for index, (name, kind) in enumerate(source.signature.items()):
        visit(name, kind, (index,))
    return found


def _install(
    monkeypatch: pytest.MonkeyPatch, journal: Journal, driver: Any, compiled: Callable[..., Any], limits: DeviceLimits
) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(triton.compiler, "compile", compiled)
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))
        monkeypatch.setattr(kernel, "compile", compiled, raising=False)  # create_binder sets it; undone all the same

    def current(device: torch.device) -> nullcontext[None]:
        journal.devices.append(device)
        return nullcontext()

    def launched(problem: Problem, config: Config, device: torch.device, groups: dict[str, Any]) -> None:
        journal.calls.append((problem, config, groups))
        launch.launch(problem, config, device, groups)

    monkeypatch.setattr(torch.version, "hip", None if limits.arch[0] == "cuda" else "7.0")
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(launch, "from_device", lambda device: limits)
    monkeypatch.setattr(launch, "_resident_cache", {})
    monkeypatch.setattr(layer, "launch", launched)


LIBRARY = "libfakecuda.so"
"""A name of its own: nobody else takes it for a driver."""
MOST_PARAMETERS = 128


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("registers", ctypes.c_int),
        ("local_bytes", ctypes.c_int),
        ("parameters", ctypes.c_int),
        ("width", ctypes.c_int * MOST_PARAMETERS),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("stream", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("cooperative", ctypes.c_uint32),
        ("attributes", ctypes.c_uint32),
        ("value", ctypes.c_uint64 * MOST_PARAMETERS),
    )


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


class FakeDriver(nvidia.CudaDriver):
    """Triton's NVIDIA driver over fake_cuda.c."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self.get_current_device = lambda: ORDINAL
        self.get_current_stream = lambda device: STREAM
        self.get_device_capability = lambda device: (9, 0)
        self.launcher_cls = self._launcher
        self.journal = Journal()
        self.names: dict[bytes, list[str]] = {}
        """By cubin: the run-time arguments, as the front end wrote them into the kernel."""
        self._kernels: dict[int, tuple[str, _Kernel, list[str]]] = {}
        self._library = library
        self._library.fake_last_launch.restype = ctypes.POINTER(_Launch)
        self._load = self.utils.load_binary
        self.utils.load_binary = self._load_binary

    def _load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, ...]:
        kernel = _read_cubin(cubin)
        self._library.fake_next_kernel(ctypes.byref(kernel))
        handles = self._load(name, cubin, shared, device)
        self._kernels[handles[1]] = (name, kernel, self.names[cubin])
        self.journal.loaded += 1
        return handles

    def _launcher(self, source: ASTSource, metadata: Any) -> Callable[..., None]:
        launcher = nvidia.CudaLauncher(source, metadata)

        def launched(grid_x: int, grid_y: int, grid_z: int, stream: int, function: int, *arguments: Any) -> None:
            launcher(grid_x, grid_y, grid_z, stream, function, *arguments)
            name, kernel, names = self._kernels[function]
            found = self._library.fake_last_launch().contents
            widths, values = kernel.width[: kernel.parameters], found.value[: kernel.parameters]
            assert kernel.parameters == len(names) + 2, (names, widths)
            self.journal.launches.append(
                Launch(
                    name,
                    tuple(found.grid),
                    tuple(found.block),
                    found.shared,
                    bool(found.cooperative),
                    found.stream,
                    kernel.registers,
                    list(zip([*names, "", ""], widths, values, strict=True)),
                )
            )

        return launched


@cache
def _fake_driver() -> FakeDriver:
    return FakeDriver(ctypes.CDLL(str(_library())))


def _read_cubin(cubin: bytes) -> _Kernel:
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
    return _Kernel(int(usage[1]), int(usage[2]), len(widths), tuple(widths[i] for i in range(len(widths))))


def _names(ttir: str) -> list[str]:
    """The run-time arguments of a kernel, in order; a tuple's once for each element."""
    head = ttir[ttir.index("tt.func public") :]
    return re.findall(r'loc\("([\w.]+?)(?:\.\d+)?"\(', head[: head.index("attributes {noinline")])


def _on_the_fake_driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Triton compiles its C for the library above in place of libcuda.so.1, while the test runs."""

    def from_src(src: str, name: str, **options: Any) -> Any:
        return compile_module_from_src(src=src.replace("libcuda.so.1", LIBRARY), name=name, **options)

    def from_file(src_path: str, name: str, **options: Any) -> Any:
        return from_src(Path(src_path).read_text(), name, **options)

    monkeypatch.setattr(nvidia, "compile_module_from_src", from_src, raising=False)
    monkeypatch.setattr(nvidia, "compile_module_from_file", from_file, raising=False)
    monkeypatch.setattr(nvidia, "libraries", [LIBRARY])
    monkeypatch.setattr(nvidia, "library_dirs", lambda: [str(_library().parent)])
    return _fake_driver()
