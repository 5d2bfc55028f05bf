"""Lengths, packed rows, resets, dropout of h and zoneout in the time loops: random calls, through the kernels and by
the plain recurrence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...cells.eager.recurrence import unroll
from ...cells.eager.reference import reference_of
from ...kernels.cell_spec import find_cell
from ...kernels.config import Config
from ...kernels.extras import Extras, is_one_number
from ...kernels.kept import Keep
from ...kernels.layer import LayerWeights, backward_layer, forward_layer
from ...kernels.packed_rows import PackedRows
from ...kernels.problem import Problem
from ...kernels.tolerance import FLOAT32_AS_TF32, Errors, compare_all, relative_error, worst

NEIGHBOURS = 32
"""Of a point at which torch's own error does not allow ours, whether by luck: so many others are asked then."""


def small_config(regime: str, hidden_size: int) -> Config:
    """Small tiles, so that a small problem already has several programs, chunks and batch tiles.

    regime:  "single_cta", or the exchange of the cooperative one, with "cooperative/" before it or without.
    """
    if regime == "single_cta":
        block = max(16, 1 << (hidden_size - 1).bit_length())
        return Config("single_cta", 16, block, block)
    if regime.endswith("barrier"):
        return Config("cooperative", 16, 16, 32, exchange="barrier", SPLIT_K=2)
    return Config("cooperative", 16, 16, 32, exchange="dataflow", SPLIT_K=4)


def most_units(regime: str, dtype: torch.dtype) -> int:
    """How many units a layer with `small_config` may have, for one program to find room for its weights.

    In float32 they lie in shared memory twice, for three TF32 products: of 128 units and four gates 540 KB, where an
    A100 has 163 and an H100 227; of 64 units 139.
    """
    return 64 if regime == "single_cta" and dtype == torch.float32 else 128


def states_of(cell: str, drawn: Sequence[Tensor]) -> list[Tensor]:
    """Normal numbers as states of the cell: an sLSTM's n is a sum of what is positive."""
    names = reference_of(cell).state_names
    return [state.abs() if name == "n" else state for name, state in zip(names, drawn, strict=True)]


