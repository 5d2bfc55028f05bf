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
    """

    step: Step
    gates: int
    states: int
    gate_names: tuple[str, ...]
    parameters: int = 0
    named: tuple[str, ...] = ()

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.named or tuple(STATE_NAMES[k] if k < len(STATE_NAMES) else f"state{k}" for k in range(self.states))

    def __call__(self, x: Tensor, product: Product, states: States, parameters: States = ()) -> tuple[States, States]:
        return self.step(x, product, states, parameters)


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
