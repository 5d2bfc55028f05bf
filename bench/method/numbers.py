"""The numbers of a case: weights, several inputs to rotate among, gradients, lengths, resets; and the right answer.

All values are drawn from a seed, none is zero as a whole, and every provider gets the same ones, rounded to the case's
dtype. The right answer is torch.nn's in float64, or that of plain steps for a cell that it lacks, sequence by sequence
where sequences differ in length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.heads import block_diagonal, diagonal_blocks
from .case import Case
from .plain_layer import PlainLayer

TORCH = {"rnn_tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
GATE_BY_GATE = ("weight_ih", "weight_hh", "bias")
"""Parameters of G * H rows; others are of [.., H]."""

Factory = Callable[..., nn.Module]
Results = dict[str, Tensor]


class Numbers:
    """What every provider of a case computes with.

    weights:  a state_dict per head.
    xs:       inputs [T, B, I], different from each other.
    dy:       gradient of the output [T, B, D * heads * H].
    lengths:  [B] int64 on the CPU, or None where all rows have T steps.
    resets:   [T, B] bool: the state returns to zero before this step; or None.
    """

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0, copies: int = 1) -> None:
        self.case, self.device = case, device
        # On the device itself: a CPU takes seconds for the inputs of one case.
        generator = torch.Generator(device).manual_seed(seed)
        on_cpu = torch.Generator().manual_seed(seed)
        T, B = case.length, case.batch_size
        self.weights = [self._draw_weights(generator) for _ in range(case.heads)]
        width = case.directions * case.heads * case.hidden_size
        self.xs = [self._normal(generator, T, B, case.inputs) for _ in range(copies)]
        self.dy = self._normal(generator, T, B, width)
        self.lengths: Tensor | None = None
        self.resets: Tensor | None = None
        if case.sequences == "ragged":
            self.lengths = torch.randint(max(1, T // 4), T + 1, (B,), generator=on_cpu)
            self.lengths[0] = T
            for row, length in enumerate(self.lengths.tolist()):
                self.dy[length:, row] = 0
        if case.sequences in ("resets", "rare resets"):
            steps = max(2, T // 8) if case.sequences == "resets" else 50
            self.resets = (torch.rand(T, B, generator=on_cpu) < 1 / steps).to(device)

    def module(self, factory: Factory, dtype: torch.dtype, head: int = 0, **options: Any) -> Any:
        """A recurrent module of torch.nn's signature with this case's weights, in `dtype`."""
        case = self.case
        module = factory(case.inputs, case.hidden_size, **self._form, **options)
        module.load_state_dict(self.weights[head])
        return module.to(self.device, dtype)

    def whole(self, factory: Factory, dtype: torch.dtype, *, dense: bool = False) -> Any:
        """One module of all heads, with `num_heads=`; dense: without, its W_hh the block-diagonal matrix."""
        case = self.case
        if case.heads == 1:
            return self.module(factory, dtype)
        form = self._form if dense else self._form | {"num_heads": case.heads}
        module = factory(case.inputs, case.heads * case.hidden_size, **form)
        joined = {name: self._joined(name) for name in self.weights[0]}
        if dense:
            joined |= {k: block_diagonal(w, case.heads) for k, w in joined.items() if k.startswith("weight_hh")}
        module.load_state_dict(joined)
        return module.to(self.device, dtype)

    def _joined(self, name: str) -> Tensor:
        """A parameter of all heads, gate by gate; numbers of each unit's own unit by unit."""
        of_heads = [weights[name] for weights in self.weights]
        if not name.startswith(GATE_BY_GATE):
            return torch.cat(of_heads, -1)
        return torch.stack([w.unflatten(0, (-1, self.case.hidden_size)) for w in of_heads], 1).flatten(0, 2)

    def by_head(self, name: str, whole: Tensor) -> Results:
        """A parameter of `whole`, or its gradient, by the names of `right`."""
        heads, H = self.case.heads, self.case.hidden_size
        if heads == 1:
            return {name: whole}
        if not name.startswith(GATE_BY_GATE):
            return {named(name, head): part for head, part in enumerate(whole.chunk(heads, -1))}
        if name.startswith("weight_hh") and whole.shape[1] != H:
            whole = diagonal_blocks(whole, heads)
        parts = whole.unflatten(0, (-1, heads, H)).unbind(1)
        return {named(name, head): part.flatten(0, 1) for head, part in enumerate(parts)}

    @property
    def _form(self) -> dict[str, Any]:
        return {"num_layers": self.case.layers, "bidirectional": self.case.directions == 2}

    @property
    def real_steps(self) -> int:
        """Time steps of all rows that are not padding."""
        return self.case.length * self.case.batch_size if self.lengths is None else int(self.lengths.sum())

    @cached_property
    def right(self) -> Results:
        """y, and the gradients of x and of every parameter for `dy`, in float64, of the first input."""
        return self.computed_in(torch.float64)

    def computed_in(self, dtype: torch.dtype) -> Results:
        """The same in another dtype, by torch.nn."""
        modules = [self.module(right_module(self.case.cell), dtype, head) for head in range(self.case.heads)]
        x = self.xs[0].to(dtype, copy=True).requires_grad_()
        y = torch.cat([self._sequences(module, x) for module in modules], -1)
        y.backward(self.dy.to(dtype))
        assert x.grad is not None
        results = {"y": y.detach(), "x": x.grad}
        for head, module in enumerate(modules):
            results |= {named(name, head): p.grad for name, p in module.named_parameters() if p.grad is not None}
        return results

    def _sequences(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.lengths is None and self.resets is None:
            return module(x)[0]
        rows = []
        for row in range(self.case.batch_size):
            length = self.case.length if self.lengths is None else int(self.lengths[row])
            starts = [0] if self.resets is None else segment_starts(self.resets[:, row])
            pieces = [module(x[start:end, row])[0] for start, end in zip(starts, [*starts[1:], length], strict=True)]
            padding = x.new_zeros(self.case.length - length, self.dy.shape[-1] // self.case.heads)
            rows.append(torch.cat([*pieces, padding]))
        return torch.stack(rows, 1)

    def _draw_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        case = self.case
        with torch.device("meta"):
            module = right_module(case.cell)(case.inputs, case.hidden_size, **self._form)
        bound = case.hidden_size**-0.5
        return {
            name: ((torch.rand(p.shape, generator=generator, device=self.device) * 2 - 1) * bound).to(case.dtype)
            for name, p in module.named_parameters()
        }

    def _normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.device).to(self.case.dtype)


def right_module(cell: str) -> Factory:
    """What is right for a cell: torch.nn's module, or one layer in plain steps where it has none."""
    return TORCH.get(cell) or partial(PlainLayer, cell)


def named(parameter: str, head: int) -> str:
    return parameter if head == 0 else f"{parameter} of head {head}"


def segment_starts(resets: Tensor) -> list[int]:
    """First steps of the segments of one row; the first segment starts at 0, marked or not."""
    return sorted({0, *resets.nonzero().flatten().tolist()})
