"""The equations of every cell in plain torch, by the cell's name: what kernels are checked against and the eager path
of what torch has no op for.

Names: "rnn_tanh", "rnn_relu", "slstm", "gru", "gru_reset_before", "lstm", "lstm_peephole"; the last four with other
activations as "lstm(relu,hard_sigmoid)", the activation first, then the recurrent one; the cells of
`catalogue`; and the names given to `holdfast.define_cell`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..catalogue import CATALOGUE
from .activations import Activation, find_activation

States = tuple[Tensor, ...]
Product = Callable[[Tensor], Tensor]
# (x, product, states, parameters) -> (states, gates)
Step = Callable[[Tensor, Product, States, States], tuple[States, States]]

STATE_NAMES = ("h", "c")


@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.11 hashes one that has no fields yet
class Reference:
    """One step of a cell.

    step:        called as `step(x, product, states, parameters) -> (states, gates)`.
                 x:           [B, G*H], W_ih x_t + b_ih, gate by gate.
                 product:     function of h, W_hh h + b_hh [B, G*H].
                 states:      [B, H] each, h first; before the step, and in the result after it.
                 parameters:  [H] each, the weights that every unit has of its own.
                 gates:       [B, H] each, what `gate_names` names.
    gates:       G, how often H the rows of W_hh are.
    states:      number of states.
    gate_names:  what users call the gate activations.
    parameters:  number of weights of a unit's own.
    named:       what users call the states; empty for h, c, state2 and so on.
    normalised:  whether the step takes means over all units of a head: its parameters end with the number of heads.
    """

    step: Step
    gates: int
    states: int
    gate_names: tuple[str, ...]
    parameters: int = 0
    named: tuple[str, ...] = ()
    normalised: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.named or tuple(STATE_NAMES[k] if k < len(STATE_NAMES) else f"state{k}" for k in range(self.states))

    def __call__(
        self, x: Tensor, product: Product, states: States, parameters: States = (), heads: int = 1
    ) -> tuple[States, States]:
        return self.step(x, product, states, (*parameters, heads) if self.normalised else parameters)  # type: ignore[arg-type]


def rnn(act: Activation, x: Tensor, product: Product, states: States, parameters: States) -> tuple[States, States]:
    """h = act(x + W h), torch.nn.RNN."""
    h = act(x + product(states[0]))
    return (h,), (h,)


def gru(
    act: Activation, rec: Activation, x: Tensor, product: Product, states: States, parameters: States
) -> tuple[States, States]:
    """n = act(x_n + r * (W_n h)), h = (1 - z) * n + z * h, torch.nn.GRU."""
    x_r, x_z, x_n = x.chunk(3, -1)
    a_r, a_z, a_n = product(states[0]).chunk(3, -1)
    r, z = rec(x_r + a_r), rec(x_z + a_z)
    n = act(x_n + r * a_n)
    return ((1 - z) * n + z * states[0],), (r, z, n)


def gru_reset_before(
    act: Activation, rec: Activation, x: Tensor, product: Product, states: States, parameters: States
) -> tuple[States, States]:
    """n = act(x_n + W_n (r * h)), h = (1 - z) * n + z * h: Cho et al. 2014, arXiv:1406.1078."""
    (h,) = states
    x_r, x_z, x_n = x.chunk(3, -1)
    a_r, a_z, _ = product(h).chunk(3, -1)
    r, z = rec(x_r + a_r), rec(x_z + a_z)
    n = act(x_n + product(r * h).chunk(3, -1)[2])
    return ((1 - z) * n + z * h,), (r, z, n)


def lstm(
    act: Activation, rec: Activation, x: Tensor, product: Product, states: States, parameters: States
) -> tuple[States, States]:
    """c = f * c + i * g, h = o * act(c), torch.nn.LSTM."""
    h, c = states
    i, f, g, o = (x + product(h)).chunk(4, -1)
    i, f, g, o = rec(i), rec(f), act(g), rec(o)
    c = f * c + i * g
    return (o * act(c), c), (i, f, g, o)


def lstm_peephole(
    act: Activation, rec: Activation, x: Tensor, product: Product, states: States, parameters: States
) -> tuple[States, States]:
    """As `lstm`, but i and f see p * c of before the step, o sees p * c of after it: Gers et al. 2002."""
    h, c = states
    p_i, p_f, p_o = parameters
    i, f, g, o = (x + product(h)).chunk(4, -1)
    i, f, g = rec(i + p_i * c), rec(f + p_f * c), act(g)
    c = f * c + i * g
    o = rec(o + p_o * c)
    return (o * act(c), c), (i, f, g, o)


def slstm(x: Tensor, product: Product, states: States, parameters: States) -> tuple[States, States]:
    """c = f * c + i * z, n = f * n + i, h = o * c / n with i = exp(i_) and f = sigmoid(f_), c and n divided by exp(m):
    Beck et al. 2024, arXiv:2405.04517, equations 8 to 17, as in its authors' code (`kernels/cell_math.py`).

    No gradient flows through m: c / n does not depend on it.
    """
    h, c, n, m = states
    i_, f_, z, o = (x + product(h)).chunk(4, -1)
    log_f = F.logsigmoid(f_) + m.detach()
    scale = torch.where(n == 0, i_, torch.maximum(i_, log_f)).detach()
    i, f, z, o = torch.exp(i_ - scale), torch.exp((log_f - scale).clamp(max=10)), torch.tanh(z), torch.sigmoid(o)
    c, n = f * c + i * z, f * n + i
    # The scale, in autograd's graph as every state is, with gradients of zero.
    m = torch.where(torch.ones_like(scale, dtype=torch.bool), scale, i_ + m)
    return (o * (c / n), c, n, m), (i, f, z, o)


def _normalised(gates: Tensor, heads: int, count: int = 1) -> Tensor:
    """[B, count * H] with mean 0 and variance 1 in each row, over all gates of each head."""
    by_heads = gates.unflatten(-1, (count, heads, -1)).transpose(-3, -2)
    return F.layer_norm(by_heads, by_heads.shape[-2:]).transpose(-3, -2).flatten(-3)


def lstm_layer_norm(
    act: Activation, rec: Activation, x: Tensor, product: Product, states: States, parameters: Any
) -> tuple[States, States]:
    """An LSTM of LN(x) + LN(W h) + b, each over all gates, and h = o * act(LN(c)): Ba et al. 2016, arXiv:1607.06450,
    equations 20 to 22. c itself is carried on, as there; PyTorch's benchmarks/fastrnns carries LN(c)."""
    h, c = states
    *rows, of_c, bias_of_c, heads = parameters
    of_x, of_h, bias = (torch.cat(rows[first : first + 4]) for first in (0, 4, 8))
    gates = _normalised(x, heads, 4) * of_x + _normalised(product(h), heads, 4) * of_h + bias
    i, f, g, o = gates.chunk(4, -1)
    i, f, g, o = rec(i), rec(f), act(g), rec(o)
    c = f * c + i * g
    return (o * act(_normalised(c, heads) * of_c + bias_of_c), c), (i, f, g, o)


