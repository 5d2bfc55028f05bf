"""A plain layer's call like one before: what follows from the shapes alone is not worked out again.

`layer` looks at every option, builds the groups of a loop's arguments and has the launcher find the compiled kernel by
them: 27 us of a CPU core forwards, of which the GEMM and the memory take 6. `ForwardAgain` remembers of one such call
the compiled kernel and its arguments, and puts in what is new: addresses. It does the same torch ops in the same
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from . import chunks
from .channel import fill_channel
from .config import Config
from .extras import Extras
from .gemm import AS_IT_IS, LayerWeights, in_precision, project_input
from .launch import current_launcher
from .problem import Problem
from .results import NO_RESIDUALS, Residuals


def addresses_of(tensors: Sequence[torch.Tensor]) -> list[int] | None:
    """Where these begin; None unless a kernel reads each where it lies: contiguous, from a multiple of 16 bytes on."""
    found = [t.data_ptr() if t.is_contiguous() else 1 for t in tensors]
    return None if any([address & 15 for address in found]) else found


class ForwardAgain:
    """`forward_layer` for inputs of one shape, without options but lengths, whose tensors are all contiguous, aligned
    and of the problem's dtype; initial states only in one direction.
    """

    def __init__(
        self,
        problem: Problem,
        config: Config,
        weights: Sequence[torch.Tensor],
        results: tuple[torch.Tensor, tuple[torch.Tensor, ...], Residuals],
        groups: dict[str, Any],
        *,
        batch_first: bool,
    ) -> None:
        """From a call's weights, results and the groups of its only launch. Raises LookupError where it cannot be
        repeated."""
        y, final, residuals = results
        self.which = problem, config, y.device, None
        self.launcher = current_launcher(*self.which)
        remembered = self.launcher.remembered(groups)
        if remembered is None:
            raise LookupError
        self.found, self.arguments = remembered
        self.problem, self.batch_first = problem, batch_first
        self.y, self.final = y.shape, (final[0].shape,) * len(final)
        self.kept, saved = len(residuals.kept), residuals.saved
        self.saved = None if saved is None else saved.shape
        self.inner = residuals.inner is not None
        # As in `forward_layer`: in a single step of one product nobody reads what the team publishes.
        waits = self.launcher.cooperative and config.exchange == "dataflow"
        self.waits = waits and (groups["T"] > 1 or self.inner)
        gx, layer = groups["gx"], groups["layer"]
        self.gx_strides, self.projected = tuple(gx[1:]), gx.ptr.numel() * gx.ptr.element_size()
        self.each, self.has_bias = len(weights) // problem.directions, layer.b_hh is not None
        self.has_own = layer.parameters is not None
        self.one_gemm = problem.directions == 1 and weights[0].shape[0] % 16 == 0
        self.places = [self.launcher.names.index(name) for name in ("gx", "layer", "states", "out", "rows")]
        initial, addresses = groups["states"].initial, addresses_of(weights)
        if addresses is None:
            raise LookupError
        again = self._arguments(gx.ptr, addresses, initial, y, final, residuals, groups["rows"].lengths)
        if again != self.arguments:
            raise LookupError

    def holds(self) -> bool:
        """Whether the same kernel would be launched today, on all steps at once."""
        return current_launcher(*self.which) is self.launcher and self.projected <= chunks.CHUNK_BYTES

    def __call__(
        self,
        x: torch.Tensor,
        weights: Sequence[torch.Tensor],
        addresses: Sequence[int],
        initial: Sequence[torch.Tensor] | None,
        lengths: torch.Tensor | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], Residuals]:
        """What `forward_layer` returns.

        weights, addresses: those of every direction in turn, and `addresses_of` them; lengths: [B] int32, aligned.
        """
        y = x.new_empty(self.y)
        final = tuple([x.new_empty(shape) for shape in self.final])
        residuals = NO_RESIDUALS
        if self.kept or self.saved or self.inner:
            residuals = Residuals(
                tuple([torch.empty_like(y) for _ in range(self.kept)]),
                None if self.saved is None else x.new_empty(self.saved),
                torch.empty_like(y) if self.inner else None,
            )
        if self.waits or lengths is not None:
            extras = Extras(lengths)
            for tensor in (y, *residuals.kept, residuals.inner):
                if tensor is not None:
                    fill_channel(tensor, extras, sentinel=self.waits and (tensor is y or tensor is residuals.inner))
        gx = self._project(x, weights)
        self.launcher.repeat(self.found, self._arguments(gx, addresses, initial, y, final, residuals, lengths))
        return y, final, residuals

    def _project(self, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """`project_input`; its strides are known."""
        if self.one_gemm and in_precision(self.problem, x.device) is AS_IT_IS:
            return linear(x, weights[0], weights[2] if self.has_bias else None)
        end = 4 if self.has_bias else 2
        rest = (None,) * (4 - end)
        each = [LayerWeights(*weights[i : i + end], *rest) for i in range(0, len(weights), self.each)]
        return project_input(self.problem, x, each, batch_first=self.batch_first)

    def _arguments(
        self,
        gx: torch.Tensor,
        weights: Sequence[int],
        initial: Sequence[torch.Tensor] | None,
        y: torch.Tensor,
        final: Sequence[torch.Tensor],
        residuals: Residuals,
        lengths: torch.Tensor | None,
    ) -> list[Any]:
        """A launch's arguments with these addresses."""
        arguments = [*self.arguments]
        at_gx, at_layer, at_states, at_out, at_rows = self.places
        each, (kept, saved, inner, _) = self.each, residuals
        arguments[at_gx] = (gx.data_ptr(), *self.gx_strides)
        arguments[at_layer] = (
            tuple(weights[1::each]),
            tuple(weights[3::each]) if self.has_bias else None,
            tuple(weights[each - 1 :: each]) if self.has_own else None,
        )
        arguments[at_states] = (
            tuple([state.data_ptr() for state in initial]) if initial else None,
            tuple([state.data_ptr() for state in final]),
            None,
        )
        arguments[at_out] = (
            y.data_ptr(),
            tuple([state.data_ptr() for state in kept]) if kept else None,
            None if saved is None else saved.data_ptr(),
            None if inner is None else inner.data_ptr(),
            None,
        )
        if lengths is not None:
            arguments[at_rows] = (lengths.data_ptr(), None)
        return arguments


def forward_again(
    problem: Problem,
    config: Config,
    weights: Sequence[torch.Tensor],
    results: tuple[torch.Tensor, tuple[torch.Tensor, ...], Residuals],
    launches: Sequence[dict[str, Any]],
    *,
    batch_first: bool,
) -> ForwardAgain | None:
    """What repeats a call of `forward_layer` that gave these results by these launches; None where nothing can."""
    if len(launches) != 1:
        return None
    try:
        return ForwardAgain(problem, config, weights, results, launches[0], batch_first=batch_first)
    except LookupError:
        return None
