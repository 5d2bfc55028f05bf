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
p:       tuple of columns [units, 1], the cell's own numbers per unit; empty for most. Of a cell that normalises (see
         `normalise`) that tuple and the units that it takes its means over.
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
from .normalise import normalised, through_normalised


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
    # c_t as an operation of its own: made one with that of the update, Triton 3.7.1 uses its layout before it is there
    # (float32, by dataflow, no initial state, gates kept: "operand #1 does not dominate this use").
    o = activate(x[3] + a[3] + p[2] * tl.fma(f, state[1], i * g), RECURRENT)
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


@triton.jit
def lstm_layer_norm_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """Those of an LSTM of LN(W_ih x) * w[0:4] + LN(W_hh h) * w[4:8] + w[8:12], each over all gates (Ba et al. 2016,
    equation 20); then both normalised, four tiles each, and their scales."""
    w = p[0]
    both, scales = normalised((x, a), p[1], 0)
    x, a = both
    return (
        activate(x[0] * w[0] + a[0] * w[4] + w[8], RECURRENT),
        activate(x[1] * w[1] + a[1] * w[5] + w[9], RECURRENT),
        activate(x[2] * w[2] + a[2] * w[6] + w[10], ACTIVATION),
        activate(x[3] * w[3] + a[3] * w[7] + w[11], RECURRENT),
        x[0],
        x[1],
        x[2],
        x[3],
        a[0],
        a[1],
        a[2],
        a[3],
        scales[0],
        scales[1],
    )


@triton.jit
def lstm_layer_norm_update(v, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """c = f * c + i * g, h = o * tanh(LN(c) * w[12] + w[13]) (equations 21 and 22): what is carried on is c itself."""
    w = p[0]
    c = v[1] * state[1] + v[0] * v[2]
    scaled, _ = normalised(((c,),), p[1], 1)
    return v[3] * activate(scaled[0][0] * w[12] + w[13], ACTIVATION), c


@triton.jit
def lstm_layer_norm_gradients(d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    w = p[0]
    i, f, g, o = v[0], v[1], v[2], v[3]
    scaled, scale = normalised(((after[1],),), p[1], 2)
    s = activate(scaled[0][0] * w[12] + w[13], ACTIVATION)
    ds = gradient(d[0] * o, s, ACTIVATION)
    of_c = through_normalised(((ds * w[12],),), scaled, scale, p[1], 3)
    dc = d[1] + of_c[0][0]
    di = gradient(dc * g, i, RECURRENT)
    df = gradient(dc * before[1], f, RECURRENT)
    dg = gradient(dc * i, g, ACTIVATION)
    do = gradient(d[0] * s, o, RECURRENT)
    x, a = (v[4], v[5], v[6], v[7]), (v[8], v[9], v[10], v[11])
    of_both = (di * w[0], df * w[1], dg * w[2], do * w[3]), (di * w[4], df * w[5], dg * w[6], do * w[7])
    dx, da = through_normalised(of_both, (x, a), (v[12], v[13]), p[1], 4)
    of_x = (di * x[0], df * x[1], dg * x[2], do * x[3])
    of_a = (di * a[0], df * a[1], dg * a[2], do * a[3])
    return dx, da, (tl.zeros_like(dc), dc * f), of_x + of_a + (di, df, dg, do, ds * scaled[0][0], ds)


@triton.jit
def gru_layer_norm_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """Those of a GRU with LN(W_ih x) * w[0:3] + w[6:9] for x and LN(W_hh h) * w[3:6], for n + w[9], for a, each over
    all gates (Ba et al. 2016, equations 23 to 25, the reset gate on the normalised sum, as there and in torch.nn.GRU);
    then both normalised, three tiles each, and their scales."""
    w = p[0]
    both, scales = normalised((x, a), p[1], 0)
    x, a = both
    r = activate(x[0] * w[0] + a[0] * w[3] + w[6], RECURRENT)
    z = activate(x[1] * w[1] + a[1] * w[4] + w[7], RECURRENT)
    n = activate(x[2] * w[2] + w[8] + r * (a[2] * w[5] + w[9]), ACTIVATION)
    return r, z, n, x[0], x[1], x[2], a[0], a[1], a[2], scales[0], scales[1]


@triton.jit
def gru_layer_norm_gradients(d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    w = p[0]
    r, z, n = v[0], v[1], v[2]
    x, a = (v[3], v[4], v[5]), (v[6], v[7], v[8])
    dz = gradient(d[0] * (before[0] - n), z, RECURRENT)
    dn = gradient(d[0] * (1.0 - z), n, ACTIVATION)
    dr = gradient(dn * (a[2] * w[5] + w[9]), r, RECURRENT)
    of_both = (dr * w[0], dz * w[1], dn * w[2]), (dr * w[3], dz * w[4], dn * r * w[5])
    dx, da = through_normalised(of_both, (x, a), (v[9], v[10]), p[1], 1)
    of_x = (dr * x[0], dz * x[1], dn * x[2])
    of_a = (dr * a[0], dz * a[1], dn * r * a[2])
    return dx, da, (d[0] * z,), of_x + of_a + (dr, dz, dn, dn * r)


@triton.jit
def gru_reset_before_layer_norm_inner(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """r * h, with r of the first product's gates normalised by themselves."""
    w = p[0]
    both, _ = normalised((x, (a[0], a[1])), p[1], 0)
    return activate(both[0][0] * w[0] + both[1][0] * w[3] + w[6], RECURRENT) * state[0]


@triton.jit
def gru_reset_before_layer_norm_gates(x, a, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """Those of `gru_layer_norm_gates`, but W_hh h is normalised over r and z and W_hn (r * h) by itself; then all
    normalised, and the three scales."""
    w = p[0]
    all_sums, scales = normalised((x, (a[0], a[1]), (a[2],)), p[1], 1)
    x, outer, inner = all_sums
    r = activate(x[0] * w[0] + outer[0] * w[3] + w[6], RECURRENT)
    z = activate(x[1] * w[1] + outer[1] * w[4] + w[7], RECURRENT)
    n = activate(x[2] * w[2] + w[8] + inner[0] * w[5] + w[9], ACTIVATION)
    return r, z, n, x[0], x[1], x[2], outer[0], outer[1], inner[0], scales[0], scales[1], scales[2]


@triton.jit
def gru_reset_before_layer_norm_outer_gradients(
    d, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr
):
    dn = gradient(d[0] * (1.0 - v[1]), v[2], ACTIVATION)
    da = through_normalised(((dn * p[0][5],),), ((v[8],),), (v[11],), p[1], 2)
    return da[0]


@triton.jit
def gru_reset_before_layer_norm_gradients(
    d, dq, v, before, after, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr
):
    w = p[0]
    r, z, n = v[0], v[1], v[2]
    x, outer = (v[3], v[4], v[5]), (v[6], v[7])
    dz = gradient(d[0] * (before[0] - n), z, RECURRENT)
    dn = gradient(d[0] * (1.0 - z), n, ACTIVATION)
    dr = gradient(dq * before[0], r, RECURRENT)
    of_both = (dr * w[0], dz * w[1], dn * w[2]), (dr * w[3], dz * w[4])
    dx, da = through_normalised(of_both, (x, outer), (v[9], v[10]), p[1], 3)
    of_x = (dr * x[0], dz * x[1], dn * x[2])
    of_a = (dr * outer[0], dz * outer[1], dn * v[8])
    return dx, da, (d[0] * z + dq * r,), of_x + of_a + (dr, dz, dn, dn)
