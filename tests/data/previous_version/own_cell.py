"""A minimal gated unit: the cell that `modules.pt` has a Recurrent of."""

import torch
import triton

import holdfast
from holdfast.kernels.activations import sigmoid, tanh


@triton.jit
def gates(x, a, state, p):  # x = W_ih x_t + b_ih and a = W_hh h + b_hh, gate by gate
    f = sigmoid(x[0] + a[0])
    return f, tanh(x[1] + f * a[1]), a[1]


@triton.jit
def update(v, state, p):  # h + f * (n - h)
    return (state[0] + v[0] * (v[1] - state[0]),)


@triton.jit
def gradients(d, v, before, after, p):  # d: of h after the step; returns those of x, a, h before it, p
    f, n, a_n = v
    dn = d[0] * f * (1.0 - n * n)
    df = (d[0] * (n - before[0]) + dn * a_n) * f * (1.0 - f)
    return (df, dn), (df, dn * f), (d[0] * (1.0 - f),), ()


def reference(x, product, states, parameters):
    (x_f, x_n), (a_f, a_n) = x.chunk(2, -1), product(states[0]).chunk(2, -1)
    f = torch.sigmoid(x_f + a_f)
    n = torch.tanh(x_n + f * a_n)
    return (states[0] + f * (n - states[0]),), (f, n)


counts = {"gates": 2, "states": 1, "values": 3, "split_gradient": True}  # a's gradient is not x's
functions = {"gates_of": gates, "update": update, "gradients": gradients, "reference": reference}
NAME = holdfast.define_cell("previous_mgu", **counts, **functions, gate_names=("f", "n"))
