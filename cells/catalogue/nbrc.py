"""nBRC, the recurrently neuromodulated bistable cell: a unit remembers in its own feedback a * h, which others set.

    a = 1 + tanh(W_a x + U_a h),  c = sigmoid(W_c x + U_c h)
    h' = c * h + (1 - c) * tanh(W_n x + a * h)

Vecoven, Ernst and Drion 2021, "A bio-inspired bistable recurrent cell allows for long-lasting memory",
doi:10.1371/journal.pone.0252676, with biases. Gates in the order (a, c, n). The candidate n sees no other unit's h: its
third of W_hh and of bias_hh is there, as in every cell, and takes no part.
"""

import torch
import triton
import triton.language as tl

from ...kernels.activations import sigmoid, tanh
from .page import define


@triton.jit
def gates_of(x, a, state, p):
    feedback = 1.0 + tanh(x[0] + a[0])
    return feedback, sigmoid(x[1] + a[1]), tanh(x[2] + feedback * state[0])


@triton.jit
def update(v, state, p):
    return (v[2] + v[1] * (state[0] - v[2]),)


@triton.jit
def gradients(d, v, before, after, p):
    a, c, n = v
    dn = d[0] * (1.0 - c) * (1.0 - n * n)
    da = dn * before[0] * a * (2.0 - a)  # 1 - tanh^2 = (1 - t)(1 + t), a = 1 + t
    dc = d[0] * (before[0] - n) * c * (1.0 - c)
    return (da, dc, dn), (da, dc, tl.zeros_like(dn)), (d[0] * c + dn * a,), ()


def reference(x, product, states, parameters):
    (h,), (x_a, x_c, x_n) = states, x.chunk(3, -1)
    a_a, a_c, _ = product(h).chunk(3, -1)
    a, c = 1 + torch.tanh(x_a + a_a), torch.sigmoid(x_c + a_c)
    n = torch.tanh(x_n + a * h)
    return (n + c * (h - n),), (a, c, n)


define(globals(), gates=3, states=1, split_gradient=True, gate_names=("a", "c", "n"))
