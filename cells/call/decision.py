"""A call is decided once: `decide` turns a checked Call into a Decision, and everything after it follows that.

`forward` runs what was decided, `explained` puts it into words.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch

from ...autotune import current_mode
from ...kernels.plan import Plan, Reason
from ...kernels.problem import Problem
from ...kernels.refused import RefusedError
from ..backend import constant_when_traced, current_backend
from ..eager.path import eager_path
from ..eager.ragged import layout_of, padded_rows
from .eligibility import MOMENT, PROBLEM, reasons
from .key import key_of
from .records import Call, Decision, Loop
from .speed import compared, slower_than_fused
from .surroundings import Facts, autocast_dtype, facts_of, in_onnx_export, in_reach_of_kernels, may_train

if TYPE_CHECKING:
    from ...kernels.kept import Keep

SAVE_AT_MOST = 2**30
"""Bytes of gate values that a call may keep before `module.keep = None` means "recompute"."""

FUSED = Decision("fused")
"""Of a call out of the kernels' reach: torch's op needs to know nothing else."""

OF_ONE_STEP = Decision("ragged")
"""Of such a call with one step, whose resets are another initial state."""

MOST_REMEMBERED = 4096

_decided: dict[Hashable, Decision] = {}
"""Decisions for the kernels, or for torch's op as the faster one, by everything that they follow from: nothing can go
stale, and no module holds one."""


def decide(call: Call, *, every_reason: bool = False) -> Decision:
    """What becomes of this call here and now.

    every_reason:  do not stop at the first reason against a kernel; nor where holdfast.backend is "triton".
    """
    compiling = torch.compiler.is_compiling()
    if (compiling or torch._C._is_tracing()) and in_onnx_export() and not every_reason:
        return Decision("onnx")
    backend = current_backend()
    every = every_reason or backend == "triton"
    if not every and not in_reach_of_kernels(call.x):
        path = eager_path(call)
        if path == "fused":
            return FUSED
        if path == "ragged" and call.lengths is None and call.steps == 1:
            return OF_ONE_STEP
        return Decision(path, (), False, may_train(call.tensors), autocast_dtype(call.x))
    key = None if every_reason or compiling else key_of(call, backend)
    if key is not None and (remembered := _decided.get(key)) is not None:
        return remembered
    facts = facts_of(call, backend)
    found = _reasons(call, facts, every)
    keep = "nothing" if found else _keep(call, facts)
    found = found or _refused(call, facts, keep)
    if not found:
        found = slower_than_fused(call, facts, keep) if backend == "auto" else ()
        decision = Decision("kernels", (), False, facts.trains, facts.autocast, facts.loop, keep)
        if found:
            decision = decision._replace(path=eager_path(call), reasons=found, keep="nothing")
        elif key is not None and _repeats(call, facts):
            decision = decision._replace(notes=[])
        # Whether torch's op can run on segments is a question to the numbers in lengths.
        if key is not None and not (found and call.ragged):
            if len(_decided) >= MOST_REMEMBERED:
                _decided.clear()
            _decided[key] = decision
        return decision
    # An empty batch is no fallback: there is nothing that a kernel could have computed.
    refused = backend == "triton" and call.batch_size > 0
    return Decision(eager_path(call), found, refused, facts.trains, facts.autocast, facts.loop)


def after_refusal(name: str, call: Call, error: RefusedError) -> Decision:
    """What becomes of a call whose kernel turned out to be none for this GPU, now that this is known and, where it
    lasts, remembered.

    Raises the error itself where the config is pinned; RuntimeError, with the reasons, where holdfast.backend is
    "triton".
    """
    from ...autotune.select import refuse

    if not refuse(error, call.x.device):
        raise error
    decision = decide(call)
    if decision.path == "kernels":  # it does not last, or another kernel would be chosen by now
        reasons, refused = (Reason(error.reason, str(error)),), current_backend() == "triton"
        autocast = autocast_dtype(call.x)
        decision = Decision(eager_path(call), reasons, refused, may_train(call.tensors), autocast)
    if decision.refused:
        raise RuntimeError(refusal(name, decision.reasons)) from error
    return decision


def explained(call: Call) -> Plan:
    """The decision with every reason, or with the configs, notes on them, and the bytes that are kept."""
    decision = decide(call, every_reason=True)
    assert decision.loop is not None
    problem = _problem(decision.loop, call.batch_size)
    if decision.path != "kernels":
        op: Literal["fused", "recurrence"] = "recurrence" if decision.path == "recurrence" else "fused"
        return Plan(problem, "eager", reasons=decision.reasons, op=op, layout=_layout(call, decision))
    from ...autotune import select

    device = call.x.device
    forward, *backward = (
        select.explained(select.select(each, device), device) for each in _phases(problem, decision.trains)
    )
    limits = select.limits_of(device)
    forward, *backward = (
        replace(plan, first_use=select.told(plan.problem, plan.config, limits)) for plan in (forward, *backward)
    )
    comparison = compared(call, facts_of(call, current_backend()), decision.keep)
    forward = replace(forward, call=comparison)
    if not backward:
        return forward
    kept = _kept_bytes(problem, call, decision.keep)
    return replace(forward, backward=backward[0], keep=decision.keep, kept_bytes=kept)


def _layout(call: Call, decision: Decision) -> str:
    """How torch's op takes the lengths and resets of a call, which follows from their numbers."""
    if decision.path != "ragged":
        return "" if call.batch_sizes is None or decision.path != "fused" else "packing"
    return layout_of(call if call.batch_sizes is None else padded_rows(call)[0]).name


