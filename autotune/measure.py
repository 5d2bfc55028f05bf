"""Measure one candidate, in this process: its results against another config's and against its own, then its time.

From the question to the answer: `Job` -> `run` (`difference`, `unsteady`, `time_call`) on `inputs` that are the same
for every candidate -> `Result`. `processes` sends jobs to where a candidate that never ends can be killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.extras import Extras
from ..kernels.gemm import LayerWeights, Wanted
from ..kernels.heads import block_diagonal, diagonal_blocks
from ..kernels.kept import Keep
from ..kernels.layer import backward_layer, forward_layer
from ..kernels.plan import Reason
from ..kernels.problem import Problem
from ..kernels.resources import H100, from_device
from ..kernels.stall import StalledError, raise_if_stalled
from .candidates import choose
from .store import L2


class MeasurementRefusedError(RuntimeError):
    """Nothing can be timed here."""


def require_gpu(device: torch.device) -> None:
    """Raise MeasurementRefusedError where there is no GPU to time on."""
    if device.type != "cuda" or not torch.cuda.is_available():
        raise MeasurementRefusedError(
            f"no kernel can be timed on {device}: torch sees no NVIDIA GPU here. "
            "`holdfast tune --rehearse` does everything but the timing, without one."
        )
    if torch.version.hip:
        raise MeasurementRefusedError("no kernel has run on an AMD GPU yet: the modules run torch's own op there.")


@dataclass(frozen=True)
class Job:
    """config, keep:  what to run; config None: torch's own op.

    reference:   a config whose results these are compared with.
    length:      steps of the sequence that is timed.
    device:      "cuda:0"; "cpu" runs the candidate in the interpreter, where nothing is timed.
    untimed:     end after the comparison; the kernels then lie in Triton's disk cache.
    best_us:     the best median so far with a warm L2; what is far from it is given up early.
    """

    problem: Problem
    config: Config | None
    keep: Keep
    reference: Config
    length: int
    device: str
    best_us: float | None = None
    untimed: bool = False


class Quantiles(NamedTuple):
    """Microseconds of one call over `repeats` calls. stopped: given up after a few."""

    p20: float
    p50: float
    p80: float
    repeats: int
    stopped: bool = False


Status = Literal["timed", "stopped", "right", "not run", "wrong", "failed", "killed"]


@dataclass(frozen=True)
class Result:
    """timed:    both times are there.
    stopped:  given up early: it cannot win; the warm time is that of a few calls.
    right:    it ran with the reference's results; no time was asked for, or it ran in the interpreter.
    not run:  a rehearsal would take too long.
    wrong:    its results are not the reference's, or not the same in every run; no time.
    failed:   it raised, or its process died.
    killed:   it took longer than it may, and its process was ended.
    """

    status: Status
    why: str = ""
    warm: Quantiles | None = None
    cold: Quantiles | None = None


COMPARED_STEPS = 8
"""Results are compared over a few steps: rounding grows with every further one, mistakes show at once."""

RUNS, INTERPRETED_RUNS = 64, 2
"""How often a candidate's few steps are run and compared with its own first results, bit for bit. A tile that is wrong
in 11% of its runs, as a peer once shipped one, passes 64 of them with a chance of 0.06%."""


def run(job: Job) -> Result:
    """Compare, then time. Never raises: what a candidate does wrong is its result."""
    try:
        return _run(job)
    except StalledError as error:
        return Result("failed", f"stalled: {error}")
    except Exception as error:  # whatever a compiler or a launch raises is the finding here
        return Result("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


class _Layer(NamedTuple):
    """What is compared and timed: a layer's loop with a config, on `inputs` of this length."""

    problem: Problem
    config: Config | None
    keep: Keep
    length: int
    device: torch.device


