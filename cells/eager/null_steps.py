"""Resets and lengths on one dense call of torch's fused op for each layer and direction: steps that bring the state to
zero.

A *null* step stands before every reset and, where no cell state has to be carried on, after a row's end. Its input
closes the gates, so that the state after it is exactly zero and no gradient comes back through it. A *hold* step stands
after the end of a row of an LSTM: it closes all gates but f, so that c stays, and the call's last c is that of the row.

          step before a reset    past the end
    LSTM  i, f, o -> 0           f -> 1, i, o -> 0
    GRU   r, z -> 0, n = tanh(0) the same
    RNN   relu(-LARGE)           the same; tanh has no gate, so nothing can be reset, and a row's end is left to itself

The closing numbers are further input columns: x is zero in such a step and the columns are zero in every other. They
are a quarter of the largest number of the dtype, so a state has to overflow before it shows. Where it did (a NaN, an
infinity), a step that should have left zero did not: that is looked at, and segments take the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call.records import Call, Decision, Layers, as_hx
from .fused import FUSED_OPS, cudnn_backward_wants_training_mode

DRIVES: dict[str, tuple[tuple[int, ...], ...]] = {
    "lstm": ((-1, -1), (-1, 1), (0, 0), (-1, -1)),
    "gru": ((-1,), (-1,), (0,)),
    "rnn_relu": ((-1,),),
}
"""Of each gate the sign of what a null and, for an LSTM, a hold step adds to its preactivation."""

MOST_BYTES = 32 * 2**20
"""What glibc's malloc may keep from call to call."""


class Walk(NamedTuple):
    """The steps of one direction of a walk over [T, B] rows, with the null and hold steps among them.

    steps:    how many there are, S.
    counted:  how many of all rows are steps of the call, and neither null nor hold.
    source:   [S*B], what every step is: the index into T*B, T*B of a null and T*B + 1 of a hold step.
    back:     [T*B], the index into S*B that every step's output is read from; any index past a row's end.
    last:     [B], the index into S*B of a row's last step; any index in a row without steps.
    idle:     [M], the indices into S*B of all null and hold steps.
    """

    steps: int
    counted: int
    source: Tensor
    back: Tensor
    last: Tensor
    idle: Tensor


def can_close(call: Call) -> bool:
    """Whether steps of this cell can be null: a tanh RNN has no gate, and a reset leads to zeros alone."""
    return call.resets is None or (call.layers.cell in DRIVES and call.reset_hx is None)