def gru_layer_norm(
    act: Activation, rec: Activation, x: Tensor, product: Product, states: States, parameters: Any
) -> tuple[States, States]:
    """A GRU of LN(x) + b and LN(W h), each over all gates; the reset gate scales the normalised sum: Ba et al. 2016,
    equations 23 to 25."""
    *rows, bias_of_h, heads = parameters
    of_x, of_h, bias = (torch.cat(rows[first : first + 3]) for first in (0, 3, 6))
    x_r, x_z, x_n = (_normalised(x, heads, 3) * of_x + bias).chunk(3, -1)
    a_r, a_z, a_n = (_normalised(product(states[0]), heads, 3) * of_h).chunk(3, -1)
    r, z = rec(x_r + a_r), rec(x_z + a_z)
    n = act(x_n + r * (a_n + bias_of_h))
    return ((1 - z) * n + z * states[0],), (r, z, n)


def gru_reset_before_layer_norm(
    act: Activation, rec: Activation, x: Tensor, product: Product, states: States, parameters: Any
) -> tuple[States, States]:
    """As `gru_layer_norm`, but n sees LN(W_n (r * h)), a mean of its own."""
    (h,) = states
    *rows, bias_of_h, heads = parameters
    of_x, of_h, bias = (torch.cat(rows[first : first + 3]) for first in (0, 3, 6))
    x_r, x_z, x_n = (_normalised(x, heads, 3) * of_x + bias).chunk(3, -1)
    outer = _normalised(product(h)[..., : 2 * h.shape[-1]], heads, 2) * of_h[: 2 * h.shape[-1]]
    r, z = (rec(x + a) for x, a in zip((x_r, x_z), outer.chunk(2, -1), strict=True))
    inner = _normalised(product(r * h)[..., 2 * h.shape[-1] :], heads) * of_h[2 * h.shape[-1] :]
    n = act(x_n + inner + bias_of_h)
    return ((1 - z) * n + z * h,), (r, z, n)


