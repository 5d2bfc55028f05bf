"""The math of each cell, on tiles that are already loaded: three small functions per cell.

    gates(x, a, state, p) -> v          the gate values, from the input's and the state's preactivations
    update(v, state, p) -> state        the new state
    gradients(d, v, before, after, p) -> dx, da, d, dp
                                        the step backwards

x:       tuple of G gate tiles, W_ih x_t + b_ih.
a:       tuple of G gate tiles, W_hh h_{t-1} + b_hh. Apart from x because torch's GRU scales only a's share
         of the candidate by the reset gate.
v:       tuple of tiles that `update` and `gradients` need; what a training run saves or recomputes.
state:   tuple of state tiles, h first; before and after a step.
p:       tuple of columns [units, 1], the cell's own numbers per unit; empty for most.
d:       tuple of gradients of the loss, one per state: in, of the state after the step; out, of the state
         before it, without the part of h that went through W_hh (the time loop adds W_hh^T da).
dx, da:  tuples of G tiles, gradients of x and a.
dp:      tuple of tiles, gradients of p row by row; the time loop sums them.

All tiles are float32 [units, batch]. Gate order and formulas are torch's (documentation of torch.nn.RNN,
GRU and LSTM). A cell whose spec names activations gets both names behind these arguments.

A cell with two products in a step multiplies W_hh with h and then with a tile of its own making, for its
last gates (`CellSpec.outer_gates` counts the first ones). It has three more functions:

    inner(x, a, state, p) -> q          the other tile, once a's outer gates are there
    outer_gradients(d, v, before, after, p) -> da
                                        gradients of the inner gates; q's gradient is W_hh^T of them
    gradients(d, dq, v, before, after, p) -> dx, da, d, dp
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate, gradient, log1p, sigmoid, tanh


@triton.jit
def rnn_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """h before its nonlinearity."""
    return (x[0] + a[0],)


@triton.jit
def rnn_update(v, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """h = tanh(v) or relu(v)"""
    return (activate(v[0], ACTIVATION),)


@triton.jit
def rnn_gradients(d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    dv = (gradient(d[0], after[0], ACTIVATION),)
    return dv, dv, (tl.zeros_like(d[0]),), ()


@triton.jit
def gru_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """r = sigmoid(x_r + a_r), z = sigmoid(x_z + a_z), n = tanh(x_n + r * a_n), and a_n itself"""
    r = activate(x[0] + a[0], RECURRENT)
    z = activate(x[1] + a[1], RECURRENT)
    n = activate(x[2] + r * a[2], ACTIVATION)
    return r, z, n, a[2]


@triton.jit
def gru_update(v, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """h = n + z * (h - n)"""
    return (v[2] + v[1] * (state[0] - v[2]),)


@triton.jit
def gru_gradients(d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    r, z, n, a_n = v
    dz = gradient(d[0] * (before[0] - n), z, RECURRENT)
    dn = gradient(d[0] * (1.0 - z), n, ACTIVATION)
    dr = gradient(dn * a_n, r, RECURRENT)
    return (dr, dz, dn), (dr, dz, dn * r), (d[0] * z,), ()


@triton.jit
def gru_reset_before_inner(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """r * h: the formula of 2014 (Cho et al.) resets the state before its product with W_hn."""
    return activate(x[0] + a[0], RECURRENT) * state[0]


@triton.jit
def gru_reset_before_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """r = sigmoid(x_r + a_r), z = sigmoid(x_z + a_z), n = tanh(x_n + a_n) with a_n = W_hn (r * h) + b_hn"""
    return (
        activate(x[0] + a[0], RECURRENT),
        activate(x[1] + a[1], RECURRENT),
        activate(x[2] + a[2], ACTIVATION),
    )


@triton.jit
def gru_reset_before_outer_gradients(d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    return (gradient(d[0] * (1.0 - v[1]), v[2], ACTIVATION),)


@triton.jit
def gru_reset_before_gradients(d, dq, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    r, z, n = v
    dz = gradient(d[0] * (before[0] - n), z, RECURRENT)
    dn = gradient(d[0] * (1.0 - z), n, ACTIVATION)
    dr = gradient(dq * before[0], r, RECURRENT)
    da = (dr, dz, dn)
    return da, da, (d[0] * z + dq * r,), ()


@triton.jit
def lstm_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """i, f, o = sigmoid(.), g = tanh(.)"""
    return (
        activate(x[0] + a[0], RECURRENT),
        activate(x[1] + a[1], RECURRENT),
        activate(x[2] + a[2], ACTIVATION),
        activate(x[3] + a[3], RECURRENT),
    )


@triton.jit
def lstm_update(v, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """c = f * c + i * g, h = o * tanh(c)"""
    c = v[1] * state[1] + v[0] * v[2]
    return v[3] * activate(c, ACTIVATION), c


@triton.jit
def lstm_gradients(d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    i, f, g, o = v
    s = activate(after[1], ACTIVATION)
    do = gradient(d[0] * s, o, RECURRENT)
    dc = d[1] + gradient(d[0] * o, s, ACTIVATION)
    dv = (
        gradient(dc * g, i, RECURRENT),
        gradient(dc * before[1], f, RECURRENT),
        gradient(dc * i, g, ACTIVATION),
        do,
    )
    return dv, dv, (tl.zeros_like(dc), dc * f), ()


@triton.jit
def lstm_peephole_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """i and f also see p_i * c_{t-1} and p_f * c_{t-1}, o sees p_o * c_t (Gers et al. 2002)."""
    i = activate(x[0] + a[0] + p[0] * state[1], RECURRENT)
    f = activate(x[1] + a[1] + p[1] * state[1], RECURRENT)
    g = activate(x[2] + a[2], ACTIVATION)
    o = activate(x[3] + a[3] + p[2] * (f * state[1] + i * g), RECURRENT)
    return i, f, g, o


@triton.jit
def lstm_peephole_gradients(d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    i, f, g, o = v
    s = activate(after[1], ACTIVATION)
    do = gradient(d[0] * s, o, RECURRENT)
    dc = d[1] + gradient(d[0] * o, s, ACTIVATION) + do * p[2]
    di = gradient(dc * g, i, RECURRENT)
    df = gradient(dc * before[1], f, RECURRENT)
    dv = (di, df, gradient(dc * i, g, ACTIVATION), do)
    return dv, dv, (tl.zeros_like(dc), dc * f + di * p[0] + df * p[1]), (di * before[1], df * before[1], do * after[1])


@triton.jit
def slstm_gates(x, a, state, p):
    """i, f, z, o as they multiply, what of f's gradient f_ does not get, and m, the scale that c and n are now in.

    i = exp(i_ - m), f = exp(log sigmoid(f_) + m_{t-1} - m), z = tanh(z_), o = sigmoid(o_), with m the larger exponent:
    xLSTM (Beck et al. 2024, arXiv:2405.04517), equations 8 to 17, as in its code: the forget gate is a sigmoid, and
    where nothing has been summed yet (n = 0) m is i_, row by row and unit by unit.
    """
    f_ = x[1] + a[1]
    i_ = x[0] + a[0]
    log_f = tl.minimum(f_, 0.0) - log1p(tl.exp(-tl.abs(f_))) + state[3]
    m = tl.where(state[2] == 0.0, i_, tl.maximum(i_, log_f, propagate_nan=tl.PropagateNan.ALL))
    # Above 1 only in a first step, and there of no meaning but to the gradients of c and n: bounded, so that what
    # float16 saves of it is no infinity.
    f = tl.exp(tl.minimum(log_f - m, 10.0, propagate_nan=tl.PropagateNan.ALL))
    s = tl.where(log_f - m > 10.0, 1.0, sigmoid(f_))
    return tl.exp(i_ - m), f, tanh(x[2] + a[2]), sigmoid(x[3] + a[3]), s, m


@triton.jit
def slstm_update(v, state, p):
    """c = f * c + i * z, n = f * n + i, h = o * c / n"""
    c = v[1] * state[1] + v[0] * v[2]
    n = v[1] * state[2] + v[0]
    return v[3] * (c / n), c, n, v[5]


@triton.jit
def slstm_gradients(d, v, before, after, p):
    """m is a scale of c and n, which c / n does not depend on: no gradient flows through it."""
    i, f, z, o = v[0], v[1], v[2], v[3]
    s = after[1] / after[2]
    dc = d[1] + d[0] * o / after[2]
    dn = d[2] - d[0] * o * s / after[2]
    dv = (
        (dc * z + dn) * i,
        (dc * before[1] + dn * before[2]) * f * (1.0 - v[4]),
        dc * i * (1.0 - z * z),
        d[0] * s * o * (1.0 - o),
    )
    return dv, dv, (tl.zeros_like(dc), dc * f, dn * f, tl.zeros_like(dc)), ()
