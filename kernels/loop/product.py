"""How h reaches the product with W_hh, and a step's gradients the product with W_hh^T: the regimes differ here alone.

A team of one multiplies what it has in registers. A larger one gathers what its members have published (see
`exchange`); backwards its programs may share the sum (see `split_k`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .exchange import gather_product
from .split_k import sum_of_parts
from .weights import add_product, load_gate_blocks, load_weights_transposed, total, zero_sums


@triton.jit
def _product_of_own(weights, tiles, FIRST: tl.constexpr, COUNT: tl.constexpr, LOOP: tl.constexpr):
    """The sum of the resident chunks from FIRST on times COUNT tiles [BLOCK_H, BLOCK_B], zero where padded."""
    sums = zero_sums(weights, LOOP)
    for index in tl.static_range(COUNT):
        sums = add_product(sums, weights, FIRST + index, tiles[index].to(weights[0].dtype), LOOP)
    return total(sums, LOOP)


@triton.jit
def product(
    weights,  # as `load_weights` keeps them
    own,  # [BLOCK_H, BLOCK_B]: this program's units of the operand, zero where padded
    sent,  # Sent: all units of the operand, as the team publishes them; not looked at by a team of one
    must_wait,  # False where the operand is the caller's own
    expected,  # arrivals before it is there ("barrier")
    budget,
    team,
    LOOP: tl.constexpr,
):
    """W_hh times the operand for this program's units, all gates: [padded gates * BLOCK_H, BLOCK_B]; budget left."""
    if LOOP.EXCHANGE == "registers":
        return _product_of_own(weights, (own,), 0, 1, LOOP), budget
    else:
        return gather_product(weights, sent, must_wait, expected, budget, team, LOOP)


@triton.jit
def load_weights_backwards(w_ptr, me, CELL: tl.constexpr, LOOP: tl.constexpr):
    """W_hh as `product_backwards` wants it."""
    if LOOP.EXCHANGE == "registers":
        return load_gate_blocks(w_ptr, CELL, LOOP)
    else:
        part = me.number % LOOP.SPLIT_K
        return load_weights_transposed(w_ptr, (me.number - part) * LOOP.BLOCK_H, part, CELL, LOOP)


@triton.jit
def product_backwards(
    weights,  # as `load_weights_backwards` keeps them
    own,  # COUNT tiles [BLOCK_H, BLOCK_B]: this program's gradients of the gates from FIRST on, zero where masked
    sent,  # Sent: those of all units, and the columns of this program's part; not looked at by a team of one
    turn,  # how many products of this kind the team has had before
    budget,
    me,
    team,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    LOOP: tl.constexpr,
):
    """W_hh^T times the gates' gradients for this program's units, [BLOCK_H, BLOCK_B]; and the budget that is left."""
    if LOOP.EXCHANGE == "registers":
        return _product_of_own(weights, own, FIRST, COUNT, LOOP), budget
    else:
        ARRIVALS: tl.constexpr = LOOP.MEMBERS * (1 if LOOP.SPLIT_K == 1 else 2)  # of one product
        found, budget = gather_product(weights, sent, True, turn * ARRIVALS + LOOP.MEMBERS, budget, team, LOOP)
        if LOOP.SPLIT_K > 1:
            part = me.number % LOOP.SPLIT_K
            found, budget = sum_of_parts(found, part, turn, (turn + 1) * ARRIVALS, budget, team, LOOP)
        return found, budget
