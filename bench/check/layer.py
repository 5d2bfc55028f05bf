"""One layer on random numbers, through the kernels and by torch.nn in float64, or by plain steps of the cell's
reference where torch.nn lacks it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from ...cells.eager.reference import reference_of
from ...kernels.cell_spec import find_cell
from ...kernels.config import Config
from ...kernels.heads import block_diagonal, diagonal_blocks
from ...kernels.kept import Keep
from ...kernels.layer import LayerWeights, backward_layer, forward_layer, run_layer
from ...kernels.problem import Precision, Problem
from ...kernels.tolerance import Errors, compare_all, relative_error, worst
from ..method.plain_layer import PlainLayer
from .features import NEIGHBOURS, near, small_config, states_of

_TORCH: dict[str, Any] = {
    "rnn_tanh": torch.nn.RNN,
    "rnn_relu": torch.nn.RNN,
    "gru": torch.nn.GRU,
    "lstm": torch.nn.LSTM,
}


_ByTorch: TypeAlias = "Callable[[Layer, torch.dtype], dict[str, torch.Tensor]]"


@dataclass(frozen=True)
class Case:
    """One layer to check, on random numbers.

    regime:  "single_cta", or "cooperative/" and the exchange.
    """

    cell: str
    regime: str
    dtype: torch.dtype
    hidden_size: int = 20
    batch_size: int = 3
    length: int = 5
    directions: int = 1
    bias: bool = True
    initial: bool = True
    batch_first: bool = False
    reverse: bool = False
    precision: Precision = "ieee"
    input_size: int = 6
    num_heads: int = 1

    @property
    def problem(self) -> Problem:
        return Problem(
            self.cell,
            self.dtype,
            self.hidden_size,
            self.batch_size,
            directions=self.directions,
            precision=self.precision,
            num_heads=self.num_heads,
        )

    @property
    def like(self) -> torch.dtype:
        """The dtype whose error torch.nn shows: tf32 has float16's mantissa, and torch on a CPU has no tf32."""
        return torch.float16 if self.precision == "tf32" else self.dtype

    @property
    def config(self) -> Config:
        return small_config(self.regime, self.problem.head_size)


