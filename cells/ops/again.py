"""A call on the kernel path like one before: its layers as `kernels.again` repeats them.

What such a call looks like follows from its decision, which is remembered by shapes, dtypes and settings (`call.key`);
where its tensors lie, and what would be launched today, is asked anew each time.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.extras import Extras
from ..call.records import Call, Decision
from .derivative import Route, run_unwatched
from .layer import by_direction, flags_of, run_backward
from .options import Options

if TYPE_CHECKING:
    from ...kernels.again import ForwardAgain
    from ...kernels.backward_again import BackwardAgain


class Layer:
    """One layer as it was run before, and its options."""

    def __init__(self, again: ForwardAgain, options: Options) -> None:
        self.again, self.options = again, options
        self.backwards: dict[Hashable, tuple[BackwardAgain, tuple[bool, ...]] | None] = {}
        """By which gradients are given and wanted, and the settings."""

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

    def backward(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        initial: Sequence[Tensor],
        y: Tensor,
        residuals: Sequence[Tensor],
        dy: Tensor | None,
        d_final: Sequence[Tensor | None],
        options: Options,
        needs_dx: bool,
        extras: Extras,
        bits: int,
    ) -> list[Tensor]:
        """As `layer.run_backward`, which takes notes at the first call of a kind."""
        given = [gradient for gradient in d_final if gradient is not None]
        settings = sys.modules["holdfast.autotune.select"].settings()
        kind = None if dy is None else dy.stride(), len(given), needs_dx, bits, settings
        every = (x, weights, initial, y, residuals, dy, d_final, options, needs_dx, extras, bits)
        if kind not in self.backwards:
            notes: list[BackwardAgain | None] = []
            results = run_backward(*every, notes=notes)
            flags = flags_of(bits, len(weights) + len(initial))
            whole = len(given) in (0, len(d_final)) and settings[0] is None and settings[2] != "tune-on-miss"
            self.backwards[kind] = (notes[0], flags) if notes[0] is not None and whole else None
            return results
        note = self.backwards[kind]
        addresses = None if note is None else addresses_of(weights)
        if note is None or addresses is None or not note[0].holds(weights):
            return run_backward(*every)
        if dy is not None and (dy.data_ptr() % 16 or dy.dtype is not y.dtype):
            return run_backward(*every)
        outside = [*given, *initial]
        if outside and (addresses_of(outside) is None or any([t.dtype is not y.dtype for t in outside])):
            return run_backward(*every)
        again, flags = note
        own, kept = by_direction(weights, options.directions), again.in_record(residuals)
        found = again(x, own, addresses, initial, y, kept, dy, given, extras)
        gradients = [g for of_w, w in zip(found.weights, own) for g, t in zip(of_w, w) if t is not None]  # noqa: B905
        gradients += found.initial or (None,) * len(initial)
        results = [g for g, asked in zip(gradients, flags) if asked and g is not None]  # noqa: B905
        return [*results, found.x] if needs_dx else results  # type: ignore[list-item]


def addresses_of(tensors: Sequence[Tensor]) -> list[int] | None:
    """`kernels.again.addresses_of`: there are no notes without that module, which imports Triton."""
    return sys.modules["holdfast.kernels.again"].addresses_of(tensors)  # type: ignore[no-any-return]


def repeated(call: Call, decision: Decision) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """`kernel_path.run_kernels` for a call of which there are notes; None where they do not hold for it, or somebody
    watches its operators. That none of the watchers looks on whom `key_of` knows, follows from there being notes."""
    layers, notes = call.layers, decision.notes
    if not notes or notes[0] is None or torch._C._len_torch_function_stack() or torch.autograd._profiler_enabled():
        return None
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
            route = Route(partial(layer.run, theirs), layer.backward)
            results = run_unwatched(route, x, own, begun or (), n_states, layer.options, decision.keep, extras)
            x, final = results[0], results[1 : 1 + n_states]
        finals.append(final)
    y = x.transpose(0, 1) if layers.batch_first else x
    if len(finals) == 1:
        return y, finals[0]
    return y, tuple([torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True)])


NO_EXTRAS = Extras()
