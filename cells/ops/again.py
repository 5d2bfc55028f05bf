"""A call on the kernel path like one before: its layers as `kernels.again` repeats them.

What such a call looks like follows from its decision, which is remembered by shapes, dtypes and settings (`call.key`);
where its tensors lie, and what would be launched today, is asked anew each time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.extras import Extras
from ..call.records import Call, Decision
from .derivative import Route, run_unwatched
from .layer import by_direction, run_backward
from .options import Options

if TYPE_CHECKING:
    from ...kernels.again import ForwardAgain


class Layer:
    """One layer as it was run before, and its options."""

    def __init__(self, again: ForwardAgain, options: Options) -> None:
        self.again, self.options = again, options
        self.route = Route(self.forward, run_backward)

    def forward(
        self, x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor | None], *arguments: Any
    ) -> list[Tensor]:
        """As `layer.run_forward`."""
        *_, extras = arguments
        states: Any = initial if initial and initial[0] is not None else None
        own = by_direction(weights, self.options.directions)
        y, final, (kept, *rest) = self.again(x, own, states, extras.lengths)
        return [y, *final, *kept, *[t for t in rest if t is not None]]


def repeated(call: Call, decision: Decision) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """`kernel_path.run_kernels` for a call of which there are notes, and which nobody watches; None where they do not
    hold for it."""
    layers, notes, weights = call.layers, decision.notes, call.layers.weights
    if not notes or None in notes:
        return None
    holds = sys.modules["holdfast.kernels.again"].as_they_are
    if not (call.x.is_contiguous() and holds(weights) and holds(call.states)):
        return None
    if not all([layer.again.holds for layer in notes]):
        return None
    each, n_states = len(weights) // len(notes), layers.n_states
    extras = Extras() if call.lengths is None else Extras(call.lengths).cast(call.x.dtype)
    x, finals = call.x, []
    for number, layer in enumerate(notes):
        initial = [state[number : number + 1] for state in call.states]
        own = weights[number * each : (number + 1) * each]
        results = run_unwatched(layer.route, x, own, initial, n_states, layer.options, decision.keep, extras)
        x = results[0]
        finals.append(results[1 : 1 + n_states])
    y = x.transpose(0, 1) if layers.batch_first else x
    if len(finals) == 1:
        return y, tuple(finals[0])
    return y, tuple([torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True)])
