"""Layers of a few numbers under many schedules: which go wrong, and how to see it again.

Every case is one exchange in one phase. What a schedule is expected to return, bit for bit, is what one plain schedule
returns, and test_schedules.py compares that with torch in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice

import torch

from holdfast.bench.check.layer import Case, Layer
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import Interpreter, interpret
from holdfast.kernels.layer import Residuals, backward_layer, forward_layer
from holdfast.kernels.schedulers import SCHEDULERS
from holdfast.kernels.stall import status_word

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Exchange:
    """config:    of the loop that is looked at.
    resident:  programs that run at once; few of them visit the batch tiles in turns.
    poison:    whether x, h_0 and dy hold the sentinel, a NaN that is somebody's data.
    """

    cell: str
    dtype: torch.dtype
    config: Config
    phase: str = "forward"
    hidden: int = 8
    batch: int = 3
    length: int = 3
    resident: int = 132
    poison: bool = False
    directions: int = 1

    @property
    def case(self) -> Case:
        sizes = {"hidden_size": self.hidden, "batch_size": self.batch, "length": self.length}
        return Case(self.cell, self.config.regime, self.dtype, directions=self.directions, **sizes)


def _team(exchange: str, units: int = 4, split: int = 1, rows: int = 4) -> Config:
    return Config("cooperative", rows, units, 8 if units < 16 else 16, exchange=exchange, SPLIT_K=split)


ALONE = Config("single_cta", 2, 8, 8)
"""A team of one for each two rows."""

EXCHANGES = {
    "registers forward": Exchange("gru", torch.float32, ALONE, length=2),
    "registers backward": Exchange("rnn_tanh", torch.float32, ALONE, "backward", length=2),
    "dataflow forward": Exchange("rnn_tanh", torch.bfloat16, _team("dataflow"), poison=True),
    "dataflow backward": Exchange("rnn_tanh", torch.float32, _team("dataflow"), "backward", poison=True),
    "dataflow split forward": Exchange("rnn_tanh", torch.float32, _team("dataflow", 16, 2), hidden=32, poison=True),
    "dataflow split": Exchange("rnn_tanh", torch.float16, _team("dataflow", 16, 2), "backward", 32),
    "dataflow two products": Exchange("gru_reset_before", torch.float32, _team("dataflow"), length=2),
    "barrier forward": Exchange("rnn_tanh", torch.float16, _team("barrier", rows=2), poison=True, resident=2),
    "barrier backward": Exchange("rnn_tanh", torch.float32, _team("barrier"), "backward", poison=True),
    "barrier split forward": Exchange("rnn_tanh", torch.float32, _team("barrier", 16, 2), hidden=32, poison=True),
    "barrier split": Exchange("rnn_tanh", torch.float32, _team("barrier", 16, 2), "backward", 32),
    "barrier two products": Exchange("gru_reset_before", torch.float32, _team("barrier"), length=2),
    "dataflow means": Exchange("lstm_layer_norm", torch.float32, _team("dataflow"), batch=2),
}
"""Each exchange, of a team of two programs, forwards and backwards."""

LONGER = {
    "dataflow forward, two tiles": Exchange("lstm", torch.bfloat16, _team("dataflow", rows=2), length=5, resident=2),
    "dataflow backward, three programs": Exchange("gru", torch.bfloat16, _team("dataflow", 2), "backward", 6),
    "dataflow split forward, six rounds": Exchange(
        "lstm", torch.float32, _team("dataflow", 16, 2, 2), hidden=32, length=6, resident=2
    ),
    "dataflow split forward, two products": Exchange(
        "gru_reset_before", torch.float32, _team("dataflow", 16, 2), hidden=32
    ),
    "dataflow split, six rounds": Exchange(
        "lstm", torch.float32, _team("dataflow", 4, 2, 2), "backward", length=6, resident=2
    ),
    "dataflow split, two products": Exchange("gru_reset_before", torch.float32, _team("dataflow", 4, 2), "backward"),
    "barrier forward, three programs": Exchange("lstm", torch.float32, _team("barrier", 2), hidden=6, length=5),
    "barrier split forward, two tiles": Exchange(
        "gru", torch.float32, _team("barrier", 16, 2, 2), hidden=32, length=4, resident=2
    ),
    "barrier split forward, two products": Exchange(
        "gru_reset_before", torch.float32, _team("barrier", 16, 2), hidden=32
    ),
    "barrier split, two tiles": Exchange(
        "gru", torch.float32, _team("barrier", 4, 2, 2), "backward", length=4, resident=2
    ),
    "barrier split, two products": Exchange("gru_reset_before", torch.float32, _team("barrier", 4, 2), "backward"),
    "dataflow means, six rounds, three programs": Exchange(
        "gru_layer_norm", torch.float32, _team("dataflow", 2, rows=2), hidden=6, length=6, resident=3
    ),
    "dataflow means, split": Exchange(
        "lstm_layer_norm", torch.float32, _team("dataflow", 4, 2), "backward", batch=2, length=2
    ),
    "dataflow means, two products": Exchange(
        "gru_reset_before_layer_norm", torch.float32, _team("dataflow", 4, 2), "backward", length=2
    ),
    "barrier means": Exchange("gru_layer_norm", torch.float32, _team("barrier"), "backward", batch=2, length=2),
    "barrier means, two tiles": Exchange("lstm_layer_norm", torch.float32, _team("barrier", rows=2), resident=2),
}
"""What takes a few times as long: more steps, programs, batch tiles and products a step."""

ALL_ONES = {
    torch.bfloat16: torch.full((), -1, dtype=torch.int16).view(torch.bfloat16),
    torch.float16: torch.full((), -1, dtype=torch.int16).view(torch.float16),
    torch.float32: torch.full((), -1, dtype=torch.int32).view(torch.float32),
}
"""The NaN whose bits are the sentinel."""


@lru_cache(maxsize=64)
def runner(exchange: Exchange) -> Callable[[], list[torch.Tensor]]:
    """A function that runs the exchange's loop alone: what comes before a loop backwards is computed once, by a team of
    one. Its results: y and final states, or all gradients."""
    case = exchange.case
    layer, forward = layer_of(exchange), case.problem
    given = (layer.x, layer.weights(CPU), layer.hx)
    if exchange.phase == "forward":

        def run_forward() -> list[torch.Tensor]:
            y, final, _ = forward_layer(forward, exchange.config, *given)
            return [y, *final]

        return run_forward

    block = 1 << (exchange.hidden - 1).bit_length()
    y, _, found = forward_layer(forward, Config("single_cta", 4, block, block), *given, keep="save")
    # A team of one keeps what a second product multiplied in registers; a larger one writes it down.
    residuals = Residuals(found.kept, found.saved, found.inner, found.sent)
    dy, *d_final = gradients_of(exchange)
    backward = replace(forward, phase="backward")

    def run_backward() -> list[torch.Tensor]:
        gradients = backward_layer(backward, exchange.config, *given, y, residuals, dy, d_final)
        of_weights = [tensor for w in gradients.weights for tensor in w if tensor is not None]
        return [gradients.x, *gradients.initial, *of_weights]

    return run_backward


def layer_of(exchange: Exchange) -> Layer:
    layer = Layer(exchange.case, seed=5)
    if exchange.poison and exchange.phase == "forward":
        layer.x[0, 0, 1] = layer.hx[0][0, 1, 2] = ALL_ONES[exchange.dtype]
    return layer


def gradients_of(exchange: Exchange) -> list[torch.Tensor]:
    """Of y and the final states."""
    dy, *d_final = layer_of(exchange).loss_weights()
    if exchange.poison:
        dy[1, 0, 2] = ALL_ONES[exchange.dtype]
    return [dy, *d_final]


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN: what nobody has written is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@lru_cache(maxsize=64)
def expected(exchange: Exchange) -> list[torch.Tensor]:
    with poisoned(), interpret(resident_programs=exchange.resident):
        return runner(exchange)()


def schedules() -> Iterator[tuple[str, int]]:
    """Schedulers and seeds, in turns."""
    for seed in count():
        for name in SCHEDULERS:
            yield name, seed


def wrong(exchange: Exchange, interpreter: Interpreter) -> str | None:
    """What goes wrong under a schedule; None where all bits are as they should be."""
    from holdfast.kernels.executor import executing_on

    right, run = expected(exchange), runner(exchange)
    status_word(CPU).zero_()
    try:
        with poisoned(), executing_on(interpreter):
            found = run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for index, (a, b) in enumerate(zip(found, right, strict=True)):
        differs = (a != b) & ~(a.isnan() & b.isnan())
        if differs.any():
            return f"{int(differs.sum())} numbers of result {index} are wrong; {interpreter.replay}"
    return None


def explore(exchange: Exchange, number: int, **options: object) -> Iterator[str]:
    """What goes wrong in so many schedules. Replay one:

    wrong(EXCHANGES["barrier forward"], Interpreter(seed=3, scheduler="preempt", pieces=0))
    """
    for name, seed in islice(schedules(), number):
        pieces = 0 if seed % 4 == 1 else 2
        interpreter = Interpreter(seed, scheduler=name, pieces=pieces, resident_programs=exchange.resident, **options)
        interpreter.spin_limit = 200
        found = wrong(exchange, interpreter)
        if found is not None:
            yield f"{found} (pieces={pieces})"
