"""How h reaches the product with W_hh, and a step's gradients the product with W_hh^T: the regimes differ here alone.

A team of one multiplies what it has in registers. A larger one gathers what its members have published (see
`exchange`); its programs may share the sum (see `split_k`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .exchange import await_sent, gathered_product
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
def await_operand(
    own,  # tiles [BLOCK_H, BLOCK_B]: this program's units of the operand, zero where padded
    sent,  # Sent: all units of the operand, as the team publishes them; not looked at by a team of one
    must_wait,  # False where the operand is the caller's own
    expected,  # arrivals before it is there ("barrier")
    limit,  # of the wait (see `exchange`)
    team,
    LOOP: tl.constexpr,
):
    """Waits until the operand is there; it, and whether the limit was over before, for `product`.

    Not part of the product, because what the next step reads goes between the two: loaded before the wait, ptxas gives
    it the poll's scoreboard, and every first test waits for device memory; in the product's barriers it would be late.
    """
    if LOOP.EXCHANGE == "registers":
        return own, False
    else:
        return await_sent(sent, must_wait, expected, limit, team, LOOP)


@triton.jit
def product(
    weights,  # as `load_weights` keeps them
    operand,  # and `missing`: as `await_operand` returns them
    missing,
    sent,  # Sent: all units of the operand, and the columns of this program's part; not looked at by a team of one
    step,  # how many steps those who share it are known to have handed on
    turn,  # how many products the team has had before
    expected,  # arrivals before its parts are there ("barrier")
    limit,
    me,
    team,
    LOOP: tl.constexpr,
):
    """W_hh times the operand for this program's units, all gates: [padded gates * BLOCK_H, BLOCK_B]; limit of later
    waits."""
    if LOOP.EXCHANGE == "registers":
        return _product_of_own(weights, operand, 0, 1, LOOP), limit
    else:
        return _shared_product(weights, operand, missing, sent, step, turn, expected, limit, me, team, LOOP)


@triton.jit
def _shared_product(weights, operand, missing, sent, step, turn, expected, limit, me, team, LOOP: tl.constexpr):
    found, limit = gathered_product(weights, operand, missing, sent, limit, team, LOOP)
    if LOOP.SPLIT_K > 1:
        found, limit = sum_of_parts(found, me.number % LOOP.SPLIT_K, turn, expected, limit, step, team, LOOP)
    return found, limit


@triton.jit
def arrivals_of_product(LOOP: tl.constexpr):
    """At a team's counter, of one product: what it multiplies, and then its parts where programs share it."""
    return LOOP.MEMBERS * (1 if LOOP.SPLIT_K == 1 else 2)


@triton.jit
def load_weights_backwards(w_ptr, me, CELL: tl.constexpr, LOOP: tl.constexpr):
    """W_hh as `product_backwards` wants it."""
    if LOOP.EXCHANGE == "registers":
        return load_gate_blocks(w_ptr, me, CELL, LOOP)
    else:
        part = me.number % LOOP.SPLIT_K
        return load_weights_transposed(w_ptr, me, part, CELL, LOOP)


@triton.jit
def expected_backwards(turn, LOOP: tl.constexpr):
    """Arrivals before the operand of a product is there ("barrier"), where the team has had `turn` products before."""
    return turn * arrivals_of_product(LOOP) + LOOP.MEMBERS


@triton.jit
def product_backwards(
    weights,  # as `load_weights_backwards` keeps them
    operand,  # and `missing`: as `await_operand` returns them, of COUNT gates' gradients from FIRST on
    missing,
    sent,  # Sent: those of all units, and the columns of this program's part; not looked at by a team of one
    turn,  # how many products of this kind the team has had before
    limit,
    me,
    team,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    LOOP: tl.constexpr,
):
    """W_hh^T times the gates' gradients for this program's units, [BLOCK_H, BLOCK_B]; and the limit of later waits."""
    if LOOP.EXCHANGE == "registers":
        return _product_of_own(weights, operand, FIRST, COUNT, LOOP), limit
    else:
        expected = (turn + 1) * arrivals_of_product(LOOP)
        return _shared_product(weights, operand, missing, sent, sent.step, turn, expected, limit, me, team, LOOP)