class Layer:
    """The numbers of a case, and the layer of torch.nn that they are compared with."""

    def __init__(self, case: Case, seed: int, *, away_from_kinks: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(seed)
        B, T, states = case.batch_size, case.length, find_cell(case.cell).states
        shape = (B, T, case.input_size) if case.batch_first else (T, B, case.input_size)
        self.x = torch.randn(shape, generator=generator).to(case.dtype)
        drawn = [torch.randn(case.directions, B, case.hidden_size, generator=generator) for _ in range(states)]
        self.hx = tuple(state.to(case.dtype) for state in states_of(case.cell, drawn))
        self.module = self._module().to(case.dtype)
        with torch.no_grad():
            for parameter in self.module.parameters():
                values = torch.rand(parameter.shape, generator=generator) * 2 - 1
                parameter.copy_(values / case.hidden_size**0.5)
            for name, weight in self.module.named_parameters():
                if name.startswith("weight_hh"):  # as `num_heads` asks of torch.nn: zeros outside of the heads' blocks
                    weight.copy_(block_diagonal(diagonal_blocks(weight, case.num_heads), case.num_heads))
            if away_from_kinks and case.bias:
                self._keep_away_from_zero(generator)

    def neighbour(self, seed: int) -> Layer:
        """The same case at a point a thousandth away: as well or badly conditioned, rounded otherwise."""
        generator = torch.Generator().manual_seed(seed)
        other = copy.deepcopy(self)
        other.x, other.hx = near(self.x, generator), tuple(near(state, generator) for state in self.hx)
        with torch.no_grad():
            for parameter in other.module.parameters():
                parameter.copy_(near(parameter, generator))
        return other

    def _keep_away_from_zero(self, generator: torch.Generator) -> None:
        """Preactivations near 1 or -1: near 0 a rounding error picks relu's other derivative."""
        for name, parameter in self.module.named_parameters():
            if name.startswith("weight"):
                parameter.mul_(0.3)
            else:
                sign = torch.randint(2, parameter.shape, generator=generator) * 2 - 1
                parameter.copy_(sign if name.startswith("bias_ih") else torch.zeros(()))

    def _module(self) -> torch.nn.Module:
        case = self.case
        options: dict[str, Any] = {"bias": case.bias, "batch_first": case.batch_first}
        options["bidirectional"] = case.directions == 2
        if case.cell not in _TORCH:
            return PlainLayer(case.cell, case.input_size, case.hidden_size, num_heads=case.num_heads, **options)
        options |= {"nonlinearity": "relu"} if case.cell == "rnn_relu" else {}
        return _TORCH[case.cell](case.input_size, case.hidden_size, **options)

    def weights(self, device: torch.device) -> list[LayerWeights]:
        parameters = {name: value.detach().to(device) for name, value in self.module.named_parameters()}
        return [
            LayerWeights(
                parameters["weight_ih_l0" + suffix],
                diagonal_blocks(parameters["weight_hh_l0" + suffix], self.case.num_heads),
                parameters.get("bias_ih_l0" + suffix),
                parameters.get("bias_hh_l0" + suffix),
                parameters.get("weight_unit_l0" + suffix),
            )
            for suffix in ("", "_reverse")[: self.case.directions]
        ]

    def kernels(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """y, h_n (, c_n) from the kernels."""
        case = self.case
        y, states = run_layer(
            case.problem,
            case.config,
            self.x.to(device),
            self.weights(device),
            [s.to(device) for s in self.hx] if case.initial else None,
            batch_first=case.batch_first,
            reverse=case.reverse,
        )
        return tuple(t.cpu() for t in (y.transpose(0, 1) if case.batch_first else y, *states))

    def torch_nn(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """y, h_n (, c_n) on the CPU in `dtype`, from the same numbers: by torch.nn, or plainly for its lack."""
        with torch.no_grad():
            return self._by_torch(self._module_in(dtype), self.x.to(dtype), [s.to(dtype) for s in self.hx])

    def _module_in(self, dtype: torch.dtype) -> torch.nn.Module:
        module = self._module().to(dtype)
        module.load_state_dict(self.module.state_dict())
        return module

    def _by_torch(
        self, module: torch.nn.Module, x: torch.Tensor, hx: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        case = self.case
        time_dim = 1 if case.batch_first else 0
        initial = None if not case.initial else tuple(hx) if len(hx) > 1 else hx[0]
        y, states = module(x.flip(time_dim) if case.reverse else x, initial)
        y = y.flip(time_dim) if case.reverse else y
        return (y, *states) if isinstance(states, tuple) else (y, states)

    def gradients(self, device: torch.device, keep: Keep) -> dict[str, torch.Tensor]:
        """Gradients of every parameter, x and the initial states from the kernels, for `self.loss_weights`."""
        return self.training(device, keep)[1]

    def training(self, device: torch.device, keep: Keep) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """`torch_outputs` and `torch_gradients` from the kernels, forwards and backwards once."""
        case = self.case
        weights, x = self.weights(device), self.x.to(device)
        initial = [s.to(device) for s in self.hx] if case.initial else None
        options: dict[str, Any] = {"batch_first": case.batch_first, "reverse": case.reverse}
        y, states, residuals = forward_layer(case.problem, case.config, x, weights, initial, keep=keep, **options)
        dy, *d_final = (t.to(device) for t in self.loss_weights())
        dy = dy.transpose(0, 1) if case.batch_first else dy
        backward = replace(case.problem, phase="backward")
        found = backward_layer(backward, case.config, x, weights, initial, y, residuals, dy, d_final, **options)
        named = {"x": found.x}
        for suffix, of_direction in zip(("", "_reverse"), found.weights, strict=False):
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_unit_l0")
            named |= {name + suffix: g for name, g in zip(names, of_direction, strict=True) if g is not None}
        if case.initial:
            named |= {f"hx[{index}]": g for index, g in enumerate(found.initial)}
        outputs = self.named_outputs((y.transpose(0, 1) if case.batch_first else y, *states))
        return outputs, {name: g.cpu() for name, g in named.items() if g is not None}

    def torch_outputs(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """`torch_nn` by name."""
        return self.named_outputs(self.torch_nn(dtype))

    def named_outputs(self, results: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """y, h_n and so on by these names."""
        names = ("y", *(f"{name}_n" for name in reference_of(self.case.cell).state_names))
        return {name: result.cpu() for name, result in zip(names, results, strict=True)}

    def torch_gradients(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        """The same from torch.nn on the CPU in `dtype`."""
        module = self._module_in(dtype)
        x, *hx = (t.to(dtype, copy=True).requires_grad_() for t in (self.x, *self.hx))
        torch.autograd.backward(self._by_torch(module, x, hx), [w.to(dtype) for w in self.loss_weights()])
        named = {"x": x.grad} | {name: p.grad for name, p in module.named_parameters()}
        for name in [name for name in named if name.startswith("weight_hh")]:
            named[name] = diagonal_blocks(named[name], self.case.num_heads)  # type: ignore[arg-type]
        if self.case.initial:
            named |= {f"hx[{index}]": s.grad for index, s in enumerate(hx)}
        return {name: g for name, g in named.items() if g is not None}

    def loss_weights(self) -> list[torch.Tensor]:
        """A random gradient for y, laid out as the module returns it, and for each final state."""
        case = self.case
        generator = torch.Generator().manual_seed(1)
        B, T, D, H = case.batch_size, case.length, case.directions, case.hidden_size
        shapes = [(B, T, D * H) if case.batch_first else (T, B, D * H), *[(D, B, H)] * len(self.hx)]
        return [torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes]


def check_case(case: Case, device: torch.device, seed: int) -> Errors:
    """The worst errors over y and the final states of one case."""
    layer = Layer(case, seed)
    return _errors(layer, seed, layer.named_outputs(layer.kernels(device)), Layer.torch_outputs)


def check_training(case: Case, device: torch.device, seed: int, keep: Keep) -> tuple[Errors, Errors]:
    """The worst errors over y and the final states, and over all gradients, from one pass of training."""
    layer = Layer(case, seed, away_from_kinks=case.cell == "rnn_relu")
    outputs, gradients = layer.training(device, keep)
    return _errors(layer, seed, outputs, Layer.torch_outputs), _errors(layer, seed, gradients, Layer.torch_gradients)


def check_gradients(case: Case, device: torch.device, seed: int, keep: Keep) -> Errors:
    """The worst errors over all gradients of one case."""
    layer = Layer(case, seed, away_from_kinks=case.cell == "rnn_relu")
    return _errors(layer, seed, layer.gradients(device, keep), Layer.torch_gradients)


def _errors(layer: Layer, seed: int, ours: dict[str, torch.Tensor], by_torch: _ByTorch) -> Errors:
    """Where torch's error here does not allow ours, its largest among the neighbours says whether that is luck: an
    sLSTM of 64 units erred by 3.1e-6 in the interpreter too, torch by 3.1e-7, and by 1.7e-6 a thousandth away."""
    like = layer.case.like
    torchs, reference = by_torch(layer, like), by_torch(layer, torch.float64)
    assert ours.keys() == reference.keys()
    named = [[found[name] for name in reference] for found in (ours, torchs, reference)]
    errors = worst(compare_all(named[0], named[1], named[2], like))
    if errors.ok:
        return errors
    elsewhere = max(_torch_error(layer.neighbour(1000 * seed + draw), by_torch) for draw in range(NEIGHBOURS))
    return worst(compare_all(named[0], named[1], named[2], like, elsewhere))


def _torch_error(layer: Layer, by_torch: _ByTorch) -> float:
    results = [[*by_torch(layer, dtype).values()] for dtype in (layer.case.like, torch.float64)]
    return relative_error(*results)