def _run(job: Job) -> Result:
    device = torch.device(job.device)
    layer = _Layer(job.problem, job.config, job.keep, job.length, device)
    with _interpreted(device):
        few = layer._replace(length=min(COMPARED_STEPS, job.length))
        expected = _results(few._replace(config=job.reference))
        why = difference(_results(few), expected, job.problem)
        if why is None and job.config is not None:  # cuDNN may sum in another order every time
            why = unsteady(_call(few), RUNS if device.type == "cuda" else INTERPRETED_RUNS)
        if why:
            return Result("wrong", why)
        if device.type == "cpu":
            return Result("right", f"{few.length} steps in the interpreter, untimed")
        if job.untimed:
            return Result("right")
        call = _call(layer)
        first = call()
        torch.cuda.synchronize(device)
        raise_if_stalled(device)
        warm = time_call(call, device, "warm", job.best_us)
        cold = None if warm.stopped else time_call(call, device, "cold")
        raise_if_stalled(device)
        if job.config is not None and (why := changed(call(), first)):  # all steps, after all that was timed
            return Result("wrong", f"after the timing, {why}")
    return Result("stopped" if warm.stopped else "timed", "", warm, cold)


def unsteady(call: Callable[[], Sequence[torch.Tensor]], runs: int) -> str | None:
    """In which of so many runs more the results are not the first one's, bit for bit; None where they always are."""
    first = call()
    for number in range(1, runs):
        why = changed(call(), first)
        if why:
            return f"in run {number + 1} of {runs}, {why}"
    return None


def changed(found: Sequence[torch.Tensor], first: Sequence[torch.Tensor]) -> str | None:
    """Which of one config's results are not those of its first run; None where all bits are."""
    for index, (one, other) in enumerate(zip(found, first, strict=True)):
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
        a, b = one.contiguous().view(integer), other.contiguous().view(integer)
        if not torch.equal(a, b):
            return f"{int((a != b).sum())} numbers of result {index} are not those of the first run"
    return None


def _interpreted(device: torch.device) -> AbstractContextManager[object]:
    if device.type != "cpu":
        return nullcontext()
    from ..kernels.interpreter import interpret

    return interpret()


@lru_cache(maxsize=4)
def _results(layer: _Layer) -> tuple[torch.Tensor, ...]:
    """Remembered for the reference, which every candidate is compared with."""
    results = _call(layer)()
    if layer.device.type == "cuda":
        torch.cuda.synchronize(layer.device)
    raise_if_stalled(layer.device)
    return tuple(results)


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], problem: Problem) -> str | None:
    """Why two configs' results are not the same function; None where rounding explains every difference.

    Allowed is 8 times the rounding error of the products' dtype, of the largest number in the tensor: sums in another
    order differ by a unit or two in the last place, a wrong index by the number itself.
    """
    rounding = torch.finfo(torch.float16 if problem.precision == "tf32" else problem.dtype).eps
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        a, b = one.double(), other.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return f"result {index} is not finite where the reference is"
        error = (a - b).nan_to_num().abs().max().item() if a.numel() else 0.0
        allowed = 8 * rounding * max(b.nan_to_num().abs().max().item() if b.numel() else 0.0, 1e-3)
        if error > allowed:
            return f"result {index} differs by {error:.2g} from {allowed:.2g} that rounding explains"
    return None


def _call(layer: _Layer) -> Callable[[], Sequence[torch.Tensor]]:
    """The layer as a function that returns y and final states, or all gradients."""
    problem, config, keep, length, device = layer
    x, weights, extras = inputs(problem, length, device)
    if config is None:
        return _call_of_torch(problem, keep, x, weights)
    if problem.phase == "forward":

        def forward() -> Sequence[torch.Tensor]:
            y, final, _ = forward_layer(problem, config, x, weights, keep=keep, extras=extras)
            return y, *final

        return forward

    before = replace(problem, phase="forward")
    choice = choose(before, H100 if device.type == "cpu" else from_device(device))
    if isinstance(choice, Reason):
        raise RuntimeError(f"no forward pass whose gradients it could compute: {choice}")
    y, final, residuals = forward_layer(before, choice, x, weights, keep=keep, extras=extras)
    dy, *d_final = _gradients_of((y, *final))

    def backward() -> Sequence[torch.Tensor]:
        found = backward_layer(
            problem, config, x, weights, None, y, residuals, dy, d_final, wanted=Wanted(x=False), extras=extras
        )
        return [*found.reset_state, *(g for w in found.weights for g in w if g is not None)]

    return backward