REFERENCES: dict[str, Reference] = {
    "rnn_tanh": Reference(partial(rnn, torch.tanh), 1, 1, ("n",)),
    "rnn_relu": Reference(partial(rnn, torch.relu), 1, 1, ("n",)),
    "slstm": Reference(slstm, 4, 4, ("i", "f", "z", "o"), named=("h", "c", "n", "m")),
}
"""References by name; `holdfast.define_cell` adds to it."""

FAMILIES: dict[str, Callable[[Activation, Activation], Reference]] = {
    "gru": lambda act, rec: Reference(partial(gru, act, rec), 3, 1, ("r", "z", "n")),
    "gru_reset_before": lambda act, rec: Reference(partial(gru_reset_before, act, rec), 3, 1, ("r", "z", "n")),
    "lstm": lambda act, rec: Reference(partial(lstm, act, rec), 4, 2, ("i", "f", "g", "o")),
    "lstm_peephole": lambda act, rec: Reference(partial(lstm_peephole, act, rec), 4, 2, ("i", "f", "g", "o"), 3),
    "gru_layer_norm": lambda act, rec: Reference(
        partial(gru_layer_norm, act, rec), 3, 1, ("r", "z", "n"), 10, normalised=True
    ),
    "gru_reset_before_layer_norm": lambda act, rec: Reference(
        partial(gru_reset_before_layer_norm, act, rec), 3, 1, ("r", "z", "n"), 10, normalised=True
    ),
    "lstm_layer_norm": lambda act, rec: Reference(
        partial(lstm_layer_norm, act, rec), 4, 2, ("i", "f", "g", "o"), 14, normalised=True
    ),
}
"""Cells whose activations may be chosen."""


def reference_of(name: str) -> Reference:
    """The equations of a cell.

    Raises ValueError where no cell has this name.
    """
    if name in CATALOGUE and name not in REFERENCES:
        import_module(f"...catalogue.{name}", __name__)
    if name in REFERENCES:
        return REFERENCES[name]
    family, _, chosen = name.partition("(")
    names = chosen.removesuffix(")").split(",") if chosen else ["tanh", "sigmoid"]
    if family not in FAMILIES or len(names) != 2:
        known = ", ".join(map(repr, (*REFERENCES, *FAMILIES)))
        raise ValueError(
            f"cell should be one of {known}, these also as 'lstm(relu,hard_sigmoid)', got {name!r}; "
            f"the catalogue has {', '.join(CATALOGUE)}, and holdfast.define_cell adds others"
        )
    return FAMILIES[family](find_activation(names[0]), find_activation(names[1], "recurrent_activation"))


def name_of(family: str, activation: str, recurrent_activation: str) -> str:
    """The name of a cell of `FAMILIES` with these activations."""
    if activation == "tanh" and recurrent_activation == "sigmoid":
        return family
    return f"{family}({activation},{recurrent_activation})"
