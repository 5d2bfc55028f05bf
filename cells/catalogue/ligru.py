"""Light GRU: a GRU without reset gate, whose candidate is a ReLU.

    z = sigmoid(W_z x + U_z h),  n = relu(W_n x + U_n h)
    h' = z * h + (1 - z) * n

Ravanelli, Brakel, Omologo and Bengio 2018, "Light gated recurrent units for speech recognition", arXiv:1803.10225.
They normalise W_z x and W_n x over the batch, which bounds the ReLU: that is the caller's, on what goes in.
Gates in the order (z, n).
"""

import torch
import triton

from ...kernels.activations import gradient, relu, sigmoid
from .page import define


@triton.jit
def gates_of(x, a, state, p):
    return sigmoid(x[0] + a[0]), relu(x[1] + a[1])


@triton.jit
def update(v, state, p):
    return (v[1] + v[0] * (state[0] - v[1]),)


@triton.jit
def gradients(d, v, before, after, p):
    z, n = v
    da = (d[0] * (before[0] - n) * z * (1.0 - z), gradient(d[0] * (1.0 - z), n, "relu"))
    return da, da, (d[0] * z,), ()


def reference(x, product, states, parameters):
    z, n = (x + product(states[0])).chunk(2, -1)
    z, n = torch.sigmoid(z), torch.relu(n)
    return (n + z * (states[0] - n),), (z, n)


define(globals(), gates=2, states=1, gate_names=("z", "n"))
