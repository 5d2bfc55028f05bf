"""What a provider is: it turns the numbers of a case into a call that can be timed.

Where it cannot run it raises Unavailable with the reason, which the tables show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ...kernels.plan import Plan
from ..method.case import Case, Phase
from ..method.numbers import Numbers, Results, named


class Unavailable(Exception):  # noqa: N818  not an error: the table says why there is no time
    """This provider cannot run this case here; the message is the reason."""


@dataclass
class Prepared:
    """A case that is ready to run.

    call:       computes the whole phase on the input of this number.
    results:    what the last call left, by the names of `Numbers.right`.
    dtype:      what it computes in.
    algorithm, regime, config, origin:  what runs, for the table; empty where that says nothing.
    plan:       holdfast's own decision, for the floor.
    numbers:    what the results are to be compared with where it is not the case's own numbers.
    """

    call: Callable[[int], object]
    results: Callable[[], Results]
    dtype: torch.dtype
    algorithm: str = ""
    regime: str = ""
    config: str = ""
    origin: str = ""
    plan: Plan | None = None
    numbers: Numbers | None = None


class Provider(Protocol):
    """is_peer: not ours: it may err more, and its failure is no failure of the run."""

    name: str
    is_peer: bool

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        """Raises Unavailable."""


class Calls:
    """The two phases of something that maps x to y, with autograd for the second.

    forward:  y of an input, [T, B, width].
    leaves:   parameters whose gradients are part of the results, by name.
    """

    def __init__(
        self, numbers: Numbers, forward: Callable[[Tensor], Tensor], leaves: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        self.forward, self.leaves, self.dtype = forward, leaves, dtype
        self.xs = [x.to(dtype).detach() for x in numbers.xs]  # leaves of their own, memory in common
        self.dy = numbers.dy.to(dtype)
        self.y: Tensor | None = None
        self.x: Tensor | None = None

    def infer(self, number: int) -> None:
        with torch.no_grad():
            self.y = self.forward(self.xs[number])

    def train(self, number: int) -> None:
        self.x = x = self.xs[number]
        x.grad = None
        for leaf in self.leaves.values():
            leaf.grad = None
        self.y = y = self.forward(x)
        y.backward(self.dy)

    def results(self) -> Results:
        """Of the last call."""
        assert self.y is not None
        found = {"y": self.y.detach()}
        if self.x is not None:
            gradients = {"x": self.x, **self.leaves}
            found |= {name: leaf.grad for name, leaf in gradients.items() if leaf.grad is not None}
        return found

    def prepared(self, phase: Phase, **what: Any) -> Prepared:
        for x in self.xs:
            x.requires_grad_(phase == "training")
        call = self.infer if phase == "forward" else self.train
        return Prepared(call, self.results, self.dtype, **what)


class ModuleCalls(Calls):
    """The two phases of a module on the whole input, its parameters by head. Arguments go to each forward."""

    def __init__(self, numbers: Numbers, module: Any, dtype: torch.dtype, **arguments: Any) -> None:
        super().__init__(numbers, lambda x: module(x, **arguments)[0], dict(module.named_parameters()), dtype)
        self.numbers = numbers

    def results(self) -> Results:
        found = super().results()
        by_name = [(name, found.pop(name)) for name in self.leaves if name in found]
        for name, gradient in by_name:
            found |= self.numbers.by_head(name, gradient)
        return found


def refuse_stacked_heads(case: Case) -> None:
    """Raise Unavailable where what heads compute apart is not what a module of several does: from the second layer on
    it sees all of them."""
    if case.heads > 1 and (case.layers > 1 or case.directions > 1):
        raise Unavailable("heads are compared in one layer and one direction")


class PackedCalls(Calls):
    """The two phases of a module on the real steps of a ragged batch, as a PackedSequence.

    Packing before the time begins, padding after it ends. Raises Unavailable where the batch is not ragged.
    """

    def __init__(self, numbers: Numbers, module: Any, dtype: torch.dtype) -> None:
        if numbers.lengths is None:
            raise Unavailable("only ragged batches are packed")
        self.lengths, self.steps = numbers.lengths, numbers.case.length
        layout = self._pack(numbers.xs[0])

        def forward(data: Tensor) -> Tensor:
            return module(layout._replace(data=data))[0].data

        super().__init__(numbers, forward, {named(name, 0): p for name, p in module.named_parameters()}, dtype)
        self.layout = layout
        self.xs = [self._pack(x).data.detach() for x in self.xs]
        self.dy = self._pack(self.dy).data

    def results(self) -> Results:
        found = super().results()
        return found | {name: self._pad(found[name]) for name in ("x", "y") if name in found}

    def _pack(self, values: Tensor) -> PackedSequence:
        return pack_padded_sequence(values, self.lengths, enforce_sorted=False)

    def _pad(self, data: Tensor) -> Tensor:
        return pad_packed_sequence(self.layout._replace(data=data), total_length=self.steps)[0]