def refusal(name: str, reasons: tuple[Reason, ...]) -> str:
    """The message of a call that holdfast.backend("triton") does not let fall back."""
    why = "\n".join(f"  {reason}" for reason in reasons)
    return (
        f'{name}: holdfast.backend is "triton", but this call cannot run on a kernel:\n{why}\n'
        'Change what the reasons name, or allow torch\'s own op with holdfast.backend("auto"); '
        "explain(x, hx) returns these reasons without running anything."
    )


def _reasons(call: Call, facts: Facts, every: bool) -> tuple[Reason, ...]:
    """Why no kernel runs. What is cheap to ask and likely comes first, the device last."""
    moment = reasons(MOMENT, call, facts, every=every)
    if moment and not every:
        return moment
    found = reasons(PROBLEM, call, facts, every=every)
    return (found or _reasons_of_device(call.x.device, facts.trains, *facts.loop)) + moment


@constant_when_traced
def _reasons_of_device(device: torch.device, trains: bool, *loop: Any) -> tuple[Reason, ...]:
    """Why this device has no kernel. No answer depends on the batch size (nor on T). While a call is traced, a kernel
    that is known to be wrong at one row is none: the graph is for all of them.

    loop:  the fields of a Loop, which Dynamo of torch 2.13 does not hand on as one argument.
    """
    from ...autotune.select import select

    traced = torch.compiler.is_compiling()
    plans = [select(problem, device, refused_too=not traced) for problem in _phases(_problem(Loop(*loop), 1), trains)]
    return tuple(dict.fromkeys(reason for plan in plans for reason in plan.reasons))


def _refused(call: Call, facts: Facts, keep: Keep) -> tuple[Reason, ...]:
    """Why the kernels that this call would run are known to be wrong here: other sizes may have other configs."""
    if facts.compiling:
        return ()
    from ...autotune.select import select

    phases = _phases(_problem(facts.loop, max(1, call.batch_size)), facts.trains)
    plans = [select(problem, call.x.device, keep=keep, length=call.steps) for problem in phases]
    return tuple(dict.fromkeys(reason for plan in plans for reason in plan.reasons))


@lru_cache(maxsize=1024)
def _problem(loop: Loop, batch_size: int) -> Problem:
    cell, dtype, hidden_size, directions, precision, features, heads = loop
    return Problem(cell, dtype, hidden_size, batch_size, directions, precision, features=features, num_heads=heads)


@lru_cache(maxsize=1024)
def _phases(problem: Problem, trains: bool) -> tuple[Problem, ...]:
    """The problem forwards and, where a backward pass may follow, backwards."""
    return (problem, replace(problem, phase="backward")) if trains else (problem,)


def _keep(call: Call, facts: Facts) -> Keep:
    """What a call keeps: nothing where no backward pass can follow, else as the user says, or what suits its size."""
    if call.return_gates:
        return "save"
    if not facts.trains:
        return "nothing"
    if call.layers.keep is not None:
        return call.layers.keep
    if facts.compiling:
        return "save"  # to look at the sizes would compile anew for others
    from ...autotune.select import faster_keep, limits_of

    problem = _problem(facts.loop, call.batch_size)
    if _kept_bytes(problem, call, "save") > SAVE_AT_MOST:
        return "recompute"
    return faster_keep(problem, limits_of(call.x.device), length=call.steps) or "save"


def _repeats(call: Call, facts: Facts) -> bool:
    """Whether calls of this decision are alike but for where their tensors lie: no options but lengths, nothing to be
    cast, and always the same config."""
    from ...autotune.pin import pinned_config
    from ...kernels.executor import substitute

    layers, loop = call.layers, facts.loop
    if call.return_gates or layers.noisy or layers.drops or layers.proj_size or not set(loop.features) <= {"lengths"}:
        return False
    if call.batch_size == 0 or (call.hx is not None and loop.directions > 1):
        return False
    if substitute() is not None or pinned_config() is not None or current_mode() == "tune-on-miss":
        return False
    return all([t.dtype is loop.dtype for t in facts.tensors])


def _kept_bytes(problem: Problem, call: Call, keep: Keep) -> int:
    """Bytes that all layers together keep for the backward pass, besides their inputs and outputs."""
    from ...kernels.cell_spec import find_cell
    from ...kernels.kept import keeps_values, saved_tiles

    spec = find_cell(problem.cell)
    each = 0 if keep == "nothing" else spec.states - 1
    each += saved_tiles(problem) if keeps_values(problem, keep) else 0
    if keep != "nothing":
        each += (spec.inner is not None) + ("recurrent_dropout" in problem.features)
    units = call.layers.num_layers * problem.directions * problem.hidden_size
    rows = call.x.numel() // max(1, call.x.shape[-1])
    return rows * units * each * problem.dtype.itemsize
