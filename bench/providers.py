"""Who computes a case: holdfast, torch.nn, loops, FlashRNN, behind one interface.

A provider turns the numbers of a case into a call that can be timed. Where it cannot run it raises Unavailable with
the reason, which the tables show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..cells.backend import backend
from ..cells.base import RecurrentBase
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..cells.recurrent import Recurrent
from ..cells.rnn import RNN
from ..kernels.plan import Plan
from .case import DTYPE_NAMES, Phase
from .cudnn_algorithm import algorithm_here
from .numbers import TORCH, Factory, Numbers, Results, named

HOLDFAST: dict[str, type[RecurrentBase]] = {"rnn_tanh": RNN, "gru": GRU, "lstm": LSTM}


def holdfast_module(cell: str) -> Factory:
    return HOLDFAST.get(cell) or partial(Recurrent, cell)


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


def module_calls(numbers: Numbers, modules: list[nn.Module], dtype: torch.dtype, **arguments: Any) -> Calls:
    """One module per head on the whole input, outputs side by side. Arguments are passed on to each forward."""
    leaves = {
        named(name, head): parameter
        for head, module in enumerate(modules)
        for name, parameter in module.named_parameters()
    }
    if len(modules) == 1:
        module = modules[0]
        return Calls(numbers, lambda x: module(x, **arguments)[0], leaves, dtype)
    return Calls(numbers, lambda x: torch.cat([module(x, **arguments)[0] for module in modules], -1), leaves, dtype)


class Holdfast:
    """holdfast's module as a user calls it, or with a regime of the user's choice.

    regime:    None: whatever the module chooses. Else the best tiling of that regime by the heuristic's estimate.
    """

    is_peer = False

    def __init__(self, regime: str | None = None) -> None:
        self.regime = regime
        self.name = "holdfast" if regime is None else f"holdfast {regime}"

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        case = numbers.case
        modules = [numbers.module(holdfast_module(case.cell), case.dtype, head) for head in range(case.heads)]
        arguments = sequence_arguments(numbers)
        x = numbers.xs[0].clone().requires_grad_(phase == "training")
        with torch.no_grad() if phase == "forward" else nullcontext():
            plan = modules[0].explain(x, **arguments)
        calls = module_calls(numbers, modules, case.dtype, **arguments)
        if self.regime is not None:
            plan = self._pin(calls, plan, phase)
        return calls.prepared(
            phase,
            algorithm=algorithm_of(plan),
            regime=plan.regime,
            config=configs_of(plan),
            origin=plan.origin,
            plan=plan,
        )

    def _pin(self, calls: Calls, plan: Plan, phase: Phase) -> Plan:
        """Make `calls` run in this provider's regime; the plan of that."""
        from ..autotune.select import pinned
        from .regimes import best_config

        if plan.regime == "eager":
            raise Unavailable(f"no kernel runs this call: {'; '.join(map(str, plan.reasons))}")
        if phase == "training":
            raise Unavailable("a pinned config holds for both passes: regimes are compared forwards")
        if plan.regime == self.regime:
            raise Unavailable("this is the regime that holdfast chooses by itself")
        config = best_config(plan.problem, self.regime, calls.xs[0].device)
        if config is None:
            raise Unavailable(f"no {self.regime} tiling fits")
        choice, forward = config, calls.forward

        def in_regime(x: Tensor) -> Tensor:
            with pinned(choice), backend("triton"):
                return forward(x)

        calls.forward = in_regime
        return Plan(plan.problem, choice.regime, choice, origin="pinned")


class Untuned(Holdfast):
    """holdfast with the heuristic's configs where tuning found others."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "holdfast untuned"

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        from ..autotune import select

        def use_the_heuristic() -> AbstractContextManager[object]:
            # Not autotune.mode("off"): a backward pass on a GPU runs in autograd's own thread, which would not see it.
            return patch.object(select, "current_mode", lambda: "off")

        tuned = super().prepare(numbers, phase).plan
        assert tuned is not None
        if all(plan.origin in ("heuristic", "") for plan in (tuned, tuned.backward) if plan is not None):
            raise Unavailable("no tuning result is used here: holdfast runs the heuristic's choice")
        with use_the_heuristic():
            prepared = super().prepare(numbers, phase)
        tuned_call = prepared.call

        def call(number: int) -> None:
            with use_the_heuristic():
                tuned_call(number)

        prepared.call = call
        return prepared


def sequence_arguments(numbers: Numbers) -> dict[str, Tensor]:
    """Keyword arguments of a forward of holdfast's that say how this case's sequences lie in the batch."""
    given = {"lengths": numbers.lengths, "resets": numbers.resets}
    return {name: value.to(numbers.device) for name, value in given.items() if value is not None}


def algorithm_of(plan: Plan) -> str:
    if plan.config is not None:
        return f"{plan.regime} kernel"
    reasons = ", ".join(reason.name for reason in plan.reasons)
    return f"eager, torch's op ({reasons})" if plan.op == "fused" else f"eager, plain steps ({reasons})"


def configs_of(plan: Plan) -> str:
    """The forward config, and the backward one where there is one."""
    both = [str(p.config) for p in (plan, plan.backward) if p is not None and p.config is not None]
    return " / ".join(both)


class TorchNN:
    """torch.nn's module: cuDNN on a GPU.

    dtype:  None: the case's; else this one, the peer's best where the case is in another.
    packed: the rows' real steps as a PackedSequence; packing and padding are left out of the time.
    """

    is_peer = True

    def __init__(self, dtype: torch.dtype | None = None, *, packed: bool = False) -> None:
        self.dtype, self.packed = dtype, packed
        self.name = f"torch.nn{'' if dtype is None else ' ' + DTYPE_NAMES[dtype]}{' packed' if packed else ''}"

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        case = numbers.case
        dtype = self.dtype or case.dtype
        if self.dtype == case.dtype:
            raise Unavailable("this is the case's own dtype")
        if case.cell not in TORCH:
            raise Unavailable(f"torch.nn has no {case.cell}")
        modules = [numbers.module(TORCH[case.cell], dtype, head) for head in range(case.heads)]
        if not self.packed and case.sequences != "dense":
            raise Unavailable(f"torch.nn has no argument for {case.sequences} sequences")
        if self.packed:
            from .packed import PackedCalls

            calls: Calls = PackedCalls(numbers, modules[0], dtype)
        else:
            calls = module_calls(numbers, modules, dtype)
        return calls.prepared(phase, algorithm=self._algorithm(numbers, dtype, phase))

    def _algorithm(self, numbers: Numbers, dtype: torch.dtype, phase: Phase) -> str:
        if numbers.device.type != "cuda":
            return "torch's CPU op"
        case = replace(numbers.case, dtype=dtype)
        return algorithm_here(case, training=phase == "training", packed=self.packed)
