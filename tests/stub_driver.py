"""Triton's launch path with no GPU, and a journal of it: its own JIT and C launcher on the fake driver (bench/method).

`trace` stops before the compiler and shows what the JIT would compile. `run` compiles for an H100, loads what was
compiled and calls Triton's launcher, which calls cuLaunchKernelEx. Nothing is executed: outputs keep what they had.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource

from holdfast.autotune.offline import gpu_target, run_time_arguments
from holdfast.bench.method import fake_driver
from holdfast.bench.method.fake_driver import KERNELS, ORDINAL, STREAM, FakeDriver
from holdfast.kernels import launch, layer
from holdfast.kernels.config import Config
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100, DeviceLimits


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
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of `trace`: the groups as Triton's launcher gets them."""


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
    """Made the current ones, for a launch."""
    driver: Any = None


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
            groups = dict(zip(source.fn.arg_names, arguments[9:], strict=True))
            what = source.fn.__name__, grid, block, 0, cooperative_grid, arguments[3], registers(source), []
            journal.launches.append(Launch(*what, groups))

        return _Compiled(
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
    if why := fake_driver.missing():
        pytest.skip(why)
    driver = fake_driver.on_the_fake_driver(partial(monkeypatch.setattr, raising=False))
    journal = Journal(driver=driver)
    names: dict[bytes, list[str]] = {}
    loaded = driver.utils.load_binary
    compile_for_real = triton.compiler.compile

    def compiled(source: ASTSource, target: GPUTarget, options: dict[str, Any], **more: Any) -> Any:
        journal.sources.append(source)
        journal.options.append(options)
        kernel = compile_for_real(source, target=target, options=options, **more)
        found = run_time_arguments(source.signature)
        # Triton before 3.9 names a group's fields after the argument alone.
        for name, in_code in zip(found, _names(kernel.asm["ttir"]), strict=True):
            assert in_code in (name, name.split(".")[0])
        names[kernel.asm["cubin"]] = list(found)
        return kernel

    def load(*arguments: Any) -> Any:
        handles = loaded(*arguments)
        journal.loaded += 1
        return handles

    monkeypatch.setattr(driver.utils, "load_binary", load)
    monkeypatch.setattr(driver, "launcher_cls", _taking_notes(driver, journal, names))
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
    fake_driver.in_place_of_a_gpu(partial(monkeypatch.setattr, raising=False), driver, limits)
    monkeypatch.setattr(triton.compiler, "compile", compiled)
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "compile", compiled, raising=False)  # create_binder sets it; undone all the same

    def current(device: torch.device) -> nullcontext[None]:
        journal.devices.append(device)
        return nullcontext()

    def launched(problem: Problem, config: Config, device: torch.device, groups: dict[str, Any]) -> None:
        journal.calls.append((problem, config, groups))
        launch.launch(problem, config, device, groups)

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(layer, "launch", launched)


class _Compiled(SimpleNamespace):
    """In place of Triton's CompiledKernel, which is itself alone."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _taking_notes(driver: FakeDriver, journal: Journal, names: dict[bytes, list[str]]) -> Callable[..., Any]:
    """Triton's launcher, and a note of what arrived. names: by cubin, as the front end wrote them into the kernel."""

    def launcher_of(source: ASTSource, metadata: Any) -> Callable[..., None]:
        launcher = nvidia.CudaLauncher(source, metadata)

        def launched(grid_x: int, grid_y: int, grid_z: int, stream: int, function: int, *arguments: Any) -> None:
            launcher(grid_x, grid_y, grid_z, stream, function, *arguments)
            name, kernel, cubin = driver.kernels[function]
            found, own = driver.last_launch(), names[cubin]
            widths, values = kernel.width[: kernel.parameters], found.value[: kernel.parameters]
            assert kernel.parameters == len(own) + 2, (own, widths)
            journal.launches.append(
                Launch(
                    name,
                    tuple(found.grid),
                    tuple(found.block),
                    found.shared,
                    bool(found.cooperative),
                    found.stream,
                    kernel.registers,
                    list(zip([*own, "", ""], widths, values, strict=True)),
                )
            )

        return launched

    return launcher_of


def _names(ttir: str) -> list[str]:
    """The run-time arguments of a kernel, in order; a tuple's once for each element."""
    head = ttir[ttir.index("tt.func public") :]
    return re.findall(r'loc\("([\w.]+?)(?:\.\d+)?"\(', head[: head.index("attributes {noinline")])
