"""Every exchange under many interleavings: the same bits, whoever runs when and however late a store is seen.

A failure names the seed and the scheduler that replay it: see `schedules.explore`.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("greenlet")  # a lent machine lacks it

from schedules import ALL_ONES, EXCHANGES, LONGER, expected, explore, gradients_of, layer_of

from holdfast.kernels.tolerance import compare_all, worst

QUICK, MANY = 54, 1020
"""Schedules of an exchange, those of every scheduler alike."""


@pytest.mark.parametrize("name", EXCHANGES)
def test_every_schedule_returns_the_same_bits(name):
    assert list(explore(EXCHANGES[name], QUICK)) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", EXCHANGES | LONGER)
def test_a_thousand_schedules_return_the_same_bits(name):
    assert list(explore((EXCHANGES | LONGER)[name], MANY)) == []


@pytest.mark.parametrize("name", EXCHANGES | LONGER)
def test_those_bits_are_torchs_in_float64(name):
    """NaN where torch has it; all other numbers within what torch's own error in the dtype allows."""
    exchange = (EXCHANGES | LONGER)[name]
    layer, found = layer_of(exchange), expected(exchange)

    def by_torch(dtype):
        if exchange.phase == "forward":
            return layer.torch_nn(dtype)
        layer.loss_weights = lambda: gradients_of(exchange)
        of = layer.torch_gradients(dtype)
        states = [g for name, g in of.items() if name.startswith("hx")]
        return [of["x"], *states, *[g for name, g in of.items() if "_l0" in name]]

    plain, right = by_torch(exchange.dtype), by_torch(torch.float64)
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(found, right, strict=True))
    # Copies: `expected` is remembered, for the tests of mutations too.
    finite = [[tensor.nan_to_num(0.0) for tensor in group] for group in (found, plain, right)]
    errors = worst(compare_all(*finite, exchange.dtype, 0.0))
    assert errors.ok, errors
    if exchange.poison:
        assert any(t.isnan().any() for t in (layer.x, *gradients_of(exchange)))
        assert ALL_ONES[exchange.dtype].isnan()
