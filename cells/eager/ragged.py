"""Lengths and resets where no kernel runs: a dense call where they cut nothing, null steps, or packed segments."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..call.records import Call, Decision, State, as_hx
from .fused import run_fused
from .null_steps import DRIVES, Walk, can_close, run_null_steps, walks_of
from .segments import run_segments

MOST_STEPS_OF_A_KERNEL = 8.0
MOST_STEPS_OF_A_LOOP = 1.1
"""Steps of all rows that a dense call walks for each that counts, before packed segments are faster.

Of an LSTM on a CPU (oneDNN, T=128 B=16 H=128) null steps took 1.2 of a dense call's time for a training step wherever
the rows ended, packing 2.7 at half the batch filled and 1.3 at a tenth. A GRU on a CPU is torch's own steps in either
form: 1.1 against 1.1 at nine tenths, 1.2 against 0.8 with a reset in one step of ten.
"""


class Layout(NamedTuple):
    """How torch's op takes the lengths and resets of a call.

    name:   in the words of `explain`.
    call:   the call without what cuts nothing.
    walks:  those of null and hold steps, none in another layout.
    """

    name: str
    call: Call
    walks: list[Walk]


def layout_of(call: Call) -> Layout:
    """The layout of a checked call with lengths, resets or both."""
    call = without_cuts_at_the_edges(call)
    if not call.ragged:
        return Layout("one dense call", call, [])
    if can_close(call):
        walks = walks_of(call)
        most = MOST_STEPS_OF_A_KERNEL if _runs_as_a_kernel(call) else MOST_STEPS_OF_A_LOOP
        if walks[0].steps * call.batch_size <= most * walks[0].counted:
            return Layout(_name_of_steps(call), call, walks)
    return Layout("packing" if call.resets is None else "packed segments", call, [])


def run_ragged(call: Call, decision: Decision) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call with lengths, resets or both, or a packed one: (output, final states)."""
    if call.batch_sizes is not None:
        padded, place = padded_rows(call)
        y, states = run_ragged(padded, decision)
        return y.flatten(0, 1).index_select(0, place), states
    _, call, walks = layout_of(call)
    if not call.ragged:
        return run_fused(call, decision)
    if walks:
        before = _random_state(call)
        found = run_null_steps(call, decision, walks)
        if found is not None:
            return found
        _restore(call, before)
    return run_segments(call, decision)


def padded_rows(call: Call) -> tuple[Call, Tensor]:
    """A packed call as one with lengths, and the index of each packed row into its T*B."""
    sizes = cast(Tensor, call.batch_sizes)
    T, B = len(sizes), int(sizes[0])
    inside = (torch.arange(B) < sizes[:, None]).to(call.x.device)
    place = inside.flatten().nonzero().squeeze(1)  # packed rows lie step by step
    x = call.x.new_zeros(T * B, call.x.shape[1]).index_copy(0, place, call.x).unflatten(0, (T, B))
    return Call(call.layers._replace(batch_first=False), x, call.hx, lengths=inside.sum(0)), place


def _name_of_steps(call: Call) -> str:
    if call.layers.cell not in DRIVES:
        return "one dense call, read at each row's end"
    if call.lengths is None or call.layers.n_states == 1:
        return "null steps"
    return "hold steps" if call.resets is None else "null and hold steps"


def without_cuts_at_the_edges(call: Call) -> Call:
    """The call with resets before the first step as part of hx, and without lengths or resets that cut nothing."""
    T = call.steps
    lengths, resets, hx, reset_hx = call.lengths, call.resets, call.hx, call.reset_hx
    if lengths is not None and bool(lengths.eq(cast(int, T)).all()):
        lengths = None
    if resets is not None:
        if hx is not None or reset_hx is not None:
            first = resets if T == 1 else resets[:1]
            hx = _entered(call, first if lengths is None else first & (lengths > 0))
        if T == 1 or not bool(resets[1:].any()):
            resets = reset_hx = None
    if reset_hx is not None and not any(state.requires_grad or state.any() for state in call.reset_states):
        reset_hx = None
    return call._replace(lengths=lengths, resets=resets, hx=hx, reset_hx=reset_hx)


def _entered(call: Call, first: Tensor) -> State:
    """The states that the walks start from, as hx, where the marked rows [1, B] are reset before step 0."""
    mask = first.unsqueeze(-1)
    if call.layers.directions == 2:  # backwards the first step comes last, and nothing after it
        mask = torch.cat((mask, torch.zeros_like(mask))).repeat(call.layers.num_layers, 1, 1)
    states = call.starting_states()
    if call.reset_hx is None:
        return as_hx(tuple([state.masked_fill(mask, 0) for state in states]))
    return as_hx(tuple([torch.where(mask, new, old) for new, old in zip(call.reset_states, states, strict=True)]))


def _runs_as_a_kernel(call: Call) -> bool:
    """Whether torch walks a dense layer in one kernel, cuDNN's or oneDNN's, and not in ops step by step."""
    layers = call.layers
    of_onednn = layers.cell == "lstm" and not layers.proj_size and call.x.dtype in (torch.float32, torch.bfloat16)
    return call.x.is_cuda or (of_onednn and torch._C._has_mkldnn)


def _random_state(call: Call) -> Tensor | None:
    """Torch's generator before dropout between layers, so that another path can draw the same masks."""
    if not call.layers.drops:
        return None
    return torch.cuda.get_rng_state(call.x.device) if call.x.is_cuda else torch.get_rng_state()


def _restore(call: Call, state: Tensor | None) -> None:
    if state is not None and call.x.is_cuda:
        torch.cuda.set_rng_state(state, call.x.device)
    elif state is not None:
        torch.set_rng_state(state)
