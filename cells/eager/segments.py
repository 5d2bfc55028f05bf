"""Ragged batches and resets on torch's fused op: every segment is a sequence of its own in one packed batch.

A segment is a run of steps of one row without a reset inside. Whatever the number of rows and resets, it is a few
vectorised ops to cut and to put back, and no loop over time or rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call.records import Call, Decision, State, as_hx
from .fused import answer_dtype
from .packed import run_packed


class Segments(NamedTuple):
    """S segments with N steps in all, the longest first.

    source:       [N], for each row of the packed data the index into [T*B] (or [B*T]) steps.
    mirror:       [N], for each row of the packed data the one that is as far from its segment's other end.
    batch_sizes:  of the packed data, on the CPU.
    row:          [S], the row of the batch.
    starts:       [S] bool, the state that the row starts with is the segment's: not after a reset.
    ends:         [S] bool, the row ends with the segment.
    first, last:  [R], the first and the last segment of each of the R rows that have any step.
    rows:         [R], those rows.
    """

    source: Tensor
    mirror: Tensor
    batch_sizes: Tensor
    row: Tensor
    starts: Tensor
    ends: Tensor
    first: Tensor
    last: Tensor
    rows: Tensor


def cut(
    T: int, B: int, lengths: Tensor | None, resets: Tensor | None, batch_first: bool, device: torch.device
) -> Segments:
    """The segments of a batch with at least one step; lengths [B] and resets [T, B] as in `Call`."""
    steps = torch.arange(T, device=device)
    valid = torch.ones(B, T, dtype=torch.bool, device=device) if lengths is None else steps < lengths[:, None]
    row_of, step_of = valid.nonzero(as_tuple=True)  # row by row, so that segments lie one after another
    begins = step_of == 0
    if resets is not None:
        begins = begins | resets[step_of, row_of]
    begin = begins.nonzero().squeeze(1)
    count = torch.diff(begin, append=begin.new_tensor([len(row_of)]))
    order = count.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=device)
    segment_of = begins.cumsum(0) - 1
    offset = torch.arange(len(row_of), device=device) - begin[segment_of]
    batch_sizes = torch.bincount(offset)
    start = batch_sizes.cumsum(0) - batch_sizes
    position = start[offset] + rank[segment_of]
    source, mirror = torch.empty_like(position), torch.empty_like(position)
    source[position] = row_of * T + step_of if batch_first else step_of * B + row_of
    mirror[position] = start[count[segment_of] - 1 - offset] + rank[segment_of]

    row, step = row_of[begin], step_of[begin]
    is_first = step == 0
    is_last = torch.cat((is_first[1:], is_first.new_ones(1)))
    starts = is_first if resets is None else is_first & ~resets[step, row]
    return Segments(
        source,
        mirror,
        batch_sizes.cpu(),
        row[order],
        starts[order],
        is_last[order],
        rank[is_first],
        rank[is_last],
        row[is_first],
    )


def run_segments(call: Call, decision: Decision) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a checked call with lengths, resets or both: (output, final states)."""
    layers, x = call.layers, call.x
    B, T = x.shape[:2] if layers.batch_first else (x.shape[1], x.shape[0])
    found = cut(T, B, call.lengths, call.resets, layers.batch_first, x.device)
    data = x.flatten(0, 1).index_select(0, found.source)
    in_rows = Call(layers, data, _initial(call, found), batch_sizes=found.batch_sizes)

    def dropped(data: Tensor) -> Tensor:
        """By the mask that a dense call draws, [T, B, D*H], so that no path draws another."""
        keep = F.dropout(data.new_ones(T, B, data.shape[1]), layers.dropout)
        keep = keep.transpose(0, 1) if layers.batch_first else keep
        return data * keep.flatten(0, 1).index_select(0, found.source)

    packed, segment_finals = run_packed(in_rows, decision, found.mirror, dropped)
    y = packed.new_zeros(T * B, packed.shape[1]).index_copy(0, found.source, packed)
    finals = tuple(
        _finals(initial, of_segments, found, layers.directions)
        for initial, of_segments in zip(call.starting_states(), segment_finals, strict=True)
    )
    # on a CPU torch's packed op leaves float32 to autocast, which its other ops do not
    dtype = answer_dtype(call, decision.autocast)
    return y.unflatten(0, x.shape[:2]).to(dtype), tuple(final.to(dtype) for final in finals)


def _initial(call: Call, found: Segments) -> State:
    """What each segment starts from, [layers*D, S, H]: hx where the walk enters a row, else the state of a reset."""
    layers = call.layers
    if call.hx is None and call.reset_hx is None:
        return as_hx(layers.zeros(call.x, len(found.row)))
    from_hx = torch.stack((found.starts, found.ends)[: layers.directions]).repeat(layers.num_layers, 1).unsqueeze(-1)
    states = []
    for k, state in enumerate(call.starting_states()):
        state = state.index_select(1, found.row)
        if call.resets is None:
            states.append(state)
        elif call.reset_hx is None:
            states.append(state.masked_fill(~from_hx, 0))
        else:
            states.append(torch.where(from_hx, state, call.reset_states[k].index_select(1, found.row)))
    return as_hx(tuple(states))


def _finals(initial: Tensor, of_segments: Tensor, found: Segments, directions: int) -> Tensor:
    """The states [layers*D, B, H] at the end of each row's walk; a row without steps keeps its initial one."""
    if directions == 2:
        by_direction = of_segments.unflatten(0, (-1, 2))
        ends = (by_direction[:, 0].index_select(1, found.last), by_direction[:, 1].index_select(1, found.first))
        reached = torch.stack(ends, 1).flatten(0, 1)
    else:
        reached = of_segments.index_select(1, found.last)
    return initial.to(reached.dtype).index_copy(1, found.rows, reached)