TORCHS: dict[str, tuple[Callable[..., torch.nn.RNNBase], dict[str, str]]] = {
    "rnn_tanh": (torch.nn.RNN, {}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "gru": (torch.nn.GRU, {}),
    "lstm": (torch.nn.LSTM, {}),
}
"""The cells of torch.nn: a module of one layer, and its options."""


def torch_has(problem: Problem) -> bool:
    """Whether torch's own op computes this problem: a dense batch of a cell that it has."""
    return problem.cell in TORCHS and not problem.features


def _call_of_torch(
    problem: Problem, keep: Keep, x: torch.Tensor, weights: Sequence[LayerWeights]
) -> Callable[[], Sequence[torch.Tensor]]:
    """`_call` of torch.nn's module with these weights: cuDNN on a GPU."""
    made, options = TORCHS[problem.cell]
    module = made(INPUT_SIZE, problem.hidden_size, bidirectional=problem.directions == 2, **options)
    module = module.to(x.device, x.dtype)
    given = [
        t for w in weights for t in (w.w_ih, block_diagonal(w.w_hh, problem.num_heads), w.b_ih, w.b_hh) if t is not None
    ]
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), given, strict=True):
            parameter.copy_(weight)
    module.flatten_parameters()
    rows = (problem.directions, problem.batch_size, problem.hidden_size)
    initial = tuple(x.new_zeros(rows) for _ in range(find_cell(problem.cell).states))

    def forward() -> list[torch.Tensor]:
        with float32_products(problem):
            y, final = module(x, initial if len(initial) > 1 else initial[0])
        return [y, *(final if isinstance(final, tuple) else (final,))]

    if problem.phase == "forward":
        kept = torch.enable_grad if keep != "nothing" else torch.no_grad

        def run() -> Sequence[torch.Tensor]:
            with kept():
                return [t.detach() for t in forward()]

        return run

    with torch.enable_grad():
        results = forward()
    gradients = _gradients_of(results)

    def backward() -> Sequence[torch.Tensor]:
        with float32_products(problem):
            found = torch.autograd.grad(results, [*module.parameters()], gradients, retain_graph=True)
        each = len(found) // problem.directions
        return [diagonal_blocks(g, problem.num_heads) if i % each == 1 else g for i, g in enumerate(found)]

    return backward


def _gradients_of(results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator).to(t) for t in results]


@contextmanager
def float32_products(problem: Problem) -> Iterator[None]:
    """What cuDNN may round float32 to, as the problem has it."""
    rnn: Any = torch.backends.cudnn.rnn  # type: ignore[attr-defined]
    before = rnn.fp32_precision
    rnn.fp32_precision = "tf32" if problem.precision == "tf32" else "ieee"
    try:
        yield
    finally:
        rnn.fp32_precision = before


INPUT_SIZE = 16
"""Few inputs, so that the time loop is nearly all of the call; the projection's results are as large as ever."""

RESETS = 1 / 64
"""Share of steps that begin an episode or a document."""

DROPOUT, ZONEOUT = 0.25, 0.1

CPU = torch.device("cpu")


class Inputs(NamedTuple):
    x: torch.Tensor
    weights: list[LayerWeights]
    extras: Extras