def near(values: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers a thousandth away from these, in their dtype."""
    noise = torch.randn(values.shape, generator=generator) / 1000
    return (values * (1 + noise)).to(values.dtype)


@dataclass
class Call:
    """A layer and its arguments, padded and on the CPU, in float32."""

    cell: str
    x: Tensor
    weights: list[list[Tensor]]
    initial: list[Tensor] | None = None
    lengths: Tensor | None = None
    packed: bool = False
    resets: Tensor | None = None
    reset_state: list[Tensor] | None = None
    dropout: Tensor | None = None
    zoneout: list[Tensor] | None = None
    reverse: bool = False
    gradients: list[Tensor] = field(default_factory=list)

    def neighbour(self, seed: int) -> Call:
        """The same call at a point a thousandth away: as well or badly conditioned, rounded otherwise."""
        generator = torch.Generator().manual_seed(seed)
        weights = [[near(w, generator) for w in own] for own in self.weights]
        return replace(self, x=near(self.x, generator), weights=weights)

    @property
    def hidden(self) -> int:
        return self.gradients[0].shape[-1] // len(self.weights)

    @property
    def heads(self) -> int:
        return self.hidden // self.weights[0][1].shape[1]

    def __str__(self) -> str:
        T, B, _ = self.x.shape
        given = {"lengths": self.lengths, "resets": self.resets, "dropout": self.dropout, "zoneout": self.zoneout}
        named = [name for name, value in given.items() if value is not None]
        named += ["packed"] if self.packed else []
        heads = [f"heads={self.heads}"] if self.heads > 1 else []
        return " ".join([f"T={T} B={B} H={self.hidden} D={len(self.weights)}", *heads, *named])


def draw_call(cell: str, seed: int, heads: int = 1) -> Call:
    """A call of random sizes with a random choice of features, one or two directions, with or without biases, of so
    many heads."""
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def states(chance: float) -> list[Tensor] | None:
        return states_of(cell, [randn(D, B, H) for _ in range(spec.states)]) if pick.random() < chance else None

    spec = find_cell(cell)
    H, B, T = heads * pick.choice([5, 16, 20, 33]), pick.choice([1, 3, 4, 18]), pick.choice([1, 2, 5])
    D, inputs, bias, packed = pick.choice([1, 2]), 3, pick.random() < 0.7, pick.random() < 0.25
    rows = spec.gates * H

    def weights() -> list[Tensor]:
        found = [randn(rows, inputs) / 2, randn(rows, H // heads) / (H // heads) ** 0.5]
        found += [randn(rows) / 3, randn(rows) / 3] if bias else []
        return found + ([randn(spec.parameters, H) / 3] if spec.parameters else [])

    lengths = None
    if packed:
        lengths = torch.tensor(sorted((pick.randint(1, T) for _ in range(B)), reverse=True))
        lengths[0] = T
    elif pick.random() < 0.5:
        lengths = torch.tensor([pick.randint(0, T) for _ in range(B)])
    resets = torch.rand(T, B, generator=generator) < 0.4 if not packed and pick.random() < 0.6 else None
    zoneout = None
    if pick.random() < 0.4:
        drawn = [torch.rand(T, B, D * H, generator=generator).lt(0.3).float() for _ in range(spec.states)]
        constant = [torch.tensor(0.25 + 0.1 * k).expand(T, B, D * H) for k in range(spec.states)]
        zoneout = pick.choice([drawn, constant])
    return Call(
        cell,
        randn(T, B, inputs),
        [weights() for _ in range(D)],
        states(0.6),
        lengths,
        packed,
        resets,
        states(0.5) if resets is not None else None,
        torch.rand(D, B, H, generator=generator).lt(0.7).float() / 0.7 if pick.random() < 0.4 else None,
        zoneout,
        D == 1 and pick.random() < 0.5,
        [randn(T, B, D * H), *(randn(D, B, H) for _ in range(spec.states))],
    )


def plainly(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, and the gradients of everything that has one, by the plain recurrence."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(dtype, copy=True).requires_grad_()

    x, weights = leaf(call.x), [[leaf(w) for w in own] for own in call.weights]
    initial = None if call.initial is None else [leaf(state) for state in call.initial]
    reset_state = None if call.reset_state is None else [leaf(state) for state in call.reset_state]
    outputs, finals = [], []
    zeros = (x.new_zeros(x.shape[1], call.hidden),) * find_cell(call.cell).states
    for direction, own in enumerate(weights):
        units = slice(direction * call.hidden, (direction + 1) * call.hidden)
        y, final = unroll(
            call.cell,
            x,
            own,
            zeros if initial is None else tuple(state[direction] for state in initial),
            reverse=direction == 1 or call.reverse,
            lengths=call.lengths,
            resets=call.resets,
            reset_states=tuple(state[direction] for state in reset_state or ()),
            dropout=None if call.dropout is None else call.dropout[direction].to(dtype),
            zoneout=[zone[..., units].to(dtype) for zone in call.zoneout or ()],
        )
        outputs.append(y)
        finals.append(final)
    y = torch.cat(outputs, -1)
    final_states = [torch.stack(of_one) for of_one in zip(*finals, strict=True)]
    torch.autograd.backward(
        [out + 0 * x.sum() for out in (y, *final_states)], [gradient.to(dtype) for gradient in call.gradients]
    )
    found = {"y": y, "dx": x.grad}
    found |= {f"final {k}": state for k, state in enumerate(final_states)}
    found |= {f"d weight {d} {k}": w.grad for d, own in enumerate(weights) for k, w in enumerate(own)}
    found |= {f"d initial {k}": state.grad for k, state in enumerate(initial or ())}
    found |= {f"d reset {k}": state.grad for k, state in enumerate(reset_state or ())}
    return {k: torch.zeros_like(y).sum() if v is None else v.detach() for k, v in found.items()}


def through_kernels(call: Call, regime: str, keep: Keep, device: torch.device) -> dict[str, Tensor]:
    """The same from the kernels."""
    spec, D = find_cell(call.cell), len(call.weights)
    starts, rows, gradients, x, zoneout = None, None, call.gradients, call.x, call.zoneout
    if call.packed:
        assert call.lengths is not None
        sizes = (call.lengths > torch.arange(x.shape[0])[:, None]).sum(1)
        starts = sizes.cumsum(0) - sizes
        rows = PackedRows.of(starts, call.lengths, int(sizes.sum()))
        x, gradients = rows.packed(x), [rows.packed(gradients[0]), *gradients[1:]]
        zoneout = None if zoneout is None else [rows.packed(zone) for zone in zoneout]

    def there(value: Any) -> Any:
        if isinstance(value, list):
            return [there(v) for v in value]
        return None if value is None else value if (value.is_cpu and is_one_number(value)) else value.to(device)

    extras = Extras(*map(there, (call.lengths, starts, call.resets, call.reset_state, call.dropout, zoneout)))
    config = small_config(regime, call.hidden // call.heads)
    problem = Problem(
        call.cell,
        torch.float32,
        call.hidden,
        call.x.shape[1],
        D,
        features=extras.features,
        num_heads=call.heads,
    )
    weights = []
    for own in call.weights:
        matrices, biases, parameters = own[:2], own[2:4], own[len(own) - 1 :] if spec.parameters else [None]
        weights.append(
            LayerWeights(*there(matrices), *(there(biases) if len(own) > 3 else (None, None)), *there(parameters))
        )
    arguments: Any = (config, there(x), weights, there(call.initial))
    options: Any = {"reverse": call.reverse, "extras": extras}
    y, final, residuals = forward_layer(problem, *arguments, keep=keep, **options)
    again, _, _ = forward_layer(problem, *arguments, keep="nothing", **options)
    assert torch.equal(y, again), "what a run keeps changes nothing"
    dy, *d_final = there(gradients)
    results: Any = (y, residuals, dy, d_final)
    backward = replace(problem, phase="backward")
    gradient = backward_layer(backward, *arguments, *results, **options)
    assert gradient.x is not None
    found = {"y": y.cpu(), "dx": gradient.x.cpu()}
    if rows is not None:
        found = {name: rows.padded(value) for name, value in found.items()}
    found |= {f"final {k}": state for k, state in enumerate(final)}
    of_weights = [[g for g in own if g is not None] for own in gradient.weights]
    found |= {f"d weight {d} {k}": g for d, own in enumerate(of_weights) for k, g in enumerate(own)}
    if call.initial is not None:
        found |= {f"d initial {k}": g for k, g in enumerate(gradient.initial)}
    found |= {f"d reset {k}": g for k, g in enumerate(gradient.reset_state)}
    return {name: value.cpu() for name, value in found.items()}


def errors_of(call: Call, regime: str, keep: Keep, device: torch.device) -> dict[str, Errors]:
    """Errors of the kernels' outputs and gradients against the plain recurrence in float64."""
    found = through_kernels(call, regime, keep, device)
    torchs, exact = plainly(call, torch.float32), plainly(call, torch.float64)
    assert found.keys() == exact.keys()
    ours, own, right = ([one[name] for name in exact] for one in (found, torchs, exact))
    errors = compare_all(ours, own, right, torch.float32, FLOAT32_AS_TF32)
    if not worst(errors).ok:
        elsewhere = max(_torch_error(call.neighbour(draw)) for draw in range(NEIGHBOURS))
        errors = compare_all(ours, own, right, torch.float32, max(elsewhere, FLOAT32_AS_TF32))
    return dict(zip(exact, errors, strict=True))


def _torch_error(call: Call) -> float:
    single, double = plainly(call, torch.float32), plainly(call, torch.float64)
    return relative_error([*single.values()], [*double.values()])