def run_null_steps(call: Call, decision: Decision, walks: list[Walk]) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Run a call that `can_close`: (output, final states), or None where a state has overflowed.

    Resets before the first step are in hx already.
    """
    layers, x = call.layers, call.x
    x = x.transpose(0, 1) if layers.batch_first else x
    ended = _ended(call)
    each = layers.weights_each
    finals: list[tuple[Tensor, ...]] = []
    initial = call.starting_states()
    for layer in range(layers.num_layers):
        if layer > 0 and layers.drops:
            x = F.dropout(x, layers.dropout)
        outputs = []
        for direction, walk in enumerate(walks):
            row = layer * layers.directions + direction
            own = layers.weights[row * each : (row + 1) * each]
            found = _one_layer(call, decision, x, walk, tuple(state[row : row + 1] for state in initial), own)
            if found is None:
                return None
            y, states = found
            outputs.append(y if ended is None else y.masked_fill(ended.unsqueeze(-1), 0))
            finals.append(states)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    y = x.transpose(0, 1) if layers.batch_first else x
    if len(finals) == 1:
        return y, finals[0]
    return y, tuple(torch.cat(of_one_state) for of_one_state in zip(*finals, strict=True))


def walks_of(call: Call) -> list[Walk]:
    """The walk of each direction. Backwards every row starts at its own end, with hx, so no step stands before it."""
    # Indices are into S*B or T*B throughout, and few operations are asked for them: of 1.3 ms that an LSTM takes for
    # T=128 B=8 H=128 on a CPU these are 0.12, each about 5 us. In NumPy they were 0.13.
    device, T, B = call.x.device, call.x.shape[1], call.x.shape[0]
    if not call.layers.batch_first:
        T, B = B, T
    ended = _ended(call)
    counting = _numbers(T * B, device)
    at = counting.view(T, B)
    if call.resets is not None:
        nulls = (call.resets if ended is None else call.resets & ~ended).cumsum(0)
        at = at.add(nulls - nulls[:1], alpha=B)  # none before the first step: that reset is in hx
    last = at[-1]
    if call.lengths is not None and ended is not None:
        counting = (~ended).flatten().nonzero().squeeze(1)
        last = at.gather(0, (call.lengths - 1).clamp(min=0)[None])[0]
        last = last.masked_fill(call.lengths == 0, -1)
    steps = int(last.max()) // B + 1
    if steps > T:  # in few sizes: oneDNN takes 0.5 to 1.5 ms to prepare for each new one
        grain = max(1, T // 64)
        steps += -(steps - T) % grain
    if call.layers.n_states == 2:
        idle_step = (_numbers(steps * B, device).view(steps, B) > last).flatten() + T * B
    else:
        idle_step = counting.new_full((steps * B,), T * B)
    walks = []
    for direction in range(call.layers.directions):
        back = (at if direction == 0 else last - at + at[0]).flatten()
        place = back
        if call.lengths is not None:
            back = back.clamp(0, steps * B - 1)
            place = back.index_select(0, counting)
        source = idle_step.index_copy(0, place, counting)
        idle = (source >= T * B).nonzero().squeeze(1)
        ends = last if call.lengths is None else last.clamp(min=0)
        walks.append(Walk(steps, len(counting), source, back, ends, idle))
    return walks


def _ended(call: Call) -> Tensor | None:
    """[T, B] bool: the steps past a row's end."""
    if call.lengths is None:
        return None
    T = call.x.shape[1 if call.layers.batch_first else 0]
    return torch.arange(T, device=call.x.device)[:, None] >= call.lengths


def _one_layer(
    call: Call, decision: Decision, x: Tensor, walk: Walk, states: tuple[Tensor, ...], weights: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """One layer in one direction: y [T, B, H], any numbers past a row's end, and the final states [1, B, H]."""
    layers, (T, B, width) = call.layers, x.shape
    closing, bias = layers.cell in DRIVES, layers.bias
    kinds = torch.cat((x.reshape(T * B, width), _zeros(width, x.dtype, x.device)))  # each step, a null and a hold step
    if closing:
        weights, bias = _with_columns(layers, weights, decision.autocast or x.dtype)
        kinds = torch.cat((kinds, _flags(T * B, layers.n_states, weights[0].shape[1] - width, x.dtype, x.device)), 1)
    laid = kinds.index_select(0, walk.source).view(walk.steps, B, -1)
    training = layers.training or cudnn_backward_wants_training_mode(call, decision)
    ys, after, n = [], [*states], _pieces(call, decision, walk.steps * B)
    for piece in laid.chunk(n) if n > 1 else (laid,):
        y, *after = FUSED_OPS[layers.cell](piece, as_hx(tuple(after)), weights, bias, 1, 0.0, training, False, False)
        ys.append(y)
    y = (ys[0] if len(ys) == 1 else torch.cat(ys)).view(walk.steps * B, -1)
    if closing and y.detach().index_select(0, walk.idle).any():
        return None
    h = y.index_select(0, walk.last).unsqueeze(0)
    if call.lengths is not None:
        h = h.where((call.lengths > 0).unsqueeze(-1), states[0].to(h.dtype))
    return y.index_select(0, walk.back).view(T, B, -1), (h, *after[1:])


def _pieces(call: Call, decision: Decision, rows: int) -> int:
    """In how many calls of torch's op, one after another, a walk of so many rows is trained.

    Of an LSTM oneDNN keeps 64 bytes of each unit and row for the way back, and what is larger than 32 MiB glibc returns
    to the system each time, so that the next call waits for its pages: T=136 B=16 H=256 took 36 ms where T=128 took 24,
    and in two halves 25.
    """
    x, layers = call.x, call.layers
    if not decision.trains or layers.cell != "lstm" or x.device.type != "cpu":
        return 1
    if x.dtype != torch.float32 or decision.autocast is not None:  # half as much, and c would be rounded between pieces
        return 1
    return 1 + 64 * layers.hidden_size * rows // MOST_BYTES


def _with_columns(layers: Layers, weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], bool]:
    """The weights of a layer whose input has further columns, and whether biases are among them.

    The columns are `DRIVES`' flags and, with biases, steps that count. Through the latter comes a GRU's b_in, which
    must not reach a null step, and of other cells all of the bias: oneDNN sums its gradient up row by row, and was 3e-6
    of it away at 8,000 rows where a product is 3e-7. On a GPU it is three numbers of 8 bits each, whose sum is exact,
    because a product there may round to TF32.
    """
    w_ih, w_hh, *others = weights
    H = layers.hidden_size
    columns = [_closing_columns(layers.cell, H, dtype, w_ih.dtype, w_ih.device)]
    if layers.bias and layers.cell == "gru":
        b_rz, b_n = others[0].split((2 * H, H))
        others[0] = torch.cat((b_rz, torch.zeros_like(b_n)))
        columns += [F.pad(part.unsqueeze(1), (0, 0, 2 * H, 0)) for part in _parts(b_n)]
    elif layers.bias:
        b_ih, b_hh, *others = others
        columns += [part.unsqueeze(1) for part in _parts(b_ih + b_hh)]
    return [torch.cat((w_ih, *columns), 1), w_hh, *others], layers.bias and layers.cell == "gru"


