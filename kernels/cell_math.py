"""The math of each cell, on tiles that are already loaded: three small functions per cell.

    gates(x, a) -> v                    the gate values, from the input's and the state's preactivations
    update(v, state) -> state           the new state
    gradients(d, v, before, after) -> dx, da, d
                                        the step backwards

x:       tuple of G gate tiles, W_ih x_t + b_ih.
a:       tuple of G gate tiles, W_hh h_{t-1} + b_hh. Apart from x because torch's GRU scales only a's share
         of the candidate by the reset gate.
v:       tuple of tiles that `update` and `gradients` need; what a training run saves or recomputes.
state:   tuple of state tiles, h first; before and after a step.
d:       tuple of gradients of the loss, one per state: in, of the state after the step; out, of the state
         before it, without the part of h that went through W_hh (the time loop adds W_hh^T da).
dx, da:  tuples of G tiles, gradients of x and a.

All tiles are float32 [units, batch]. Gate order and formulas are torch's (documentation of torch.nn.RNN,
GRU and LSTM).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # An overflow of exp gives 1 - 2 / inf = 1: no finite x (FlashRNN's form turns into inf / inf below -44)
    # gives NaN; NaN and the infinities behave as torch's.
    r = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.abs(x)))
    # The difference cancels where x is small: Cephes' tanhf polynomial there keeps the relative error near one ulp.
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    p = (p - 3.33332819422e-1) * z * x + x
    return tl.where(tl.abs(x) < 0.625, p, tl.where(x < 0, -r, r))


@triton.jit
def relu(x):
    # Not tl.maximum, which drops a NaN that torch.relu keeps.
    return tl.where(x < 0, 0.0, x)


@triton.jit
def rnn_gates(x, a):
    """h before its nonlinearity."""
    return (x[0] + a[0],)


@triton.jit
def rnn_tanh_update(v, state):
    """h = tanh(v)"""
    return (tanh(v[0]),)


@triton.jit
def rnn_tanh_gradients(d, v, before, after):
    dv = (d[0] * (1.0 - after[0] * after[0]),)
    return dv, dv, (tl.zeros_like(d[0]),)


@triton.jit
def rnn_relu_update(v, state):
    """h = relu(v)"""
    return (relu(v[0]),)


@triton.jit
def rnn_relu_gradients(d, v, before, after):
    dv = (tl.where(after[0] > 0, d[0], 0.0),)
    return dv, dv, (tl.zeros_like(d[0]),)


@triton.jit
def gru_gates(x, a):
    """r = sigmoid(x_r + a_r), z = sigmoid(x_z + a_z), n = tanh(x_n + r * a_n), and a_n itself"""
    r = sigmoid(x[0] + a[0])
    z = sigmoid(x[1] + a[1])
    n = tanh(x[2] + r * a[2])
    return r, z, n, a[2]


@triton.jit
def gru_update(v, state):
    """h = n + z * (h - n)"""
    return (v[2] + v[1] * (state[0] - v[2]),)


@triton.jit
def gru_gradients(d, v, before, after):
    r, z, n, a_n = v
    dz = d[0] * (before[0] - n) * z * (1.0 - z)
    dn = d[0] * (1.0 - z) * (1.0 - n * n)
    dr = dn * a_n * r * (1.0 - r)
    return (dr, dz, dn), (dr, dz, dn * r), (d[0] * z,)


@triton.jit
def lstm_gates(x, a):
    """i, f, o = sigmoid(.), g = tanh(.)"""
    return sigmoid(x[0] + a[0]), sigmoid(x[1] + a[1]), tanh(x[2] + a[2]), sigmoid(x[3] + a[3])


@triton.jit
def lstm_update(v, state):
    """c = f * c + i * g, h = o * tanh(c)"""
    c = v[1] * state[1] + v[0] * v[2]
    return v[3] * tanh(c), c


@triton.jit
def lstm_gradients(d, v, before, after):
    i, f, g, o = v
    tanh_c = tanh(after[1])
    do = d[0] * tanh_c * o * (1.0 - o)
    dc = d[1] + d[0] * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * before[1] * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    dv = (di, df, dg, do)
    return dv, dv, (tl.zeros_like(dc), dc * f)
