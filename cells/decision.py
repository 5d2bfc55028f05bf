"""A call is decided once: `decide` turns a checked Call into a Decision, and everything after it follows that.

`forward` runs what was decided, `explained` puts it into words.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..kernels.plan import Plan, Reason
from ..kernels.problem import Problem
from .backend import constant_when_traced, current_backend
from .call import Call, Decision, Loop
from .eager.fused import FUSED_OPS
from .eligibility import MOMENT, PROBLEM, Facts, reasons
from .keep import default_keep, kept_bytes
from .surroundings import (
    autocast_dtype,
    in_reach_of_kernels,
    in_transform,
    is_dual,
    only_autograd,
    precision,
    under_nested_grad,
    under_vmap_or_jvp,
)

if TYPE_CHECKING:
    from ..kernels.layer import Keep

FUSED = Decision("fused")
"""Of a call out of the kernels' reach: torch's op needs to know nothing else."""


def decide(call: Call, *, every_reason: bool = False) -> Decision:
    """What becomes of this call here and now.

    every_reason:  do not stop at the first reason against a kernel; nor where holdfast.backend is "triton".
    """
    backend = current_backend()
    every = every_reason or backend == "triton"
    if not every and not in_reach_of_kernels(call.x):
        path = _eager_path(call)
        return FUSED if path == "fused" else Decision(path, (), False, _trains(call.tensors), autocast_dtype(call.x))
    facts = _facts(call, backend)
    loop = _loop(call, facts.dtype)
    found = _reasons(call, facts, loop, every)
    if not found:
        return Decision("kernels", (), False, facts.trains, facts.autocast, loop, _keep(call, facts, loop))
    # An empty batch is no fallback: there is nothing that a kernel could have computed.
    refused = backend == "triton" and call.batch_size > 0
    return Decision(_eager_path(call), found, refused, facts.trains, facts.autocast, loop)


def explained(call: Call) -> Plan:
    """The decision with every reason, or with the configs, notes on them, and the bytes that are kept."""
    decision = decide(call, every_reason=True)
    assert decision.loop is not None
    problem = _problem(decision.loop, call.batch_size)
    if decision.path != "kernels":
        op: Literal["fused", "recurrence"] = "recurrence" if decision.path == "recurrence" else "fused"
        return Plan(problem, "eager", reasons=decision.reasons, op=op)
    from ..autotune import select

    device = call.x.device
    forward, *backward = (
        select.explained(select.select(each, device), device) for each in _phases(problem, decision.trains)
    )
    if not backward:
        return forward
    kept = kept_bytes(problem, call, decision.keep)
    return replace(forward, backward=backward[0], keep=decision.keep, kept_bytes=kept)


def refusal(name: str, reasons: tuple[Reason, ...]) -> str:
    """The message of a call that holdfast.backend("triton") does not let fall back."""
    why = "\n".join(f"  {reason}" for reason in reasons)
    return (
        f'{name}: holdfast.backend is "triton", but this call cannot run on a kernel:\n{why}\n'
        'Change what the reasons name, or allow torch\'s own op with holdfast.backend("auto"); '
        "explain(x, hx) returns these reasons without running anything."
    )


def _facts(call: Call, backend: str) -> Facts:
    tensors, autocast = call.tensors, autocast_dtype(call.x)
    compiling = torch.compiler.is_compiling()
    return Facts(backend, compiling, tensors, _trains(tensors), autocast, autocast or call.x.dtype)


def _trains(tensors: tuple[Tensor, ...]) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _loop(call: Call, dtype: torch.dtype) -> Loop:
    layers = call.layers
    return Loop(layers.cell, dtype, layers.hidden_size, layers.directions, precision(dtype), _features(call))


def _features(call: Call) -> tuple[str, ...]:
    """What the loop does besides, in the words of `kernels.problem.FEATURES`."""
    layers, packed = call.layers, call.batch_sizes is not None
    if not (call.ragged or packed or layers.noisy):
        return ()
    asked = {
        "lengths": call.lengths is not None or packed,
        "packed": packed,
        "recurrent_dropout": layers.training and layers.recurrent_dropout > 0,
        "reset_state": bool(call.reset_states),
        "resets": call.resets is not None,
        "zoneout": any(layers.zoneout),
    }
    return tuple(name for name, wanted in asked.items() if wanted)


def _reasons(call: Call, facts: Facts, loop: Loop, every: bool) -> tuple[Reason, ...]:
    """Why no kernel runs. What is cheap to ask and likely comes first, the device last."""
    moment = reasons(MOMENT, call, facts, every=every)
    if moment and not every:
        return moment
    found = reasons(PROBLEM, call, facts, every=every)
    return (found or _reasons_of_device(loop, call.x.device, facts.trains)) + moment


@constant_when_traced
def _reasons_of_device(loop: Loop, device: torch.device, trains: bool) -> tuple[Reason, ...]:
    """Why this device has no kernel. No answer depends on the batch size (nor on T)."""
    from ..autotune.select import select

    plans = [select(problem, device) for problem in _phases(_problem(loop, 1), trains)]
    return tuple(dict.fromkeys(reason for plan in plans for reason in plan.reasons))


@lru_cache(maxsize=1024)
def _problem(loop: Loop, batch_size: int) -> Problem:
    cell, dtype, hidden_size, directions, rounding, features = loop
    return Problem(cell, dtype, hidden_size, batch_size, directions, rounding, features=features)


@lru_cache(maxsize=1024)
def _phases(problem: Problem, trains: bool) -> tuple[Problem, ...]:
    """The problem forwards and, where a backward pass may follow, backwards."""
    return (problem, replace(problem, phase="backward")) if trains else (problem,)


def _keep(call: Call, facts: Facts, loop: Loop) -> Keep:
    """What the call keeps: nothing where no backward pass can follow, else as the user says."""
    if call.return_gates:
        return "save"
    if not facts.trains:
        return "nothing"
    if call.layers.keep is not None:
        return call.layers.keep
    if facts.compiling:
        return "save"  # to look at the sizes would compile anew for others
    return default_keep(_problem(loop, call.batch_size), call)


def _eager_path(call: Call) -> Literal["fused", "segments", "recurrence"]:
    """Torch's fused op, or the recurrence where it cannot do this or would refuse what it takes in plain eager mode."""
    layers = call.layers
    if call.return_gates or layers.cell not in FUSED_OPS or layers.noisy:
        return "recurrence"
    compiling = torch.compiler.is_compiling()
    if call.batch_sizes is None and _fused_op_refuses(call, compiling):
        return "recurrence"
    if not call.ragged:
        return "fused"
    return "recurrence" if _sizes_are_symbolic(call, compiling) or _nothing_to_walk(call) else "segments"