def inputs(
    problem: Problem, length: int, device: torch.device, *, on: torch.device = CPU, resets: float = RESETS
) -> Inputs:
    """x [T, B, INPUT_SIZE] (packed: [rows, INPUT_SIZE]), uniform weights and every feature that the problem names.

    Lengths are spread evenly over the upper half of [1, T], the longest first.

    on:      where numbers are drawn: the same on every machine on a CPU, sooner on a GPU.
    resets:  share of steps that begin anew.
    """
    generator = torch.Generator(on).manual_seed(0)
    cell, hidden, batch, directions = (
        find_cell(problem.cell),
        problem.hidden_size,
        problem.batch_size,
        problem.directions,
    )
    bound = hidden**-0.5

    def uniform(*shape: int) -> torch.Tensor:
        numbers = draw(*shape).mul_(2 * bound).sub_(bound)
        return numbers.to(device, problem.dtype)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=on)

    rows = cell.gates * hidden
    weights = [
        LayerWeights(
            uniform(rows, INPUT_SIZE),
            uniform(rows, problem.head_size),
            uniform(rows),
            uniform(rows),
            *((uniform(cell.parameters, hidden),) if cell.parameters else ()),
        )
        for _ in range(directions)
    ]
    has = set(problem.features)
    lengths = torch.linspace(length, (length + 1) // 2, batch).round().long()
    counts = (lengths[None, :] > torch.arange(length)[:, None]).sum(1)  # rows of each step of a packed sequence
    steps_and_rows = (int(counts.sum()),) if "packed" in has else (length, batch)
    given: dict[str, Any] = {}
    if has & {"lengths", "packed"}:
        given["lengths"] = lengths
    if "packed" in has:
        given["starts"] = counts.cumsum(0) - counts
    if "resets" in has:
        given["resets"] = draw(length, batch) < resets
    if "reset_state" in has:
        given["reset_state"] = tuple(draw(directions, batch, hidden) - 0.5 for _ in range(cell.states))
    if "recurrent_dropout" in has:
        given["dropout"] = (draw(directions, batch, hidden) >= DROPOUT) / (1 - DROPOUT)
    if "zoneout" in has:
        shape = (*steps_and_rows, directions * hidden)
        given["zoneout"] = tuple((draw(*shape) < ZONEOUT).to(torch.uint8) for _ in range(cell.states))
    x = torch.randn(*steps_and_rows, INPUT_SIZE, generator=generator, device=on).to(device, problem.dtype)
    extras = Extras(**{name: _to(value, device, problem.dtype) for name, value in given.items()})
    return Inputs(x, weights, extras)


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_to(each, device, dtype) for each in value)
    keeps_its_dtype = value.dtype in (torch.bool, torch.int64)
    return value.to(device) if keeps_its_dtype else value.to(device, dtype)


FEWEST, MOST = 5, 100
"""Calls that are timed, and at most how many."""

SPEND_US = 50_000.0
"""About what all calls of one timing take together."""

LOSES_BY = 1.3
"""A call is given up when its first few runs all take this much longer than the best call known."""

_TRIES = 3
_HEAD_START_CLOCKS = 1_000_000
"""The GPU sleeps this long, about half a millisecond, while the host queues a call: gaps of the host are not timed."""


def time_call(call: Callable[[], object], device: torch.device, l2: L2, best_us: float | None = None) -> Quantiles:
    """Time a call that has run before, so that it is compiled.

    best_us:  the median to beat; None: every call is timed to its end.

    Raises what the call raises.
    """
    with torch.cuda.device(device):
        # Twice the cache: one write of it leaves nothing of what was there.
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        flush = torch.empty(2 * cache_bytes, dtype=torch.int8, device=device) if l2 == "cold" else None
        first = _time(call, flush, _TRIES)
        if best_us is not None and min(first) > LOSES_BY * best_us:
            return quantiles(first, stopped=True)
        repeats = round(SPEND_US / max(min(first), 1.0))
        return quantiles(_time(call, flush, min(MOST, max(FEWEST, repeats))))


def _time(call: Callable[[], object], flush: torch.Tensor | None, repeats: int) -> list[float]:
    pairs = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if flush is not None:
            flush.zero_()
        torch.cuda._sleep(_HEAD_START_CLOCKS)
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in pairs]


def quantiles(times: list[float], stopped: bool = False) -> Quantiles:
    """The 20th, 50th and 80th percentile of times, by the nearest of them."""
    ordered = sorted(times)
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return Quantiles(p20, p50, p80, len(times), stopped)
