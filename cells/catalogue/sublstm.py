"""subLSTM: an LSTM whose gates subtract, as inhibition does in the cortex.

    i, f, z, o = sigmoid(W x + U h + b)
    c' = f * c + z - i,  h' = sigmoid(c') - o

Costa, Assael, Shillingford, de Freitas and Vogels 2017, "Cortical microcircuits as gated-recurrent neural networks",
arXiv:1711.02448. Gates in the order (i, f, z, o).
"""

import torch
import triton
import triton.language as tl

from ...kernels.activations import sigmoid
from .page import define


@triton.jit
def gates_of(x, a, state, p):
    return sigmoid(x[0] + a[0]), sigmoid(x[1] + a[1]), sigmoid(x[2] + a[2]), sigmoid(x[3] + a[3])


@triton.jit
def update(v, state, p):
    c = v[1] * state[1] + v[2] - v[0]
    return sigmoid(c) - v[3], c


@triton.jit
def gradients(d, v, before, after, p):
    i, f, z, o = v
    s = sigmoid(after[1])
    dc = d[1] + d[0] * s * (1.0 - s)
    da = (-dc * i * (1.0 - i), dc * before[1] * f * (1.0 - f), dc * z * (1.0 - z), -d[0] * o * (1.0 - o))
    return da, da, (tl.zeros_like(dc), dc * f), ()


def reference(x, product, states, parameters):
    i, f, z, o = torch.sigmoid(x + product(states[0])).chunk(4, -1)
    c = f * states[1] + z - i
    return (torch.sigmoid(c) - o, c), (i, f, z, o)


define(globals(), gates=4, states=2, gate_names=("i", "f", "z", "o"))
