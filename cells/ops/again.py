"""A call on the kernel path like one before: its layers as `kernels.again` repeats them.

What such a call looks like follows from its decision, which is remembered by shapes, dtypes and settings (`call.key`);
where its tensors lie, and what would be launched today, is asked anew each time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.extras import Extras
from ..call.records import Call, Decision
from .derivative import Route, run_unwatched
from .layer import run_backward
from .options import Options

if TYPE_CHECKING:
    from ...kernels.again import ForwardAgain


class Layer:
    """One layer as it was run before, and its options."""

    def __init__(self, again: ForwardAgain, options: Options) -> None:
        self.again, self.options = again, options

    def run(
        self,
        addresses: Sequence[int],
        x: Tensor,
        weights: Sequence[Tensor],
        initial: Sequence[Tensor | None],
        *arguments: Any,
    ) -> list[Tensor]:
        """As `layer.run_forward`; addresses: of the weights."""
        *_, extras = arguments
        states: Any = None if initial[0] is None else initial
        y, final, (kept, *rest) = self.again(x, weights, addresses, states, extras.lengths)
        return [y, *final, *kept, *[t for t in rest if t is not None]]


def repeated(call: Call, decision: Decision) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """`kernel_path.run_kernels` for a call of which there are notes; None where they do not hold for it, or somebody
    watches its operators. That none of the watchers looks on whom `key_of` knows, follows from there being notes."""
    layers, notes = call.layers, decision.notes
    if not notes or notes[0] is None or torch._C._len_torch_function_stack() or torch.autograd._profiler_enabled():
        return None
    addresses_of = sys.modules["holdfast.kernels.again"].addresses_of
    weights, states, x = layers.weights, call.states, call.x
    addresses = addresses_of(weights)
    if addresses is None or not x.is_contiguous():
        return None
    initial = [[state[number : number + 1] for state in states] for number in range(len(notes))] if states else None
    if initial is not None and any([addresses_of(own) is None for own in initial]):
        return None
    for layer in notes:
        if not layer.again.holds():
            return None
    each, n_states = len(weights) // len(notes), len(layers.zoneout)
    extras = NO_EXTRAS if call.lengths is None else Extras(call.lengths).cast(x.dtype)
    finals = []
    for number, layer in enumerate(notes):
        start, end = number * each, (number + 1) * each
        own, theirs = weights[start:end], addresses[start:end]
        begun = None if initial is None else initial[number]
        if decision.keep == "nothing":
            x, final, _ = layer.again(x, own, theirs, begun, extras.lengths)
        else:
            route = Route(partial(layer.run, theirs), run_backward)
            results = run_unwatched(route, x, own, begun or (), n_states, layer.options, decision.keep, extras)
            x, final = results[0], results[1 : 1 + n_states]
        finals.append(final)
    y = x.transpose(0, 1) if layers.batch_first else x
    if len(finals) == 1:
        return y, finals[0]
    return y, tuple([torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True)])


NO_EXTRAS = Extras()
