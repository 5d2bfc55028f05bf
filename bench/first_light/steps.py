"""What first light looks at, in order of worth. Each step yields rows as it goes; without times in a rehearsal."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from triton import knobs

from ...autotune.pin import kernels_where_they_can
from ...cells.backend import backend
from ...kernels.problem import Phase
from ...kernels.stall import raise_if_stalled, status_word
from ..method.case import Case
from ..method.floor import measure_floor
from ..method.judge import Judge, Verdict
from ..method.numbers import Numbers
from ..providers.holdfast import Holdfast
from ..providers.provider import Prepared
from ..providers.torch_nn import TorchNN
from .layer import PHASES, WAYS, OneLayer, Way, call_us, kernel_us, limits_of, portable_poll, way_of
from .polls import polls_of
from .shapes import HOME, OTHERS, SMALL, WIDTHS

Row = dict[str, Any]


@dataclass(frozen=True)
class Where:
    """The device, and whether everything is tiny and untimed because the interpreter stands in for it."""

    device: torch.device
    rehearse: bool

    def case(self, cell: str, dtype: torch.dtype, hidden: int, batch: int, length: int) -> Case:
        if self.rehearse:
            hidden, batch, length = 20, 3, min(length, 3)
        return Case(cell, dtype, hidden, batch, length)


def versions(where: Where) -> Iterator[Row]:
    """What is here."""
    yield {"what": "python", "value": platform.python_version()}
    yield {"what": "torch", "value": torch.__version__}
    yield {"what": "triton", "value": triton.__version__}
    yield {"what": "Triton's key", "value": _triton_key()[:16]}
    yield {"what": "Triton's cache", "value": knobs.cache.dir}
    if where.rehearse:
        return
    yield {"what": "GPU", "value": torch.cuda.get_device_name(where.device)}
    yield {"what": "CUDA", "value": torch.version.cuda}
    yield {"what": "cuDNN", "value": torch.backends.cudnn.version()}
    asked = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,driver_version,compute_mode"
    if tool := shutil.which("nvidia-smi"):
        said = subprocess.run([tool, f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True)
        yield {"what": asked, "value": said.stdout.strip() or said.stderr.strip()}


def _triton_key() -> str:
    """Of the compiler: what it compiled is found again under the same key alone."""
    from triton.runtime.cache import triton_key

    return triton_key()


def kernels(where: Where) -> Iterator[Row]:
    """Ten kernels: found in the cache, or compiled, and in how many seconds?"""
    hits: list[bool] = []
    with told_of_kernels(hits.append):
        for shape in (*HOME, SMALL, OTHERS[0]):
            layer = OneLayer(where.case(*shape, 8), where.device)
            way = _first_way(layer, where)
            start, before = time.perf_counter(), len(hits)
            layer.training(way)
            _synchronize(where)
            new = hits[before:]
            yield {"case": str(layer.case), "seconds": round(time.perf_counter() - start, 2)} | {
                "found": sum(new),
                "compiled": len(new) - sum(new),
            }


@contextmanager
def told_of_kernels(tell: Callable[[bool], None]) -> Iterator[None]:
    """Tell whether each kernel that Triton is asked for in this block was in its cache."""

    def listen(*, cache_hit: bool, **_: object) -> None:
        tell(cache_hit)

    with knobs.compilation.scope():
        knobs.compilation.listener = listen
        yield


def right(where: Where) -> Iterator[Row]:
    """Every way of h to the product, forwards and backwards, against float64."""
    for shape in (*HOME, SMALL):
        for length in (8, 64, 1024):
            layer = OneLayer(where.case(*shape, length), where.device)
            for way in _ways(layer, where):
                yield from _checked(layer, way, where)


def _checked(layer: OneLayer, way: Way, where: Where) -> Iterator[Row]:
    with portable_poll(way.name == "portable"):
        for phase, outputs in (
            ("forward", lambda: {"y": layer.forward(way)}),
            ("training", lambda: layer.training(way)),
        ):
            row = {"case": str(layer.case), "way": way.name, "phase": phase, "config": str(way.forward)}
            found = layer.judge(outputs())
            yield row | _verdict(found) | {"status": int(status_word(where.device)[0])}
            raise_if_stalled(where.device)


def _verdict(found: Verdict) -> Row:
    return {"error": f"{found.error:.2e}", "allowed": f"{found.allowed:.2e}", "ok": _yes(found.ok)}


def step(where: Where) -> Iterator[Row]:
    """A step's time, (t(1024) - t(512)) / 512, of the loop alone; its floor; torch.nn's whole call likewise. A wrong
    result still gets its time, marked."""
    for shape in HOME:
        long, short = (OneLayer(where.case(*shape, T), where.device) for T in (1024, 512))
        for way in _ways(long, where):
            with portable_poll(way.name == "portable"):
                for phase, config in zip(PHASES, (way.forward, way.backward), strict=True):
                    row: Row = {"case": str(long.case), "way": way.name, "phase": phase, "config": str(config)}
                    row |= _verdict(long.judge({"y": long.forward(way)} if phase == "forward" else long.training(way)))
                    if not where.rehearse:
                        calls = [_loop_us(layer, way, phase) for layer in (long, short)]
                        row["us_per_step"] = round((calls[0] - calls[1]) / 512, 3)
                        floor = measure_floor(replace(long.problem, phase=phase), config, where.device)
                        row |= {
                            "floor_exchange": round(floor.exchange_us, 3),
                            "floor_weights": round(floor.weights_us, 3),
                        }
                    yield row
                    raise_if_stalled(where.device)
        if not where.rehearse:
            for whole in ("forward", "training"):
                for name, provider in (("torch.nn", TorchNN()), ("holdfast, whole call", Holdfast())):
                    times = [_provider_us(provider, layer, whole) for layer in (long, short)]
                    us = round((times[0] - times[1]) / 512, 3)
                    yield {"case": str(long.case), "way": name, "phase": whole, "us_per_step": us}


def _loop_us(layer: OneLayer, way: Way, phase: Phase) -> float:
    if phase == "forward":
        return kernel_us(lambda: layer.forward(way), "forward")
    return kernel_us(lambda: layer.training(way), "backward")


def _provider_us(provider: Any, layer: OneLayer, phase: Any) -> float:
    with kernels_where_they_can():
        prepared: Prepared = provider.prepare(layer.numbers, phase)
        return call_us(lambda: prepared.call(0))


def polls(where: Where) -> Iterator[Row]:
    """Polls a step of the exchange alone: how many failed before the one that found everything?"""
    for shape in (HOME[0], *WIDTHS):
        layer = OneLayer(where.case(*shape, 256), where.device)
        way = way_of("portable", layer.problem, limits_of(where.device))
        if way is None:
            continue
        counted = polls_of(layer.problem, way.forward, where.device, layer.case.length).double()
        yield {"case": str(layer.case), "programs": counted.shape[1], "mean": round(counted.mean().item(), 2)} | {
            "least": int(counted.min()),
            "most": int(counted.max()),
        }


def shapes(where: Where) -> Iterator[Row]:
    """Other batch sizes, widths and TF32: right, and the loop's time a step."""
    wanted = [("lstm", torch.bfloat16, 768, batch) for batch in (1, 64, 128, 256)]
    wanted += [
        ("lstm", torch.bfloat16, 256, 16),
        ("lstm", torch.bfloat16, 1024, 16),
        ("lstm", torch.float32, 256, 1024),
    ]
    for shape in wanted:
        long, short = (OneLayer(where.case(*shape, T), where.device) for T in (512, 256))
        way = _first_way(long, where)
        for phase in PHASES:
            row: Row = {"case": str(long.case), "way": way.name, "phase": phase}
            row |= _verdict(long.judge({"y": long.forward(way)} if phase == "forward" else long.training(way)))
            if not where.rehearse:
                calls = [_loop_us(layer, way, phase) for layer in (long, short)]
                row["us_per_step"] = round((calls[0] - calls[1]) / 256, 3)
            yield row
            raise_if_stalled(where.device)


