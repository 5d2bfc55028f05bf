"""Which rows take part in a step, what time it is for each, and where that lies in memory.

Without lengths every row of a batch tile is at the same time: times and addresses are scalars, as cheap
as they can be. With lengths the reverse direction starts at each row's own end, so they are one number a row.
A packed sequence has its rows of time t from row starts[t] on, as many as still run (torch's PackedSequence).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lengths_of(lengths_ptr, row, row_ok, T):
    """The steps of each row, and those of the tile: it ends with its longest row. T, a scalar, where there are none."""
    if lengths_ptr is None:
        return T, T
    else:
        # On the device nobody has checked them: clamped, a wrong length is a wrong result and no wild address.
        length = tl.load(lengths_ptr + row, mask=row_ok, other=0)
        length = tl.minimum(tl.maximum(length, 0), T)
        return length, tl.max(length, axis=0)


@triton.jit
def active_rows(step, length, row_ok, lengths_ptr):
    """The rows whose sequence has this step."""
    if lengths_ptr is None:
        return row_ok
    else:
        return row_ok & (step < length)


@triton.jit
def time_of(step, length, reverse, lengths_ptr):
    """The time index that a direction visits at a step, 64-bit: offsets t * stride may pass 2^31."""
    t = tl.where(reverse, length - 1 - step, step)
    if lengths_ptr is not None:
        t = tl.maximum(t, 0)  # of a row that has ended: any valid one
    return t.to(tl.int64)


@triton.jit
def first_row(t, starts_ptr, B):
    """How many rows lie before those of time t."""
    if starts_ptr is None:
        return t * B
    else:
        return tl.load(starts_ptr + t)


@triton.jit
def place(step, length, row_ok, reverse, lengths_ptr, starts_ptr, B):
    """The time of each row at a step, where that begins in memory, and which rows have it. Before step 0: step 0's."""
    step = tl.maximum(step, 0)
    t = time_of(step, length, reverse, lengths_ptr)
    return t, first_row(t, starts_ptr, B), active_rows(step, length, row_ok, lengths_ptr)


@triton.jit
def rows_known(step, here_earlier, row_ok, lengths_ptr):
    """The rows with a state before a step: those that have the step before it; an initial state is there for all."""
    if lengths_ptr is None:
        return row_ok
    else:
        return tl.where(step > 0, here_earlier, row_ok)


@triton.jit
def strided_start(t, first, stride_t, stride_b, starts_ptr):
    """Where time t begins in a tensor of any strides; a packed one has a single stride, from row to row."""
    if starts_ptr is None:
        return t * stride_t
    else:
        return first * stride_b


@triton.jit
def reset_rows(resets_ptr, t, length, row, here, B, reverse):
    """Of the rows here, those whose state is the reset state before the step at time t.

    A mark at t begins a segment: the reverse direction enters the segment before it, from t to t - 1.
    """
    at = t + reverse.to(tl.int64)
    return tl.load(resets_ptr + at * B + row, mask=here & (at < length), other=0) != 0


@triton.jit
def at_tile(base, offsets):
    """Pointers to a tile [units, rows], from a base pointer or one for each row."""
    if len(base.shape) == 0:
        return base + offsets
    else:
        return base[None, :] + offsets


@triton.jit
def choose(rows, yes, no, COUNT: tl.constexpr):
    """Of two tuples of tiles [units, rows], the one or the other row by row."""
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + (tl.where(rows[None, :], yes[index], no[index]),)
    return tiles
