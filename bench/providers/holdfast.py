"""holdfast's modules as a user calls them: as they choose for themselves, in a regime of ours, or untuned."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from ...autotune import select
from ...autotune.candidates import candidates
from ...autotune.constraints import CONSTRAINTS, refusal
from ...autotune.cost import estimate
from ...autotune.pin import kernels_where_they_can, pinned
from ...cells.backend import backend
from ...cells.base import RecurrentBase
from ...cells.gru import GRU
from ...cells.lstm import LSTM
from ...cells.recurrent import Recurrent
from ...cells.rnn import RNN
from ...cells.slstm import SLSTM
from ...kernels.config import Config
from ...kernels.executor import interpreting
from ...kernels.plan import Plan
from ...kernels.problem import Problem
from ...kernels.resources import H100, from_device
from ..method.case import Phase
from ..method.numbers import Factory, Numbers
from .provider import Calls, ModuleCalls, Prepared, Unavailable, refuse_stacked_heads

HOLDFAST: dict[str, type[RecurrentBase]] = {"rnn_tanh": RNN, "gru": GRU, "lstm": LSTM, "slstm": SLSTM}


def holdfast_module(cell: str) -> Factory:
    return HOLDFAST.get(cell) or partial(Recurrent, cell)


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
        refuse_stacked_heads(case)
        module = numbers.whole(holdfast_module(case.cell), case.dtype)
        arguments = sequence_arguments(numbers)
        x = numbers.xs[0].clone().requires_grad_(phase == "training")
        with torch.no_grad() if phase == "forward" else nullcontext():
            plan = module.explain(x, **arguments)
        calls: Calls = ModuleCalls(numbers, module, case.dtype, **arguments)
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


class Kernels(Holdfast):
    """holdfast's kernels where it would run torch's own op as the faster one: so that somebody finds out."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "holdfast kernels"

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        by_itself = super().prepare(numbers, phase).plan
        assert by_itself is not None
        if [reason.name for reason in by_itself.reasons] != ["slower_than_fused"]:
            raise Unavailable("holdfast runs the same by itself")
        with kernels_where_they_can():
            prepared = super().prepare(numbers, phase)
        call = prepared.call

        def on_kernels(number: int) -> None:
            with kernels_where_they_can():
                call(number)

        prepared.call = on_kernels
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


def best_config(problem: Problem, regime: str | None, device: torch.device) -> Config | None:
    """The feasible config of this regime with the least estimated step; None where none fits the GPU.

    In the interpreter the GPU is an H100, as in `autotune.select`.
    """
    limits = H100 if interpreting() else from_device(device)
    feasible = [
        config
        for config in candidates(problem, limits)
        if config.regime == regime and refusal(problem, config, limits, CONSTRAINTS) is None
    ]
    return min(feasible, key=lambda config: estimate(problem, config, limits).step_us, default=None)