def _fused_op_refuses(call: Call, compiling: bool) -> bool:
    """Transforms and forward derivatives that the op lacks, and one that AOTAutograd cannot compile."""
    if compiling:
        return under_vmap_or_jvp() or _compiled_cpu_lstm_training(call)
    if only_autograd():
        return False
    return under_vmap_or_jvp() or (call.x.is_cuda and under_nested_grad()) or is_dual(call.tensors)


def _compiled_cpu_lstm_training(call: Call) -> bool:
    """AOTAutograd asserts on the None that oneDNN's LSTM saves for its backward ("tensors_saved_with_vc_check")."""
    return call.layers.cell == "lstm" and call.x.device.type == "cpu" and _trains(call.tensors)


def _sizes_are_symbolic(call: Call, compiling: bool) -> bool:
    """Whether the number of segments cannot be looked at: a tracer would bake it in, other tensors hold no numbers.

    Inside a torch.func transform even the sizes of a packed batch are wrapped, and the fused op reads their memory.
    """
    if compiling or torch.jit.is_tracing() or in_transform():
        return True
    given = [t for t in (call.lengths, call.resets) if t is not None]
    return any(type(t) is not Tensor or t.is_meta for t in given)


def _nothing_to_walk(call: Call) -> bool:
    """The fused op refuses a packed batch without any step."""
    return call.batch_size == 0 or (call.lengths is not None and not call.lengths.any())
