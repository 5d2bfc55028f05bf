"""MGU, the minimal gated unit: one gate that resets h on its way into the candidate and then mixes the two.

    f = sigmoid(W_f x + U_f h + b_f),  n = tanh(W_n x + U_n (f * h) + b_n)
    h' = (1 - f) * h + f * n

Zhou, Wu, Zhang and Zhou 2016, "Minimal gated unit for recurrent neural networks", arXiv:1603.09420. The product with
f * h is the second of a step. Gates in the order (f, n).
"""

import torch
import triton

from ...kernels.activations import sigmoid, tanh
from .page import define


@triton.jit
def inner(x, a, state, p):
    return sigmoid(x[0] + a[0]) * state[0]


@triton.jit
def gates_of(x, a, state, p):
    return sigmoid(x[0] + a[0]), tanh(x[1] + a[1])


@triton.jit
def update(v, state, p):
    return (state[0] + v[0] * (v[1] - state[0]),)


@triton.jit
def outer_gradients(d, v, before, after, p):
    return (d[0] * v[0] * (1.0 - v[1] * v[1]),)


@triton.jit
def gradients(d, dq, v, before, after, p):
    f, n = v
    df = (d[0] * (n - before[0]) + dq * before[0]) * f * (1.0 - f)
    da = (df, d[0] * f * (1.0 - n * n))
    return da, da, (d[0] * (1.0 - f) + dq * f,), ()


def reference(x, product, states, parameters):
    (h,) = states
    f = torch.sigmoid((x + product(h)).chunk(2, -1)[0])
    n = torch.tanh((x + product(f * h)).chunk(2, -1)[1])
    return (h + f * (n - h),), (f, n)


define(globals(), gates=2, states=1, outer_gates=1, gate_names=("f", "n"))
