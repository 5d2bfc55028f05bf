"""A layer's pass like one before: what follows from the shapes alone is not worked out again.

`layer` looks at every option, builds the groups of a loop's arguments and has the launcher find the compiled kernel by
them: 27 us of a CPU core forwards, of which the GEMM and the memory take 6. Here a pass is remembered, its launch as
`Launch` and the shapes of what it makes; the next one does the same torch ops in the same order and puts in addresses.

What can be repeated: a pass of one launch, without options but lengths, for inputs of the same shape, whose tensors are
all contiguous, aligned and of the problem's dtype (dy: strided as it was), with initial states only in one direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import chunks, launch
from .alignment import empty
from .cell_spec import CELLS, find_cell
from .channel import fill_channel
from .config import Config
from .extras import Extras
from .gemm import History, LayerWeights, Wanted, gradients_of_weights, project_input, project_once
from .given import GivenBackwards, is_there
from .kept import Keep
from .layer import Gradients
from .problem import Problem
from .results import Residuals, allocate, fill, needs_of
from .stall import raise_if_stalled

Pass = TypeVar("Pass", "ForwardAgain", "BackwardAgain")

ADDRESS, OTHER, TUPLE = range(3)
"""What a field of a launch's groups is, in the order in which `Launch` lines them up."""


def noted(kind: Callable[..., Pass], launches: Sequence[dict[str, Any]], *arguments: Any) -> Pass | None:
    """What repeats a pass that made these launches, by their groups; None where nothing can."""
    if len(launches) != 1:
        return None
    try:
        return kind(launches[0], *arguments)
    except LookupError:
        return None


def addresses_of(tensors: Sequence[Tensor]) -> list[int] | None:
    """Where these begin; None unless a kernel reads each where it lies: contiguous, from a multiple of 16 bytes on."""
    found, bits = [], 0
    for tensor in tensors:
        address = tensor.data_ptr() if tensor.is_contiguous() else 1
        found.append(address)
        bits |= address
    return None if bits & 15 else found


def begins(tensors: Sequence[Tensor | None]) -> Iterator[int]:
    """Where those begin that are there; no frame of Python for any."""
    return map(Tensor.data_ptr, filter(is_there, tensors))


class Launch:
    """A launch as it was, for tensors that lie elsewhere: it takes their addresses in the order of the kernel's
    arguments, of a group's fields, and of what a field holds."""

    def __init__(self, problem: Problem, config: Config, device: torch.device, groups: dict[str, Any]) -> None:
        """From the groups of a launch. Raises LookupError where its kernel is not remembered."""
        self.launcher, self.launchers = launch.current_launcher(problem, config, device, None), launch.launcher_of
        remembered = self.launcher.remembered(groups)
        if remembered is None:
            raise LookupError
        self.found, self.arguments = remembered
        self.addresses: list[int] = []
        """What this launch was given."""
        self._others: list[Any] = []
        """Fields that are no addresses."""
        self._tuples: list[slice] = []
        """Fields that are several, as which of all addresses they are."""
        placed = [
            (place, [self._placed(*field) for field in zip(groups[name], argument, strict=True)])
            for place, (name, argument) in enumerate(zip(self.launcher.names, self.arguments, strict=True))
            if isinstance(argument, tuple) and len(argument) > 1  # itemgetter makes no tuple of one
        ]
        begins = 0, len(self.addresses), len(self.addresses) + len(self._others)
        self._groups = [
            (place, itemgetter(*[begins[kind] + number for kind, number in fields]))
            for place, fields in placed
            if any(kind != OTHER for kind, _ in fields)
        ]

    def _placed(self, field: Any, argument: Any) -> tuple[int, int]:
        """In which of the three lists a group's field is, and where."""
        if isinstance(field, Tensor):
            self.addresses.append(argument)
            return ADDRESS, len(self.addresses) - 1
        if isinstance(field, tuple):
            begin = len(self.addresses)
            self.addresses += argument
            self._tuples.append(slice(begin, len(self.addresses)))
            return TUPLE, len(self._tuples) - 1
        self._others.append(argument)
        return OTHER, len(self._others) - 1

    def check(self, addresses: Sequence[int]) -> None:
        """Raise LookupError unless this launch's tensors, named in this order, are what it was given."""
        if addresses != self.addresses:
            raise LookupError

    def holds(self) -> bool:
        """Whether the same kernel would be launched today."""
        # As `current_launcher` would say, which hashes four arguments.
        launcher = self.launcher
        return launch.launcher_of is self.launchers and launcher.cell is CELLS.get(launcher.problem.cell)

    def __call__(self, addresses: Sequence[int]) -> None:
        values: tuple[Any, ...] = (*addresses, *self._others)
        values += tuple(map(values.__getitem__, self._tuples))
        arguments = [*self.arguments]
        for place, pick in self._groups:
            arguments[place] = pick(values)
        self.launcher.repeat(self.found, arguments)


