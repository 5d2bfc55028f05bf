"""The recurrence step by step in plain torch ops, for what torch's fused ops cannot do.

With it vmap, per-sample gradients, ensembles over stacked weights, jvp and compiled training of an LSTM on a CPU
work on holdfast's modules where torch.nn raises, and cells that torch lacks work at all. `reference` has the equations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ...kernels.heads import block_diagonal
from ..call.records import Call, Decision
from ..gates import detached
from .fused import answer_dtypes
from .noise import Noise, draw
from .reference import reference_of


def run_recurrence(
    call: Call, decision: Decision, traces: list[dict[str, Tensor]] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call: (output, final states); output as the layers' batch_first, or packed rows.

    traces:  a list that gets for each layer what every gate and state was, by name, [T, B, D*H].
    """
    noise, dtype = draw(call), decision.autocast
    if dtype is None:
        return _run(call, noise, traces)
    cast = call._replace(x=call.x.to(dtype))
    with torch.autocast(call.x.device.type, enabled=False):
        y, finals = _run(cast, [_cast_noise(of_layer, dtype) for of_layer in noise], traces)
    answer, *of_states = answer_dtypes(call, dtype)
    return y.to(answer), tuple(final.to(each) for final, each in zip(finals, of_states, strict=True))


def _run(call: Call, noise: list[Noise], traces: list[dict[str, Tensor]] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """In the dtype of x, and with x padded, time-major and back."""
    x = call.x
    if call.batch_sizes is not None:
        x, sizes = pad_packed_sequence(PackedSequence(x, call.batch_sizes))
        noise = [_padded_noise(of_layer, call.batch_sizes) for of_layer in noise]
        call = call._replace(lengths=sizes.to(x.device))
        y, finals = _run_layers(x, call, noise, traces)
        return pack_padded_sequence(y, sizes).data, finals
    batch_first = call.layers.batch_first
    y, finals = _run_layers(x.transpose(0, 1) if batch_first else x, call, noise, traces)
    return y.transpose(0, 1) if batch_first else y, finals


def _run_layers(
    x: Tensor, call: Call, noise: list[Noise], traces: list[dict[str, Tensor]] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All layers, in the dtype of x [T, B, I], which stands for call.x: y [T, B, D*H] and the final states."""
    layers = call.layers
    directions, each = layers.directions, layers.weights_each
    initial = [state.to(x.dtype) for state in (layers.zeros(x, x.shape[1]) if call.hx is None else call.states)]
    reset_states = [state.to(x.dtype) for state in call.reset_states]
    flat = [weight.to(x.dtype) for weight in layers.weights]
    finals: list[tuple[Tensor, ...]] = []
    for layer, (dropout, zoneout) in enumerate(noise):
        outputs = []
        seen: list[dict[str, Tensor]] = [{} for _ in range(directions)]
        for direction in range(directions):
            row = layer * directions + direction
            own = flat[row * each : (row + 1) * each]
            w_hr = own.pop() if layers.proj_size > 0 else None
            units = slice(direction * layers.hidden_size, (direction + 1) * layers.hidden_size)
            hs, states = unroll(
                layers.cell,
                x,
                own,
                tuple(state[row] for state in initial),
                w_hr=w_hr,
                reverse=direction == 1,
                lengths=call.lengths,
                resets=call.resets,
                reset_states=tuple(state[row] for state in reset_states),
                dropout=None if dropout is None else dropout[direction],
                zoneout=[None if mask is None else mask[..., units] for mask in zoneout],
                trace=None if traces is None else seen[direction],
            )
            outputs.append(hs)
            finals.append(states)
        x = torch.cat(outputs, -1)
        if traces is not None:
            whole = {name: torch.cat([trace[name] for trace in seen], -1) for name in seen[0]}
            traces.append(whole if call.return_gates == "differentiable" else detached(whole))
        if layer < layers.num_layers - 1 and layers.dropout > 0:
            x = F.dropout(x, layers.dropout, layers.training)
    return x, tuple(torch.stack(of_one_state) for of_one_state in zip(*finals, strict=True))


def _cast_noise(noise: Noise, dtype: torch.dtype) -> Noise:
    dropout, *zoneout = (None if mask is None else mask.to(dtype) for mask in (noise.dropout, *noise.zoneout))
    return Noise(dropout, tuple(zoneout))


def _padded_noise(noise: Noise, batch_sizes: Tensor) -> Noise:
    """Noise of packed rows with zoneout as [T, B, D*H]."""
    rows = (None if mask is None else PackedSequence(mask, batch_sizes) for mask in noise.zoneout)
    return Noise(noise.dropout, tuple(None if mask is None else pad_packed_sequence(mask)[0] for mask in rows))


def named_weights(
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...]]:
    """w_ih, w_hh, b_ih, b_hh and the units' own parameters [H] each, of one layer in one direction without its w_hr."""
    w_ih, w_hh, *rest = weights
    parameters = rest[-1].unbind(0) if len(rest) % 2 else ()
    b_ih, b_hh = rest[:2] if len(rest) > 1 else (None, None)
    return w_ih, w_hh, b_ih, b_hh, parameters


def unroll(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    states: tuple[Tensor, ...],
    *,
    w_hr: Tensor | None = None,
    reverse: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_states: tuple[Tensor, ...] = (),
    dropout: Tensor | None = None,
    zoneout: Sequence[Tensor | None] = (),
    trace: dict[str, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: h of every step [T, B, H], and the final states.

    cell:          a name that `reference_of` knows.
    x:             [T, B, I].
    weights:       w_ih, w_hh [G*H, H / heads] and, or not, b_ih, b_hh and, or not, the units' own parameters [P, H].
    states:        [B, H] each, h first.
    w_hr:          an LSTM's projection of h, or None.
    lengths:       [B]: no step of a row counts from there on, and h is zero; in reverse a row starts at its end.
    resets:        [T, B] bool: before these steps, in reverse after them, the state becomes reset_states.
    reset_states:  [B, H] each, or empty for zeros.
    dropout:       [B, H], a factor of h on its way into w_hh, or None.
    zoneout:       per state [T, B, H], the share of the state before the step, or None; may be empty.
    trace:         a dict that gets every gate and state by name, [T, B, H].
    """
    reference = reference_of(cell)
    w_ih, w_hh, b_ih, b_hh, parameters = named_weights(weights)
    heads = 1 if w_hr is not None else w_hh.shape[0] // reference.gates // w_hh.shape[1]
    w_hh = block_diagonal(w_hh, heads)

    def product(h: Tensor) -> Tensor:
        return F.linear(h if dropout is None else h * dropout, w_hh, b_hh)

    ended = None if lengths is None else (torch.arange(len(x), device=x.device)[:, None] >= lengths).unsqueeze(-1)
    if ended is not None:
        x = x.masked_fill(ended, 0)  # a NaN there would go into the weights' gradients as 0 * NaN
    cuts = None if resets is None else _cuts(resets.unsqueeze(-1), ended, reverse)
    steps = F.linear(x, w_ih, b_ih).unbind(0)
    h_of_steps = []
    seen: list[tuple[Tensor, ...]] = []
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        before = states if cuts is None else _where(cuts[t], reset_states, states)
        after, gates = reference(steps[t], product, before, parameters, heads)
        if w_hr is not None:
            after = (F.linear(after[0], w_hr), *after[1:])
        if zoneout:
            after = tuple(_mixed(mask, t, b, a) for mask, b, a in zip(zoneout, before, after, strict=True))
        states = after if ended is None else _where(ended[t], states, after)
        h_of_steps.append(states[0])
        if trace is not None:
            seen.append((*gates, *states))

    def over_time(values: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        stacked = torch.stack(values[::-1] if reverse else values)
        return stacked if ended is None else stacked.masked_fill(ended, 0)

    if trace is not None:
        names = (*reference.gate_names, *reference.state_names)
        values = map(over_time, zip(*seen, strict=True))
        trace.update(zip(names, values, strict=True))
    return over_time(h_of_steps), states


def _cuts(resets: Tensor, ended: Tensor | None, reverse: bool) -> Tensor:
    """[T, B, 1]: whether the state is reset before this step of the walk."""
    if not reverse:
        return resets
    cuts = resets if ended is None else resets & ~ended
    return torch.cat((cuts[1:], torch.zeros_like(cuts[:1])))


def _where(mask: Tensor, chosen: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`chosen` (empty for zeros) in the marked rows."""
    if not chosen:
        return tuple(other.masked_fill(mask, 0) for other in others)
    return tuple(torch.where(mask, c, other) for c, other in zip(chosen, others, strict=True))


def _mixed(zoneout: Tensor | None, t: int, before: Tensor, after: Tensor) -> Tensor:
    return after if zoneout is None else torch.lerp(after, before, zoneout[t])  # exact at 0 and 1
