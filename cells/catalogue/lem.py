"""LEM, long expressive memory: two states on time scales of their own, from a system of differential equations.

    s = sigmoid(W_1 x + U_1 y + b_1),  r = sigmoid(W_2 x + U_2 y + b_2)
    z' = (1 - s) * z + s * tanh(W_z x + U_z y + b_z)
    y' = (1 - r) * y + r * tanh(W_y x + U_y z' + b_y)

Rusch, Mishra, Erichson and Mahoney 2022, "Long expressive memory for sequence modeling", arXiv:2110.04744, equation 3,
with a time step of 1. The product with z' is the second of a step. Gates in the order (s, r, u, v): u and v are the two
tanh. The states are y, which the module puts out as h, and z.
"""

import torch
import triton

from ...kernels.activations import sigmoid, tanh
from .page import define


@triton.jit
def inner(x, a, state, p):
    return state[1] + sigmoid(x[0] + a[0]) * (tanh(x[2] + a[2]) - state[1])


@triton.jit
def gates_of(x, a, state, p):
    return sigmoid(x[0] + a[0]), sigmoid(x[1] + a[1]), tanh(x[2] + a[2]), tanh(x[3] + a[3])


@triton.jit
def update(v, state, p):
    return state[0] + v[1] * (v[3] - state[0]), state[1] + v[0] * (v[2] - state[1])


@triton.jit
def outer_gradients(d, v, before, after, p):
    return (d[0] * v[1] * (1.0 - v[3] * v[3]),)


@triton.jit
def gradients(d, dq, v, before, after, p):
    s, r, u, w = v
    dz = d[1] + dq
    ds, dr = dz * (u - before[1]) * s * (1.0 - s), d[0] * (w - before[0]) * r * (1.0 - r)
    da = (ds, dr, dz * s * (1.0 - u * u), d[0] * r * (1.0 - w * w))
    return da, da, (d[0] * (1.0 - r), dz * (1.0 - s)), ()


def reference(x, product, states, parameters):
    (y, z), (s, r, u, _) = states, (x + product(states[0])).chunk(4, -1)
    s, r, u = torch.sigmoid(s), torch.sigmoid(r), torch.tanh(u)
    z = z + s * (u - z)
    v = torch.tanh((x + product(z)).chunk(4, -1)[3])
    return (y + r * (v - y), z), (s, r, u, v)


define(globals(), gates=4, states=2, outer_gates=3, gate_names=("s", "r", "u", "v"))