class ForwardAgain:
    """`forward_layer`."""

    def __init__(
        self,
        groups: dict[str, Any],
        problem: Problem,
        config: Config,
        keep: Keep,
        weights: Sequence[Tensor],
        results: tuple[Tensor, tuple[Tensor, ...], Residuals],
        batch_first: bool,
    ) -> None:
        """From a pass's launch, flat weights and results. Raises LookupError where it cannot be repeated."""
        y, final, _ = results
        self.launch = Launch(problem, config, y.device, groups)
        self.problem, self.batch_first = problem, batch_first
        self.needs = needs_of(problem, config, keep)
        self.y, self.state = y.shape, final[0].shape
        self.waits = self.needs.waits_for(groups["T"])
        gx, addresses = groups["gx"].ptr, addresses_of(weights)
        self.projected = gx.numel() * gx.element_size()
        if addresses is None:
            raise LookupError
        self.launch.check(self._order(gx, addresses, groups["states"].initial or (), results, groups["rows"].lengths))

    def holds(self) -> bool:
        """Whether the same kernel would be launched today, on all steps at once."""
        return self.projected <= chunks.CHUNK_BYTES and self.launch.holds()

    def __call__(
        self,
        x: Tensor,
        weights: Sequence[LayerWeights],
        addresses: Sequence[int],
        initial: Sequence[Tensor],
        extras: Extras,
    ) -> tuple[Tensor, tuple[Tensor, ...], Residuals]:
        """What `forward_layer` returns. addresses: `addresses_of` the flat weights; initial: empty for zeros."""
        results = y, _, residuals = allocate(self.needs, x, self.y, self.state)
        if self.waits or extras.lengths is not None:
            fill(y, residuals, extras, waits=self.waits)
        gx = project_once(self.problem, x, weights)
        if gx is None:
            gx = project_input(self.problem, x, weights, batch_first=self.batch_first)
        self.launch(self._order(gx, addresses, initial, results, extras.lengths))
        return results

    def _order(
        self,
        gx: Tensor,
        weights: Sequence[int],
        initial: Sequence[Tensor],
        results: tuple[Tensor, tuple[Tensor, ...], Residuals],
        lengths: Tensor | None,
    ) -> list[int]:
        """The launch's addresses."""
        y, final, (kept, saved, inner, _) = results
        each = len(weights) // self.problem.directions
        w_hh, b_hh = weights[1::each], weights[3::each] if each > 3 else ()
        own = weights[each - 1 :: each] if each % 2 else ()  # biases come in pairs
        return [gx.data_ptr(), *w_hh, *b_hh, *own, *begins((*initial, *final, y, *kept, saved, inner, lengths))]


_kind = attrgetter("dtype", "shape")


class BackwardAgain:
    """`backward_layer`, the same gradients given and wanted, of a cell without numbers of its own whose v was saved."""

    def __init__(
        self,
        groups: dict[str, Any],
        problem: Problem,
        config: Config,
        given: GivenBackwards,
        wanted: Wanted,
        batch_first: bool,
    ) -> None:
        """From a pass's launch and what it was given. Raises LookupError where it cannot be repeated."""
        out, d_initial = groups["out"], groups["gradients"].initial or ()
        self.launch = Launch(problem, config, given.y.device, groups)
        self.problem, self.wanted, self.batch_first = problem, wanted, batch_first
        self.kinds = [*map(_kind, given.weights)]
        self.waits = config.regime == "cooperative" and config.exchange == "dataflow"
        self.da, self.splits = out.da.shape, out.dx is not None
        self.initial = [state.shape for state in d_initial]
        self.keeps_inner = find_cell(problem.cell).inner is not None
        addresses, lengths = [w.data_ptr() for w in given.weights], groups["rows"].lengths
        self.launch.check(self._order(given, addresses, d_initial, out.da, out.dx, lengths))

    def holds(self, weights: Sequence[Tensor]) -> bool:
        """Whether the same kernel would be launched today, for weights of the same kind."""
        return self.launch.holds() and [*map(_kind, weights)] == self.kinds

    def __call__(
        self, given: GivenBackwards, weights: Sequence[LayerWeights], addresses: Sequence[int], extras: Extras
    ) -> Gradients:
        """What `backward_layer` returns. weights, addresses: the flat ones by direction, and `addresses_of` them."""
        y = given.y
        da = empty(y, self.da)
        dx = torch.empty_like(da) if self.splits else None
        d_initial = tuple([empty(y, shape) for shape in self.initial])
        if self.waits or extras.lengths is not None:
            fill_channel(da, extras, sentinel=self.waits)
            if dx is not None:
                fill_channel(dx, extras, sentinel=False)
        self.launch(self._order(given, addresses, d_initial, da, dx, extras.lengths))
        inner = given.residuals[-1] if self.keeps_inner else None
        history = History(y, inner, given.initial or None, extras, reverse=False)
        into = da if dx is None else dx
        more: dict[str, Any] = {"batch_first": self.batch_first, "wanted": self.wanted}
        grad_x, of_weights = gradients_of_weights(self.problem, given.x, weights, history, da, into, **more)
        if self.launch.launcher.cooperative:
            raise_if_stalled(y.device)  # nothing may be launched after a backward pass that would say so
        return Gradients(grad_x, of_weights, d_initial)

    def _order(
        self,
        given: GivenBackwards,
        weights: Sequence[int],
        d_initial: Sequence[Tensor],
        da: Tensor,
        dx: Tensor | None,
        lengths: Tensor | None,
    ) -> list[int]:
        """The launch's addresses."""
        _, _, initial, y, residuals, dy, d_final = given
        kept = residuals[:-1] if self.keeps_inner else residuals
        each = len(weights) // self.problem.directions
        after = (*initial, y, *kept, da, dx, lengths)
        return [*begins((dy, *d_final, *d_initial)), *weights[1::each], *begins(after)]
