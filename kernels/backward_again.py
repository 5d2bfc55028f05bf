"""`again` backwards: a layer's backward pass like one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .channel import fill_channel
from .config import Config
from .extras import Extras
from .gemm import History, LayerWeights, Wanted, gradients_of_weights
from .launch import current_launcher
from .layer import Gradients
from .problem import Problem
from .results import Residuals
from .stall import raise_if_stalled


class BackwardAgain:
    """`backward_layer` for tensors of one shape and the same gradients given and wanted, where v was saved and there
    are no options but lengths; all tensors are contiguous (dy: strided as it was), aligned and of the problem's dtype,
    and the cell has no numbers of its own. Initial states only in one direction.
    """

    def __init__(
        self,
        problem: Problem,
        config: Config,
        weights: Sequence[torch.Tensor],
        y: torch.Tensor,
        dy: torch.Tensor | None,
        groups: dict[str, Any],
        wanted: Wanted,
        *,
        batch_first: bool,
    ) -> None:
        """From the groups of a call's only launch. Raises LookupError where it cannot be repeated."""
        if dy is not None and groups["dy"].ptr.data_ptr() != dy.data_ptr():
            raise LookupError
        self.which = problem, config, y.device, None
        self.launcher = current_launcher(*self.which)
        remembered = self.launcher.remembered(groups)
        if remembered is None or groups["ga"].ptr is not None or groups["layer"].parameters is not None:
            raise LookupError
        self.found, self.arguments = remembered
        self.problem, self.wanted, self.batch_first = problem, wanted, batch_first
        self.kinds = [(w.dtype, w.shape) for w in weights]
        self.each = len(weights) // problem.directions
        self.waits = self.launcher.cooperative and config.exchange == "dataflow"
        self.da, self.splits = groups["out"].da.shape, groups["out"].dx is not None
        initial = groups["gradients"].initial
        self.initial = () if initial is None else tuple([state.shape for state in initial])
        self.kept, self.saved = len(groups["past"].later or ()), groups["past"].saved is not None
        self.dy_strides = tuple(groups["dy"][2:])
        names = ("dy", "gradients", "layer", "past", "out", "rows")
        self.places = [self.launcher.names.index(name) for name in names]
        past, out = groups["past"], groups["out"]
        weights_at, final = [w.data_ptr() for w in weights], groups["gradients"].final
        residuals = Residuals(past.later or (), past.saved)
        lengths = groups["rows"].lengths
        again = self._arguments(
            weights_at, past.initial or (), past.y, residuals, dy, final or (), initial or (), out.da, out.dx, lengths
        )
        if again != self.arguments:
            raise LookupError

    def holds(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether the same kernel would be launched today, for weights of the same kind."""
        return current_launcher(*self.which) is self.launcher and [(w.dtype, w.shape) for w in weights] == self.kinds

    def in_record(self, residuals: Sequence[torch.Tensor]) -> Residuals:
        """What the forward pass kept, by name."""
        later, end = residuals[: self.kept], self.kept + self.saved
        return Residuals(tuple(later), residuals[self.kept] if self.saved else None, *residuals[end:])

    def __call__(
        self,
        x: torch.Tensor,
        weights: Sequence[LayerWeights],
        addresses: Sequence[int],
        initial: Sequence[torch.Tensor],
        y: torch.Tensor,
        residuals: Residuals,
        dy: torch.Tensor | None,
        d_final: Sequence[torch.Tensor],
        extras: Extras,
    ) -> Gradients:
        """What `backward_layer` returns; addresses: `again.addresses_of` the flat weights; d_final: empty for none."""
        da = y.new_empty(self.da)
        dx = torch.empty_like(da) if self.splits else None
        d_initial = tuple([y.new_empty(shape) for shape in self.initial])
        if self.waits or extras.lengths is not None:
            fill_channel(da, extras, sentinel=self.waits)
            if dx is not None:
                fill_channel(dx, extras, sentinel=False)
        arguments = self._arguments(addresses, initial, y, residuals, dy, d_final, d_initial, da, dx, extras.lengths)
        self.launcher.repeat(self.found, arguments)
        history = History(y, residuals.inner, initial or None, extras, reverse=False)
        into = da if dx is None else dx
        grad_x, of_weights = gradients_of_weights(
            self.problem, x, weights, history, da, into, batch_first=self.batch_first, wanted=self.wanted
        )
        if self.launcher.cooperative:
            raise_if_stalled(y.device)  # nothing may be launched after a backward pass that would say so
        return Gradients(grad_x, of_weights, d_initial)

    def _arguments(
        self,
        weights: Sequence[int],
        initial: Sequence[torch.Tensor],
        y: torch.Tensor,
        residuals: Residuals,
        dy: torch.Tensor | None,
        d_final: Sequence[torch.Tensor],
        d_initial: Sequence[torch.Tensor],
        da: torch.Tensor,
        dx: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> list[Any]:
        """A launch's arguments with these addresses."""
        arguments = [*self.arguments]
        at_dy, at_gradients, at_layer, at_past, at_out, at_rows = self.places
        if dy is not None:
            arguments[at_dy] = (dy.data_ptr(), None, *self.dy_strides)
        arguments[at_gradients] = (_addresses(d_final), _addresses(d_initial), None, None)
        arguments[at_layer] = (tuple(weights[1 :: self.each]), None, None)
        saved = residuals.saved
        arguments[at_past] = (
            _addresses(initial),
            y.data_ptr(),
            _addresses(residuals.kept),
            None if saved is None else saved.data_ptr(),
        )
        arguments[at_out] = (da.data_ptr(), None if dx is None else dx.data_ptr())
        if lengths is not None:
            arguments[at_rows] = (lengths.data_ptr(), None)
        return arguments


def _addresses(tensors: Sequence[torch.Tensor]) -> tuple[int, ...] | None:
    return tuple([t.data_ptr() for t in tensors]) if tensors else None


def backward_again(
    problem: Problem,
    config: Config,
    weights: Sequence[torch.Tensor],
    y: torch.Tensor,
    dy: torch.Tensor | None,
    launches: Sequence[dict[str, Any]],
    wanted: Wanted,
    *,
    batch_first: bool,
) -> BackwardAgain | None:
    """What repeats a call of `backward_layer` that made these launches; None where nothing can."""
    if len(launches) != 1:
        return None
    try:
        return BackwardAgain(problem, config, weights, y, dy, launches[0], wanted, batch_first=batch_first)
    except LookupError:
        return None
