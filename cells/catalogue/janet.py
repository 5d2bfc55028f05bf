"""JANET: an LSTM that is left with its forget gate.

    s = W_s x + U_s h + b_s,  g = tanh(W_g x + U_g h + b_g)
    h' = sigmoid(s) * h + (1 - sigmoid(s - 1)) * g

van der Westhuizen and Lasenby 2018, "The unreasonable effectiveness of the forget gate", arXiv:1804.04849, with beta =
1. The chrono initialisation of b_s that they train it with is the caller's. Gates in the order (s, g).
"""

import torch
import triton

from ...kernels.activations import sigmoid, tanh
from .page import define


@triton.jit
def gates_of(x, a, state, p):  # 1 - sigmoid(s - 1) = sigmoid(1 - s)
    s = x[0] + a[0]
    return sigmoid(s), sigmoid(1.0 - s), tanh(x[1] + a[1])


@triton.jit
def update(v, state, p):
    return (v[0] * state[0] + v[1] * v[2],)


@triton.jit
def gradients(d, v, before, after, p):
    f, i, g = v
    da = (d[0] * (before[0] * f * (1.0 - f) - g * i * (1.0 - i)), d[0] * i * (1.0 - g * g))
    return da, da, (d[0] * f,), ()


def reference(x, product, states, parameters):
    s, g = (x + product(states[0])).chunk(2, -1)
    f, i, g = torch.sigmoid(s), torch.sigmoid(1 - s), torch.tanh(g)
    return (f * states[0] + i * g,), (f, i, g)


define(globals(), gates=2, states=1, gate_names=("f", "i", "g"))
