"""holdfast beside itself: the same layer on another kind of batch, packed, step by step, or with a part left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ...cells.backend import backend
from ...kernels import layer
from ..method.case import Case, Phase
from ..method.numbers import Numbers
from .holdfast import HOLDFAST, Holdfast, sequence_arguments
from .provider import Calls, ModuleCalls, PackedCalls, Prepared, Unavailable


class Twin:
    """holdfast on a related case with numbers of its own: what a feature's time is compared with.

    change:  the related case of this case and its numbers.
    """

    is_peer = False

    def __init__(self, name: str, change: Callable[[Numbers], Case]) -> None:
        self.name, self.change = name, change

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        other = Numbers(self.change(numbers), numbers.device, seed=1, copies=len(numbers.xs))
        prepared = Holdfast().prepare(other, phase)
        prepared.numbers = other
        return prepared


class Packed:
    """holdfast on a PackedSequence; packing and padding are left out of the time."""

    name = "holdfast packed"
    is_peer = False

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        case = numbers.case
        calls = PackedCalls(numbers, numbers.module(HOLDFAST[case.cell], case.dtype), case.dtype)
        return calls.prepared(phase, algorithm="PackedSequence")


class Streamed:
    """`holdfast.Stateful(module).step` for every step, as a server that gets one step at a time."""

    name = "holdfast Stateful.step"
    is_peer = False

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        import holdfast

        if phase == "training":
            raise Unavailable("a stream is not trained on")
        case = numbers.case
        stream: Any = holdfast.Stateful(numbers.module(HOLDFAST[case.cell], case.dtype))

        def forward(x: Tensor) -> Tensor:
            stream.reset()
            return torch.stack([stream.step(step) for step in x.unbind(0)])

        return Calls(numbers, forward, {}, case.dtype).prepared(phase, algorithm="one step a call")


class LoopAlone:
    """holdfast's kernel path with the input projection left out: its result is handed in, computed once an input."""

    name = "holdfast without input GEMM"
    is_peer = False

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        if phase == "training" or numbers.case.layers > 1:
            raise Unavailable("the input GEMM is left out forwards, for one layer")
        prepared = Holdfast().prepare(numbers, phase)
        if prepared.regime == "eager":
            raise Unavailable(f"no kernel runs this call: {prepared.algorithm}")
        project, whole = layer.project_input, prepared.call
        projected: dict[int, Tensor] = {}

        def remember(*arguments: Any, **options: Any) -> Tensor:
            result = project(*arguments, **options)
            projected[len(projected)] = result
            return result

        with patch.object(layer, "project_input", remember):
            for number in range(len(numbers.xs)):
                whole(number)

        def call(number: int) -> None:
            with patch.object(layer, "project_input", lambda *_, **__: projected[number]):
                whole(number)

        prepared.call = call
        return prepared


class HostSide:
    """What a call of the kernel path costs the host: checks, decision, allocations, autograd, the small GEMMs, and the
    launch, by Triton's own launcher on a driver that executes nothing (`method.fake_driver`).

    For a block of `fake_driver.fake_gpu` and holdfast.backend "triton". What is left in the results means nothing
    there: they are checked by a first run in the interpreter, without TF32 as torch.nn on a CPU.
    """

    name = "holdfast kernel path"
    is_peer = False

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        if find_spec("greenlet") is None:  # a machine with a GPU may lack it
            raise Unavailable("the interpreter, which checks the results, needs greenlet: pip install greenlet")
        if numbers.device.type != "cpu":
            raise Unavailable("the fake driver takes a real one's place: on machines without a GPU")
        from ...kernels.interpreter import interpret

        case = numbers.case
        module = numbers.module(HOLDFAST[case.cell], case.dtype)
        calls = ModuleCalls(numbers, module, case.dtype, **sequence_arguments(numbers))
        prepared = calls.prepared(phase, algorithm="launches that execute nothing", numbers=numbers)
        run, checked = prepared.call, False

        def call(number: int) -> None:
            nonlocal checked
            if checked:
                run(number)
                return
            checked = True
            with interpret(), backend("triton"), _without_tf32():
                run(number)

        prepared.call = call
        return prepared


@contextmanager
def _without_tf32() -> Iterator[None]:
    rnn: Any = torch.backends.cudnn.rnn
    before, rnn.fp32_precision = rnn.fp32_precision, "ieee"
    try:
        yield
    finally:
        rnn.fp32_precision = before