def host(where: Where) -> Iterator[Row]:
    """The host's time of a call of one step, beside torch.nn's: until it returns, nothing waited for."""
    for cell in ("lstm", "gru", "rnn_tanh"):
        numbers = Numbers(where.case(cell, torch.bfloat16, 256, 1, 1), where.device)
        for phase in ("forward", "training"):
            for name, provider in (("holdfast", Holdfast()), ("torch.nn", TorchNN())):
                with backend("triton") if name == "holdfast" else ExitStack():
                    prepared = provider.prepare(numbers, phase)  # type: ignore[arg-type]
                    prepared.call(0)
                    row: Row = {"case": str(numbers.case), "provider": name, "phase": phase}
                    if not where.rehearse:
                        row["host_us"] = round(_host_us(prepared, where), 1)
                    yield row


def _host_us(prepared: Prepared, where: Where) -> float:
    times = []
    for _ in range(300):
        start = time.perf_counter_ns()
        prepared.call(0)
        times.append(time.perf_counter_ns() - start)
        if len(times) % 20 == 0:
            _synchronize(where)
    return sorted(times)[len(times) // 4] / 1e3


def neighbours(where: Where) -> Iterator[Row]:
    """Beside others: a three-second kernel on another stream, two launches on two streams, a graph's replays."""
    layer = OneLayer(where.case(*HOME[0], 64), where.device)
    way = _first_way(layer, where)
    alone = layer.forward(way)
    if where.rehearse:
        yield {"what": "twice the same bits", "ok": _yes(torch.equal(alone, layer.forward(way)))}
        return
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    with torch.cuda.stream(streams[0]):
        torch.cuda._sleep(int(3e9 * 1.7))  # cycles; one SM's worth of a busy neighbour
    beside = layer.forward(way)
    torch.cuda.synchronize()
    yield {"what": "three seconds on another stream", "ok": _yes(torch.equal(alone, beside))}
    both = []
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            both.append(layer.forward(way))
    torch.cuda.synchronize()
    yield {"what": "two launches on two streams", "ok": _yes(all(torch.equal(alone, y) for y in both))}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer.forward(way)
    for replay in range(3):
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        yield {"what": f"replay {replay + 1} of a graph", "ok": _yes(torch.equal(alone, captured))}
    raise_if_stalled(where.device)


_BUSY = (
    "import torch; a = torch.randn(8192, 8192, device='cuda'); [a @ a for _ in range(300)]; torch.cuda.synchronize()"
)


def limits(where: Where) -> Iterator[Row]:
    """The largest grid; both directions at once; another process on the same GPU."""
    for what, case in (
        ("largest grid", where.case("lstm", torch.bfloat16, 1024, 256, 64)),
        ("both directions", replace(where.case("lstm", torch.bfloat16, 768, 16, 64), directions=2)),
    ):
        numbers = Numbers(case, where.device)
        with backend("triton"):
            prepared = Holdfast().prepare(numbers, "training")
            prepared.call(0)
        verdict = Judge(numbers)(prepared.results(), case.dtype, factor=1.0)
        yield {"what": what, "case": str(case), "config": prepared.config} | _verdict(verdict)
    if where.rehearse:
        return
    layer = OneLayer(where.case(*HOME[0], 1024), where.device)
    way = _first_way(layer, where)
    alone = layer.forward(way)
    with subprocess.Popen([sys.executable, "-c", _BUSY]) as other:
        same = 0
        while other.poll() is None:
            same += torch.equal(alone, layer.forward(way))
        yield {"what": "beside another process", "calls": same, "ok": _yes(same > 0)}
    raise_if_stalled(where.device)


def _ways(layer: OneLayer, where: Where) -> Iterator[Way]:
    for name in WAYS:
        if where.rehearse and name == "spin":
            continue  # the interpreter has no PTX
        way = way_of(name, layer.problem, limits_of(where.device))
        if way is not None:
            yield way


def _first_way(layer: OneLayer, where: Where) -> Way:
    return next(way for way in _ways(layer, where))


def _synchronize(where: Where) -> None:
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)


def _yes(good: bool) -> str:
    return "yes" if good else "WRONG"


@dataclass(frozen=True)
class Step:
    seconds: int
    run: Callable[[Where], Iterator[Row]]


STEPS = {
    step_.run.__name__: step_
    for step_ in (
        Step(20, versions),
        Step(60, kernels),
        Step(80, right),
        Step(90, step),
        Step(20, polls),
        Step(60, shapes),
        Step(20, host),
        Step(30, neighbours),
        Step(40, limits),
    )
}
"""By name; seconds that each may take. All of them together end at the whole run's limit."""
