"""One step forwards from its preactivations on: what both regimes' forward loops have in common."""

from __future__ import annotations

import triton
import triton.language as tl

from .walk import at_tile, choose


@triton.jit
def inner_tile(x, a, state, p, INNER: tl.constexpr, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """What a cell's second product multiplies W_hh with."""
    if ACTIVATION == "":
        return INNER(x, a, state, p)
    else:
        return INNER(x, a, state, p, ACTIVATION, RECURRENT)


@triton.jit
def gate_values(x, a, state, p, GATES_OF: tl.constexpr, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """v of the step."""
    if ACTIVATION == "":
        return GATES_OF(x, a, state, p)
    else:
        return GATES_OF(x, a, state, p, ACTIVATION, RECURRENT)


@triton.jit
def updated(v, state, p, UPDATE: tl.constexpr, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
    """The new state, before zoneout."""
    if ACTIVATION == "":
        return UPDATE(v, state, p)
    else:
        return UPDATE(v, state, p, ACTIVATION, RECURRENT)


@triton.jit
def outer_then_inner(outer, inner, OUTER_GATES: tl.constexpr, GATES: tl.constexpr):
    """The first gates of one product and the last ones of the other."""
    tiles = ()
    for gate in tl.static_range(GATES):
        tiles = tiles + ((outer[gate] if gate < OUTER_GATES else inner[gate]),)
    return tiles


@triton.jit
def load_zones(zones, base, offsets, mask, STATES: tl.constexpr):
    """How much of its old value each state keeps in this step, float32 tiles."""
    tiles = ()
    for index in tl.static_range(STATES):
        tiles = tiles + (tl.load(at_tile(zones[index] + base, offsets), mask=mask, other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def blend(zones, old, new, STATES: tl.constexpr):
    """Zoneout (Krueger et al. 2017): z * old + (1 - z) * new."""
    tiles = ()
    for index in tl.static_range(STATES):
        tiles = tiles + (zones[index] * old[index] + (1.0 - zones[index]) * new[index],)
    return tiles


@triton.jit
def next_state(
    v,
    state,
    p,
    zones,  # as loaded by `load_zones`, or None
    active,  # [BLOCK_B]: rows that have this step; the others keep their state
    lengths_ptr,
    UPDATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RECURRENT: tl.constexpr,
    STATES: tl.constexpr,
):
    """The state after the step."""
    new = updated(v, state, p, UPDATE, ACTIVATION, RECURRENT)
    if zones is not None:
        new = blend(zones, state, new, STATES)
    if lengths_ptr is not None:
        new = choose(active, new, state, STATES)
    return new
