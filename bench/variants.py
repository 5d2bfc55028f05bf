"""holdfast beside itself: the same layer on another kind of batch, packed, step by step, or in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .case import Case, Phase
from .numbers import Numbers
from .packed import PackedCalls
from .providers import HOLDFAST, Calls, Holdfast, Prepared, Unavailable


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
        from ..kernels import layer

        if phase == "training" or numbers.case.heads > 1 or numbers.case.layers > 1:
            raise Unavailable("the input GEMM is left out forwards, for one layer and one head")
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
