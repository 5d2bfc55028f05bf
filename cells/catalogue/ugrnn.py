"""UGRNN, the update gate RNN: a gate between keeping h and a vanilla RNN's step.

    c = tanh(W_c x + U_c h + b_c),  g = sigmoid(W_g x + U_g h + b_g)
    h' = g * h + (1 - g) * c

Collins, Sohl-Dickstein and Sussillo 2017, "Capacity and trainability in recurrent neural networks", arXiv:1611.09913.
Gates in the order (c, g).
"""

import torch
import triton

from ...kernels.activations import sigmoid, tanh
from .page import define


@triton.jit
def gates_of(x, a, state, p):
    return tanh(x[0] + a[0]), sigmoid(x[1] + a[1])


@triton.jit
def update(v, state, p):
    return (v[0] + v[1] * (state[0] - v[0]),)


@triton.jit
def gradients(d, v, before, after, p):
    c, g = v
    da = (d[0] * (1.0 - g) * (1.0 - c * c), d[0] * (before[0] - c) * g * (1.0 - g))
    return da, da, (d[0] * g,), ()


def reference(x, product, states, parameters):
    c, g = (x + product(states[0])).chunk(2, -1)
    c, g = torch.tanh(c), torch.sigmoid(g)
    return (c + g * (states[0] - c),), (c, g)


define(globals(), gates=2, states=1, gate_names=("c", "g"))
