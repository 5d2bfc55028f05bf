"""The recurrence step by step in plain torch ops, for what torch's fused ops cannot do.

With it vmap, per-sample gradients, ensembles over stacked weights, jvp and compiled training of an LSTM on a CPU
work on holdfast's modules where torch.nn raises. The equations are those of the torch.nn documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from .backend import constant_when_traced
from .call import Call
from .eligibility import forward_ad_dual, needs_grad

if TYPE_CHECKING:
    from .base import RecurrentBase

# (preactivation of x, preactivation of h, states) -> new states
Step = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def needs_unfused(module: RecurrentBase, call: Call) -> bool:
    """Whether torch's fused op would refuse what it accepts in plain eager mode."""
    if torch.compiler.is_compiling():
        return call.batch_sizes is None and (under_vmap_or_jvp() or compiled_cpu_lstm_training(module, call))
    if get_interpreter_stack() is None and forward_ad._current_level < 0:
        return False
    return call.batch_sizes is None and (
        under_vmap_or_jvp() or (call.x.is_cuda and under_nested_grad()) or forward_ad_dual(module, call) is not None
    )


def compiled_cpu_lstm_training(module: RecurrentBase, call: Call) -> bool:
    """AOTAutograd asserts on the None that oneDNN's LSTM saves for its backward ("tensors_saved_with_vc_check")."""
    return module.mode == "LSTM" and call.x.device.type == "cpu" and needs_grad(module, call)


@constant_when_traced
def under_vmap_or_jvp() -> bool:
    """The fused ops have no batching rule, and some no forward derivative. torch.func.grad alone suits them."""
    levels = get_interpreter_stack() or ()
    return any(level.key() in (TransformType.Vmap, TransformType.Jvp) for level in levels)


def under_nested_grad() -> bool:
    """torch.func.grad of torch.func.grad, which cuDNN refuses: it has no second derivatives."""
    return sum(level.key() == TransformType.Grad for level in get_interpreter_stack() or ()) > 1


def rnn_tanh_step(x: Tensor, a: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.tanh(x + a),)


def rnn_relu_step(x: Tensor, a: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.relu(x + a),)


def gru_step(x: Tensor, a: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x_r, x_z, x_n = x.chunk(3, -1)
    a_r, a_z, a_n = a.chunk(3, -1)
    z = torch.sigmoid(x_z + a_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + a_r) * a_n)
    return ((1 - z) * n + z * states[0],)


def lstm_step(x: Tensor, a: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (x + a).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS: dict[str, Step] = {
    "RNN_TANH": rnn_tanh_step,
    "RNN_RELU": rnn_relu_step,
    "GRU": gru_step,
    "LSTM": lstm_step,
}


def run_unfused(module: RecurrentBase, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call that is not packed: (output, final states), batch_first as the module says."""
    hx = call.hx if call.hx is not None else module.zero_state(call.x, call.batch_size(module.batch_first))
    initial = call._replace(hx=hx).states
    directions = 2 if module.bidirectional else 1
    flat = module.flat_weights()
    each = len(flat) // (module.num_layers * directions)
    weights = iter([flat[start : start + each] for start in range(0, len(flat), each)])
    x = call.x.transpose(0, 1) if module.batch_first else call.x
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            own = next(weights)
            w_hr = own.pop() if module.proj_size > 0 else None
            states = tuple(state[layer * directions + direction] for state in initial)
            hs, states = unroll(module.mode, x, own, states, w_hr=w_hr, reverse=direction == 1)
            outputs.append(hs)
            finals.append(states)
        x = torch.cat(outputs, -1)
        if layer < module.num_layers - 1 and module.dropout > 0:
            x = F.dropout(x, module.dropout, module.training)
    output = x.transpose(0, 1) if module.batch_first else x
    return output, tuple(torch.stack(of_one_state) for of_one_state in zip(*finals, strict=True))


def unroll(
    mode: str,
    x: Tensor,
    weights: Sequence[Tensor],
    states: tuple[Tensor, ...],
    *,
    w_hr: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: h of every step [T, B, H], and the final states.

    mode:     key of `STEPS`.
    x:        [T, B, I].
    weights:  w_ih, w_hh and, or not, b_ih, b_hh.
    states:   [B, H] each, h first.
    w_hr:     an LSTM's projection of h, or None.
    """
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    steps = F.linear(x, w_ih, b_ih).unbind(0)
    hs = []
    for step in reversed(steps) if reverse else steps:
        states = STEPS[mode](step, F.linear(states[0], w_hh, b_hh), states)
        if w_hr is not None:
            states = (F.linear(states[0], w_hr), *states[1:])
        hs.append(states[0])
    return torch.stack(hs[::-1] if reverse else hs), states
