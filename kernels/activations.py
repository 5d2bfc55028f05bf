"""Activation functions by Keras' names, each with its gradient from what it returned.

The gradient needs no input, so a training run keeps one number a gate. Twins of `cells.eager.activations`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .compiled_for import compiled_for


@triton.jit
def _one_over_one_plus_exp2(x):
    """1 / (1 + 2^x), four instructions shorter than by tl.exp, which guards against denormal results that a sum with
    1 drops anyway. rsqrt squared in place of the division would save three more, and doubles the error in float32: of
    20 GRUs of three layers the worst ends at 1.03 times what torch's own error allows, not at 0.51."""
    y = 1.0 + tl.exp2(x)
    if compiled_for() == "cuda":
        # Within one ulp, where the division is within two. The division guards against y > 2^126, whose reciprocal
        # is denormal and here 0: four instructions, and ptxas chains all guards of a step through one predicate.
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, True, 1)
    else:
        return 1.0 / y


@triton.jit
def sigmoid(x):
    return _one_over_one_plus_exp2(-1.4426950408889634 * x)


@triton.jit
def tanh(x):
    # An overflow of exp gives 1 - 2 / inf = 1: no finite x (FlashRNN's form turns into inf / inf below -44)
    # gives NaN; NaN and the infinities behave as torch's.
    r = 1.0 - 2.0 * _one_over_one_plus_exp2(2.8853900817779268 * tl.abs(x))
    # The difference cancels where x is small: Cephes' tanhf polynomial there keeps the relative error near one ulp.
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    p = (p - 3.33332819422e-1) * z * x + x
    return tl.where(tl.abs(x) < 0.625, p, _with_sign_of(x, r))


@triton.jit
def _with_sign_of(x, r):
    """r, which has none, with the sign of x: one instruction on bits, no predicate."""
    sign = x.to(tl.int32, bitcast=True) & -0x80000000
    return (r.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def relu(x):
    # Not tl.maximum, which drops a NaN that torch.relu keeps.
    return tl.where(x < 0, 0.0, x)


@triton.jit
def expm1(x):
    """exp(x) - 1 without cancellation near 0: there the first terms of its series."""
    near = x * (1.0 + x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720))))))
    return tl.where(tl.abs(x) < 0.35, near, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1]. What rounding 1 + x loses is put back, as in Kahan's form."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def activate(x, NAME: tl.constexpr):
    """The activation of this name."""
    if NAME == "sigmoid":
        return sigmoid(x)
    elif NAME == "tanh":
        return tanh(x)
    elif NAME == "relu":
        return relu(x)
    elif NAME == "linear":
        return x
    elif NAME == "hard_sigmoid":
        y = x * (1.0 / 6) + 0.5
        return tl.where(y < 0, 0.0, tl.where(y > 1, 1.0, y))
    elif NAME == "softsign":
        return x / (1.0 + tl.abs(x))
    elif NAME == "elu":
        return tl.where(x > 0, x, expm1(tl.where(x > 0, 0.0, x)))
    elif NAME == "selu":
        return 1.0507009873554805 * tl.where(x > 0, x, 1.6732632423543772 * expm1(tl.where(x > 0, 0.0, x)))
    elif NAME == "softplus":
        return relu(x) + log1p(tl.exp(-tl.abs(x)))
    else:
        tl.static_assert(NAME == "exponential", "an activation that kernels/activations.py does not know")
        return tl.exp(x)


@triton.jit
def gradient(d, y, NAME: tl.constexpr):
    """The gradient of the activation's input, from that of its output and the output."""
    if NAME == "sigmoid":
        return d * (y * (1.0 - y))
    elif NAME == "tanh":
        return d * (1.0 - y * y)
    elif NAME == "relu":
        return tl.where(y > 0, d, 0.0)
    elif NAME == "linear":
        return d
    elif NAME == "hard_sigmoid":
        return tl.where((y > 0) & (y < 1), d * (1.0 / 6), 0.0)
    elif NAME == "softsign":
        rest = 1.0 - tl.abs(y)
        return d * (rest * rest)
    elif NAME == "elu":
        return d * tl.where(y > 0, 1.0, y + 1.0)
    elif NAME == "selu":
        return d * tl.where(y > 0, 1.0507009873554805, y + 1.7580993408473766)
    elif NAME == "softplus":
        return d * -expm1(-y)
    else:
        tl.static_assert(NAME == "exponential", "an activation that kernels/activations.py does not know")
        return d * y
