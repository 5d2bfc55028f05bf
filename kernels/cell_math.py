"""The gate math of each cell, on tiles that are already loaded.

A step function takes
    x:     tuple of gate tiles, W_ih x_t + b_ih of each gate, float32 [units, batch]
    a:     tuple of gate tiles, W_hh h_{t-1} + b_hh of each gate, float32 [units, batch]
    state: tuple of state tiles, h_{t-1} first, float32 [units, batch]
and returns the new state tuple, h_t first. x and a stay apart because torch's GRU scales only
a's share of the candidate by the reset gate. Gate order and formulas are torch's
(torch.nn.RNN, GRU and LSTM, section "Inputs/Outputs" of their documentation).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # exp of a non-positive number never overflows, so there is no finite x (FlashRNN's form turns into
    # inf/inf below -44) that gives NaN; NaN and the infinities behave as torch's.
    e = tl.exp(-2.0 * tl.abs(x))
    r = (1.0 - e) / (1.0 + e)
    # 1 - e cancels where x is small: Cephes' tanhf polynomial there keeps the relative error near one ulp.
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    p = (p - 3.33332819422e-1) * z * x + x
    return tl.where(tl.abs(x) < 0.625, p, tl.where(x < 0, -r, r))


@triton.jit
def relu(x):
    # Not tl.maximum, which drops a NaN that torch.relu keeps.
    return tl.where(x < 0, 0.0, x)


@triton.jit
def rnn_tanh_step(x, a, state):
    """h = tanh(x + a)"""
    return (tanh(x[0] + a[0]),)


@triton.jit
def rnn_relu_step(x, a, state):
    """h = relu(x + a)"""
    return (relu(x[0] + a[0]),)


@triton.jit
def gru_step(x, a, state):
    """r = sigmoid(x_r + a_r), z = sigmoid(x_z + a_z), n = tanh(x_n + r * a_n), h = n + z * (h - n)"""
    r = sigmoid(x[0] + a[0])
    z = sigmoid(x[1] + a[1])
    n = tanh(x[2] + r * a[2])
    return (n + z * (state[0] - n),)


@triton.jit
def lstm_step(x, a, state):
    """i, f, o = sigmoid(.), g = tanh(.), c = f * c + i * g, h = o * tanh(c)"""
    i = sigmoid(x[0] + a[0])
    f = sigmoid(x[1] + a[1])
    g = tanh(x[2] + a[2])
    o = sigmoid(x[3] + a[3])
    c = f * state[1] + i * g
    return (o * tanh(c), c)
