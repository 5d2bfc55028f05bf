"""One step forwards from its preactivations on, around the functions of the cell (see `cell_math`)."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_zones
from .walk import choose


@triton.jit
def inner_tile(x, a, state, p, CELL: tl.constexpr):
    """What a cell's second product multiplies W_hh with."""
    if CELL.activation == "":
        return CELL.inner(x, a, state, p)
    else:
        ACTIVATION: tl.constexpr = CELL.activation
        RECURRENT: tl.constexpr = CELL.recurrent_activation
        return CELL.inner(x, a, state, p, ACTIVATION, RECURRENT)


@triton.jit
def gate_values(x, a, state, p, CELL: tl.constexpr):
    """v of the step."""
    if CELL.activation == "":
        return CELL.gates_of(x, a, state, p)
    else:
        ACTIVATION: tl.constexpr = CELL.activation
        RECURRENT: tl.constexpr = CELL.recurrent_activation
        return CELL.gates_of(x, a, state, p, ACTIVATION, RECURRENT)


@triton.jit
def updated(v, state, p, CELL: tl.constexpr):
    """The new state, before zoneout."""
    if CELL.activation == "":
        return CELL.update(v, state, p)
    else:
        ACTIVATION: tl.constexpr = CELL.activation
        RECURRENT: tl.constexpr = CELL.recurrent_activation
        return CELL.update(v, state, p, ACTIVATION, RECURRENT)


@triton.jit
def next_state(v, state, p, zones, rows, now, tile, me, CELL: tl.constexpr, LOOP: tl.constexpr):
    """The state after the step; rows that do not have it keep theirs."""
    new = updated(v, state, p, CELL)
    if zones.shares is not None:
        mask = me.unit_ok[:, None] & now.here[None, :]
        new = _blend(load_zones(zones, now, tile, me, mask, CELL, LOOP), state, new, CELL.states)
    if rows.lengths is not None:
        new = choose(now.here, new, state, CELL.states)
    return new


@triton.jit
def _blend(shares, old, new, STATES: tl.constexpr):
    """Zoneout (Krueger et al. 2017): z * old + (1 - z) * new."""
    tiles = ()
    for index in tl.static_range(STATES):
        tiles = tiles + (shares[index] * old[index] + (1.0 - shares[index]) * new[index],)
    return tiles