def _made_once(most: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Keep up to `most` of the tensors that a function makes, which nobody writes to: after a dense call has emptied a
    CPU's caches, arange takes 14 us and finding its result 1. Any call may read them, whatever mode or CUDA stream the
    first was in."""

    def keep(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @lru_cache(maxsize=most)
        @wraps(make)
        def made(*arguments: Any) -> Tensor:
            with torch.inference_mode(False), torch.no_grad():
                found = make(*arguments)
            if found.is_cuda:
                torch.cuda.current_stream(found.device).synchronize()
            return found

        return made

    return keep


@_made_once(64)
def _closing_columns(
    cell: str, hidden_size: int, computed: torch.dtype, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[G*H, flags], the same for every call. computed: the dtype of the gates, whose largest number closes them."""
    drives = torch.tensor(DRIVES[cell], dtype=dtype, device=device).mul_(torch.finfo(computed).max / 4)
    return drives.repeat_interleave(hidden_size, 0)


@_made_once(4)
def _numbers(count: int, device: torch.device) -> Tensor:
    """0, 1, ... [count]."""
    return torch.arange(count, device=device)


@_made_once(8)
def _zeros(columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[2, columns], what a null and a hold step read in place of x."""
    return torch.zeros(2, columns, dtype=dtype, device=device)


@_made_once(4)
def _flags(rows: int, flags: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[rows + 2, columns]: the further columns of every step, of a null and of a hold step, the same for one flag."""
    found = torch.zeros(rows + 2, columns, dtype=dtype, device=device)
    found[:rows, flags:] = 1
    found[rows:, :flags] = torch.eye(2, dtype=dtype, device=device) if flags == 2 else 1
    return found


def _parts(t: Tensor) -> list[Tensor]:
    """t, on a GPU in float32 as three tensors of bfloat16's numbers; the gradient is the first one's."""
    if not t.is_cuda or t.dtype is not torch.float32:
        return [t]
    high = t.detach().bfloat16().float()
    middle = (t.detach() - high).bfloat16().float()
    low = t.detach() - high - middle
    return [t - middle - low, middle, low]
