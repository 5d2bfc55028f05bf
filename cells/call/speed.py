"""Whether a call that a kernel could run should be faster on torch's own op.

Asked last, under "auto" alone. In the interpreter nothing is fast, and kernels run because somebody entered it: there
the question is not asked, nor where a config is pinned. A graph of torch.compile or torch.export is asked while it is
traced, where its sizes are numbers: to look at symbolic ones would make it another graph for every length and batch
size, so such a graph keeps the kernels.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ...kernels.plan import Reason
from ..backend import constant_when_traced
from ..eager.fused import FUSED_OPS
from .records import Call, Loop
from .surroundings import Facts, interpreting

if TYPE_CHECKING:
    from ...autotune.faster import Comparison
    from ...kernels.kept import Keep


def slower_than_fused(call: Call, facts: Facts, keep: Keep) -> tuple[Reason, ...]:
    """Why torch's own op runs though a kernel could; nothing where the kernel should be faster."""
    if interpreting() or not _has_fused(call, facts) or (facts.compiling and not _sizes_are_numbers(call)):
        return ()
    return _reasons(*_sizes(call, facts, keep), *facts.loop)


def compared(call: Call, facts: Facts, keep: Keep) -> Comparison | None:
    """What both are expected to take; None where torch's own op has no part in this call."""
    if not _has_fused(call, facts):
        return None
    return _comparison(*_sizes(call, facts, keep), *facts.loop)


def _has_fused(call: Call, facts: Facts) -> bool:
    """Whether torch's op would run this call, as it is or cut into segments; against plain steps a kernel wins."""
    layers = call.layers
    if layers.cell not in FUSED_OPS or call.return_gates or layers.noisy:
        return False
    return not (facts.compiling and call.ragged)


def _sizes_are_numbers(call: Call) -> bool:
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in call.x.shape[:2])


def _sizes(call: Call, facts: Facts, keep: Keep) -> tuple[Any, ...]:
    layers, packed = call.layers, call.batch_sizes is not None
    steps = call.batch_sizes.numel() if call.batch_sizes is not None else call.steps
    sizes = (call.batch_size, steps, layers.input_size, layers.num_layers, layers.proj_size > 0, packed, call.ragged)
    return call.x.device, facts.trains, keep, *sizes


@constant_when_traced
def _reasons(*sizes: Any) -> tuple[Reason, ...]:
    """Flat arguments: Dynamo of torch 2.13 does not hand on a record as one."""
    from ...autotune import current_mode
    from ...autotune.select import settings

    if current_mode() == "tune-on-miss":  # what has been tuned meanwhile is the tuner's to know
        return _worked_out(*sizes)
    return _remembered(settings(), *sizes)


@lru_cache(maxsize=4096)
def _remembered(settings: Hashable, *sizes: Any) -> tuple[Reason, ...]:
    return _worked_out(*sizes)


def _worked_out(*sizes: Any) -> tuple[Reason, ...]:
    comparison = _comparison(*sizes)
    if comparison is None or not comparison.fused_is_faster:
        return ()
    from ...autotune.faster import slower

    return (slower(comparison, batch_size=sizes[3], length=sizes[4]),)


def _comparison(
    device: torch.device,
    trains: bool,
    keep: Keep,
    batch_size: int,
    length: int,
    input_size: int,
    layers: int,
    projected: bool,
    packed: bool,
    ragged: bool,
    *loop: Any,
) -> Comparison | None:
    from ...autotune.faster import Asked
    from ...autotune.select import compare_for
    from ...kernels.problem import Problem

    cell, dtype, hidden_size, directions, precision, features, heads = Loop(*loop)
    sizes = (hidden_size, batch_size, directions)
    problem = Problem(cell, dtype, *sizes, precision, features=features, num_heads=heads)
    asked = Asked(
        problem, length, input_size, layers, trains, keep, projected=projected, packed=packed, segments=ragged
    )
    return compare_for(asked, device)
