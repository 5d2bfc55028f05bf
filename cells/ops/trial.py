"""A kernel's first use: a few steps on random numbers beside torch's own op, twice, before it serves a call.

Right is what stays within the tolerance of `kernels.tolerance`, which torch's own error in the same dtype against
float64 gives. What this cannot see is an error that depends on the sizes of a call: it runs a full tile of rows and a
single row more, a few steps, and the hidden size, config, options and tensors that the call has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...autotune import select
from ...autotune.measure import float32_products, inputs, torch_has
from ...autotune.tried import Outcome, Question, settle
from ...kernels.cell_spec import find_cell
from ...kernels.config import Config
from ...kernels.extras import Extras, is_one_number
from ...kernels.gemm import LayerWeights, Wanted, in_precision
from ...kernels.heads import block_diagonal
from ...kernels.kept import Keep
from ...kernels.layer import backward_layer, forward_layer
from ...kernels.problem import Problem, sizes_of
from ...kernels.refused import RefusedError
from ...kernels.stall import StalledError, raise_if_stalled
from ...kernels.tolerance import FLOAT32_AS_TF32, compare_all
from ..eager.fused import FUSED_OPS
from ..eager.reference import FAMILIES
from .options import Options
from .plain import plain_layer

STEPS = 6
"""Mistakes show at once; the first step has no team to wait for, and the last is different again."""

RESETS = 0.2

FACTOR = 2.0
"""Times the derived tolerance, for a GPU's approximations of exp and 1/x, which an interpreter does not have. A wrong
index is off by as much as the numbers are large."""

SMOOTH = ("rnn_tanh", *FAMILIES)
"""Cells without a kink that is known of: beside one, rounding picks another derivative."""

TF32 = torch.float16
"""As many bits of mantissa; torch has no TF32 on a CPU."""


class There(NamedTuple):
    """What of a call's tensors is there: for each choice Triton compiles a kernel of its own.

    one_zone:  zoneout is one number, as it is outside of training.
    dy, d_final, wanted:  of a backward pass.
    """

    bias: bool
    initial: bool
    one_zone: bool
    dy: bool = False
    d_final: tuple[bool, ...] = ()
    wanted: Wanted | None = None

    @property
    def names(self) -> tuple[str, ...]:
        found = [name for name in ("bias", "initial", "one_zone", "dy") if getattr(self, name)]
        found += [f"d_final[{k}]" for k, given in enumerate(self.d_final) if given]
        wanted = {} if self.wanted is None else self.wanted._asdict()
        return (*found, *(f"wanted.{name}" for name, asked in wanted.items() if asked))


def there_of(weights: Sequence[Tensor], directions: int, extras: Extras, initial: bool, *backwards: Any) -> There:
    """Of a call; backwards: dy, d_final and wanted."""
    one_zone = extras.zoneout is not None and is_one_number(extras.zoneout[0])
    return There(len(weights) // directions >= 4, initial, one_zone, *backwards)


def try_once(
    problem: Problem, config: Config, keep: Keep, options: Options, there: There, device: torch.device
) -> None:
    """Run the kernel beside torch's own op if it has not been.

    Raises FailedFirstUseError where it is not to be used, NotTriedError where it cannot be tried now (see
    `autotune.tried`), StalledError of an earlier launch, and NotResidentError.
    """
    if there.wanted is not None and not (there.dy or any(there.d_final)):
        return  # no gradient comes in: there is nothing to compute
    question = Question(problem, config, keep, there.names)
    settle(question, device, select.limits_of(device), lambda: tried(problem, config, keep, options, there, device))


def tried(
    problem: Problem, config: Config, keep: Keep, options: Options, there: There, device: torch.device
) -> Outcome:
    """What comes of running it."""
    raise_if_stalled(device)
    of = f"{problem.cell} {str(problem.dtype).removeprefix('torch.')} {sizes_of(problem)}, {problem.phase}, {config}: "
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            trial = _Trial(problem, config, keep, options, there, device)
            found, again = trial.run(), trial.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        raise_if_stalled(device)
    except (RefusedError, torch.OutOfMemoryError):
        raise
    except StalledError as error:
        return Outcome(of + str(error), {}, lasting=False)  # who else was on the GPU is gone the next time
    except Exception as error:  # whatever a compiler or a launch raises is the finding here
        text = str(error).strip().splitlines()
        return Outcome(f"{of}{type(error).__name__}: {text[0] if text else ''}", {"error": str(error)[:20_000]})
    return _compared(of, trial, found, again)


def _compared(of: str, trial: _Trial, found: dict[str, Tensor], again: dict[str, Tensor]) -> Outcome:
    like, computed_in = trial.problem.dtype, trial.problem.dtype
    if trial.problem.precision == "tf32":
        like, computed_in = TF32, TF32 if trial.device.type == "cpu" else torch.float32
    exact, torchs = trial.plainly(torch.float64), trial.by_torch(computed_in)
    own: list[Tensor] = []
    theirs: list[Tensor] = []
    right: list[Tensor] = []
    for name, ours in found.items():
        # What overflows in torch's op may overflow in a kernel; a cell may grow without bounds.
        says_nothing = ~(torchs[name].isfinite() & exact[name].isfinite())
        each = (ours, torchs[name], exact[name])
        for among, tensor in zip((own, theirs, right), each, strict=True):
            among.append(tensor.masked_fill(says_nothing, 0))
    least = FLOAT32_AS_TF32 if like is torch.float32 else 0.0
    errors = dict(zip(found, compare_all(own, theirs, right, like, least), strict=True))
    details = {
        name: {"error": e.ours, "torchs": e.torchs, "allowed": FACTOR * e.tolerance, "largest": _largest(exact[name])}
        for name, e in errors.items()
    }
    for name, tensor in found.items():
        if not torch.equal(_bits(tensor), _bits(again[name])):
            return Outcome(f"{of}{name} is not the same twice", {"errors": details, "not the same twice": name})
    name, worst = max(errors.items(), key=lambda named: named[1].share)
    if not worst.ours <= FACTOR * worst.tolerance:  # also where it is NaN
        share = (found[name].double() - exact[name]).abs().gt(FACTOR * worst.tolerance).double().mean().item()
        why = f"{of}{name} is off by {worst.ours:.2g}, rounding explains {FACTOR * worst.tolerance:.2g}"
        return Outcome(why, {"errors": details, "share of numbers": share})
    return Outcome("", {"errors": details})


class _Trial:
    """The numbers of a trial, the kernel on them, and torch."""

    def __init__(
        self, problem: Problem, config: Config, keep: Keep, options: Options, there: There, device: torch.device
    ) -> None:
        self.config, self.keep, self.there, self.device = config, keep, there, device
        self.problem = replace(problem, batch_size=config.BLOCK_B + 1)
        self.options = options._replace(batch_first=False)
        self.x, weights, self.extras = inputs(self.problem, STEPS, device, on=device, resets=RESETS)
        if problem.cell not in SMOOTH:
            self._away_from_zero(weights)
        if not there.bias:
            weights = [w._replace(b_ih=None, b_hh=None) for w in weights]
        if there.one_zone:
            assert self.extras.zoneout is not None
            constant = [z.new_full((), 0.25).to(problem.dtype).expand(z.shape) for z in self.extras.zoneout]
            self.extras = self.extras._replace(zoneout=constant)
        self.weights = weights
        generator = torch.Generator(device).manual_seed(1)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(problem.dtype)

        rows = problem.directions, self.problem.batch_size, problem.hidden_size
        self.initial: list[Tensor] = []
        if there.initial or "reset_state" in problem.features:
            # States that the cell makes itself: not any number is one, an sLSTM divides by its third.
            steps = randn(2, self.problem.batch_size, self.x.shape[-1])
            states = plain_layer(steps, self.flat, (), self.options, torch.float32, Extras())[1:]
            states = [state.to(problem.dtype) for state in states]
            if there.initial:
                self.initial = states
            if self.extras.reset_state is not None:
                self.extras = self.extras._replace(reset_state=[state.flip(1) for state in states])
        width = problem.directions * problem.hidden_size
        self.dy = randn(*self.x.shape[:-1], width) if there.dy else None
        self.d_final = [randn(*rows) if given else None for given in there.d_final]

    def _away_from_zero(self, weights: Sequence[LayerWeights]) -> None:
        """Preactivations near 0.75 or -0.75, by a first input that is always one."""
        self.x[..., 0] = 1
        for w in weights:
            small = min(0.2, 0.05 * self.problem.hidden_size**0.5)
            for weight in (w.w_ih, w.b_ih, w.b_hh):
                assert weight is not None
                weight.mul_(small)
            w.w_hh.mul_(0.2)
            w.w_ih[:, 0] = 0.75
            w.w_ih[::2, 0] = -0.75

    @property
    def flat(self) -> list[Tensor]:
        return [t for w in self.weights for t in w if t is not None]

    def run(self) -> dict[str, Tensor]:
        """y and final states of the kernel, or the gradients that are wanted."""
        initial = self.initial or None
        if self.problem.phase == "forward":
            y, final, _ = forward_layer(
                self.problem, self.config, self.x, self.weights, initial, keep=self.keep, extras=self.extras
            )
            return {"y": y, **{f"final state {k}": state for k, state in enumerate(final)}}
        before = replace(self.problem, phase="forward")
        config = select.select(replace(before, batch_size=1), self.device, keep=self.keep).config or self.config
        y, _, residuals = forward_layer(
            before, config, self.x, self.weights, initial, keep=self.keep, extras=self.extras
        )
        wanted = self.there.wanted or Wanted()
        found = backward_layer(
            self.problem,
            self.config,
            self.x,
            self.weights,
            initial,
            y,
            residuals,
            self.dy,
            self.d_final,
            wanted=wanted,
            extras=self.extras,
        )
        of_weights = [
            gradient
            for w, of_w in zip(self.weights, found.weights, strict=True)
            for weight, gradient in zip(w, of_w, strict=True)
            if weight is not None
        ]
        gradients = [found.x, *of_weights, *_or_nones(found.initial, self.initial)]
        gradients += _or_nones(found.reset_state, self.extras.reset_state or ())
        named = zip(self._names(), gradients, strict=True)
        return {name: gradient for name, gradient in named if gradient is not None}

    def _names(self) -> Iterator[str]:
        yield "dx"
        for direction, w in enumerate(self.weights):
            yield from (f"d{name}[{direction}]" for name, t in w._asdict().items() if t is not None)
        yield from (f"d_initial[{k}]" for k in range(len(self.initial)))
        yield from (f"d_reset_state[{k}]" for k in range(len(self.extras.reset_state or ())))

    def plainly(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same by the plain recurrence in this dtype."""

        def layer(x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor], extras: Extras) -> list[Tensor]:
            return plain_layer(x, weights, initial, self.options, dtype, extras)

        return self._results(layer, dtype)

    def by_torch(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same by torch's own op in this dtype, by the plain recurrence where it has none or for heads."""
        if not torch_has(self.problem) or self.problem.num_heads > 1:
            return self.plainly(dtype)

        def layer(x: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor], extras: Extras) -> list[Tensor]:
            rows = self.problem.directions, self.problem.batch_size, self.problem.hidden_size
            states = list(initial) or [x.new_zeros(rows) for _ in range(find_cell(self.problem.cell).states)]
            hx = tuple(states) if len(states) > 1 else states[0]
            op, two = FUSED_OPS[self.problem.cell], self.problem.directions == 2
            each, heads = len(weights) // self.problem.directions, self.problem.num_heads
            dense = [block_diagonal(w, heads) if index % each == 1 else w for index, w in enumerate(weights)]
            with warnings.catch_warnings():  # cuDNN's, of weights that do not lie in one piece
                warnings.simplefilter("ignore")
                return list(op(x, hx, dense, self.there.bias, 1, 0.0, True, two, False))

        try:
            return self._results(layer, dtype)
        except RuntimeError:  # cuDNN has no such layer, or not in this dtype
            return self.plainly(dtype)

    def _results(self, layer: Callable[..., list[Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.to(dtype, copy=True).requires_grad_(self.problem.phase == "backward")

        x, weights, initial = leaf(self.x), [*map(leaf, self.flat)], [*map(leaf, self.initial)]
        extras, reset = self.extras, [*map(leaf, self.extras.reset_state or ())]
        if reset:
            extras = extras._replace(reset_state=reset)
        backwards = self.problem.phase == "backward"
        with float32_products(self.problem), in_precision(self.problem, self.device):
            with torch.set_grad_enabled(backwards), torch.autocast(self.device.type, enabled=False):
                y, *final = layer(x, weights, initial, extras)
            if not backwards:
                return {"y": y, **{f"final state {k}": state for k, state in enumerate(final)}}
            given = zip((y, *final), (self.dy, *self.d_final), strict=True)
            used = [(out, gradient.to(dtype)) for out, gradient in given if gradient is not None]
            leaves = [x, *weights, *initial, *reset]
            of_used, theirs = zip(*used, strict=True)
            found = torch.autograd.grad(of_used, leaves, theirs, allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]
        return dict(zip(self._names(), gradients, strict=True))


def _or_nones(found: Sequence[Tensor | None], given: Sequence[Tensor]) -> list[Tensor | None]:
    return list(found) or [None] * len(given)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0
