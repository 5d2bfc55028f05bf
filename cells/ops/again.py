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
from ...kernels.given import GivenBackwards, is_there
from ..call.records import Call, Decision
from .derivative import Route, run_unwatched
from .layer import by_direction, flat, only, run_backward
from .options import Options

if TYPE_CHECKING:
    from ...kernels.again import BackwardAgain, ForwardAgain


class Layer:
    """One layer as it was run before, and its options."""

    def __init__(self, again: ForwardAgain, options: Options) -> None:
        self.again, self.options = again, options
        self.backwards: dict[Hashable, BackwardAgain | None] = {}
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
        states: Any = () if initial[0] is None else initial
        own = by_direction(weights, self.options.directions)
        y, final, (kept, *rest) = self.again(x, own, addresses, states, extras)
        return [y, *final, *kept, *filter(is_there, rest)]

    def backward(
        self, given: GivenBackwards, options: Options, extras: Extras, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """As `layer.run_backward`, which takes notes at the first call of a kind."""
        _, weights, initial, y, _, dy, d_final = given
        settings = sys.modules["holdfast.autotune.select"].settings()
        d_states = [gradient for gradient in d_final if gradient is not None]
        kind = None if dy is None else dy.stride(), len(d_states), wanted, settings
        if kind not in self.backwards:
            notes: list[BackwardAgain | None] = []
            results = run_backward(given, options, extras, wanted, notes)
            whole = len(d_states) in (0, len(d_final)) and settings[0] is None and settings[2] != "tune-on-miss"
            self.backwards[kind] = notes[0] if whole else None
            return results
        again, addresses = self.backwards[kind], addresses_of(weights)
        if again is None or addresses is None or not again.holds(weights) or not _as_they_are(y, dy, d_states, initial):
            return run_backward(given, options, extras, wanted)
        own = by_direction(weights, options.directions)
        # As a forward pass in autograd: who looks on at operators has been told of the whole.
        with torch._C._AutoDispatchBelowAutograd():
            gradients = flat(again(given, own, addresses, extras), own, len(initial))
        return gradients if all(wanted) else only(wanted, gradients)


def _as_they_are(y: Tensor, dy: Tensor | None, d_states: Sequence[Tensor], initial: Sequence[Tensor]) -> bool:
    """Whether a kernel for y reads these where they lie; dy's strides are known."""
    if dy is not None and (dy.data_ptr() & 15 or dy.dtype is not y.dtype):
        return False
    if not (d_states or initial):
        return True
    states = (*d_states, *initial)
    return addresses_of(states) is not None and all([state.dtype is y.dtype for state in states])


def addresses_of(tensors: Sequence[Tensor]) -> list[int] | None:
    """`kernels.again.addresses_of`: there are no notes without that module, which imports Triton."""
    return sys.modules["holdfast.kernels.again"].addresses_of(tensors)  # type: ignore[no-any-return]


def repeated(call: Call, decision: Decision) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """`kernel_path.run_kernels` for a call of which there are notes; None where they do not hold for it, or somebody
    watches its operators. That none of the watchers looks on whom `key_of` knows, follows from there being notes."""
    layers, notes = call.layers, decision.notes
    if not notes or notes[0] is None or torch._C._len_torch_function_stack() or torch.autograd._profiler_enabled():
        return None
    weights, x, initial = layers.weights, call.x, None
    addresses = addresses_of(weights)
    if addresses is None or not x.is_contiguous():
        return None
    if call.hx is not None:
        initial = [[state[number : number + 1] for state in call.states] for number in range(len(notes))]
        if any([addresses_of(own) is None for own in initial]):
            return None
    for layer in notes:
        if not layer.again.holds():
            return None
    each, n_states = len(weights) // len(notes), len(layers.zoneout)
    extras = NO_EXTRAS if call.lengths is None else Extras(call.lengths).cast(x.dtype)
    finals = []
    for number, layer in enumerate(notes):
        start, end = number * each, (number + 1) * each
        own, at, begun = weights[start:end], addresses[start:end], () if initial is None else initial[number]
        if decision.keep == "nothing":
            x, final, _ = layer.again(x, by_direction(own, layer.options.directions), at, begun, extras)
        else:
            route = Route(partial(layer.run, at), layer.backward)
            results = run_unwatched(route, x, own, begun, n_states, layer.options, decision.keep, extras)
            x, final = results[0], results[1 : 1 + n_states]
        finals.append(final)
    y = x.transpose(0, 1) if layers.batch_first else x
    if len(finals) == 1:
        return y, tuple(finals[0])
    return y, tuple([torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True)])


NO_EXTRAS = Extras()
