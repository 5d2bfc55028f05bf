"""Heads in the time loops: each a recurrence of its own, together those of torch.nn with a block-diagonal W_hh."""

from __future__ import annotations

import itertools

import pytest
import torch

from holdfast.bench.check.features import draw_call, errors_of
from holdfast.bench.check.layer import Case, check_case, check_gradients
from holdfast.bench.check.run import DTYPES, REGIMES
from holdfast.kernels.cell_spec import CELLS

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY = list(itertools.product(CELLS, REGIMES))
KEEP = ("save", "recompute")
SIZES = [(6, 3), (20, 4), (68, 2)]
"""Units and heads: heads of 2, of 5 (no whole words of two 16-bit numbers), and of 34 (several programs)."""


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("hidden", "heads"), SIZES, ids=str)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_values_and_gradients_as_torch_in_float64(cell, regime, hidden, heads, dtype, device):
    case = Case(cell, regime, dtype, hidden, 3, 3, directions=1 + heads % 2, num_heads=heads)
    seed = hidden + heads
    for errors in (check_case(case, device, seed), check_gradients(case, device, seed, KEEP[hidden // 4 % 2])):
        assert errors.ok, f"{case}: {errors}, allowed {errors.tolerance}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_with_random_features(cell, regime, seed, device):
    call = draw_call(cell, seed + sum(map(ord, cell + regime)), heads=2 + seed % 3)
    for name, errors in errors_of(call, regime.rpartition("/")[2], KEEP[seed % 2], device).items():
        assert errors.ok, f"{call}, {name}: {errors}"
