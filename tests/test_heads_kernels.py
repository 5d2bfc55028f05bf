"""Heads in the time loops: each a recurrence of its own, together those of torch.nn with a block-diagonal W_hh."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from holdfast.autotune.candidates import choose
from holdfast.autotune.identity import Key, key_of, problem_of
from holdfast.autotune.store import from_fields
from holdfast.bench.check.features import draw_call, errors_of
from holdfast.bench.check.layer import Case, Layer, check_case, check_gradients
from holdfast.bench.check.run import DTYPES, REGIMES
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.layer import backward_layer, forward_layer
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import A100, H100

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY = list(itertools.product(CELLS, REGIMES))
KEEP = ("save", "recompute")
SIZES = [(6, 3), (20, 4), (36, 2)]
"""Units and heads: heads of 2, of 5 (no whole words of two 16-bit numbers), and of 18 (two programs)."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("hidden", "heads"), SIZES, ids=str)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_values_and_gradients_as_torch_in_float64(cell, regime, hidden, heads, dtype, device):
    case = Case(cell, regime, dtype, hidden, 3, 3, directions=1 + heads % 2, num_heads=heads)
    seed = hidden + heads
    for errors in (check_case(case, device, seed), check_gradients(case, device, seed, KEEP[hidden // 4 % 2])):
        assert errors.ok, f"{case}: {errors}, allowed {errors.tolerance}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if not cell.startswith(("rnn_relu", "lstm_"))])
def test_with_random_features(cell, regime, seed, device):
    call = draw_call(cell, seed + sum(map(ord, cell + regime)), heads=2 + seed % 2)
    for name, errors in errors_of(call, regime.rpartition("/")[2], KEEP[seed % 2], device).items():
        assert errors.ok, f"{call}, {name}: {errors}"


def results(case, layer, **options):
    """y, final states and all gradients of a case, and how many launches they took."""
    shared = (case.config, layer.x, layer.weights(CPU), layer.hx)
    dy, *d_final = layer.loss_weights()
    with interpret(**options) as interpreter:
        y, final, residuals = forward_layer(case.problem, *shared, keep="save")
        backward = replace(case.problem, phase="backward")
        found = backward_layer(backward, *shared, y, residuals, dy, d_final)
    gradients = [found.x, *found.initial, *(g for own in found.weights for g in own if g is not None)]
    return [y, *final, *gradients], interpreter.launches


@pytest.mark.sampled(1)
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize("cell", ["gru_reset_before", "lstm"])
def test_heads_that_do_not_fit_at_once_take_turns(cell, exchange, split, monkeypatch):
    """A head of 20 units is a team of 2: of 3 heads 6 programs, or as many as there is room for.

    Where there is room for one team alone, a head that waited for another would wait for ever.
    """
    config = Config("cooperative", 16, 16, 32, exchange=exchange, SPLIT_K=split)
    monkeypatch.setattr(Case, "config", config)
    case = Case(cell, "cooperative", torch.float32, 60, 3, 2, num_heads=3)
    layer, found = Layer(case, seed=1), []
    for resident, launches in [(132, 2), (5, 4), (2, 6)]:
        tensors, count = results(case, layer, seed=resident, resident_programs=resident)
        assert count == launches
        found.append(tensors)
    for other in found[1:]:
        assert all(torch.equal(together, in_turn) for together, in_turn in zip(found[0], other, strict=True))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", ["gru_reset_before", "slstm"])
def test_a_head_sees_no_other(cell, regime):
    """NaN in one head's h_0 changes no bit of the others' results."""
    case = Case(cell, regime, torch.float32, 40, 3, 3, num_heads=2)
    layer = Layer(case, seed=2)
    (y, *final), (spoilt, *others) = (results_with(layer, case, value) for value in (0.5, float("nan")))
    assert spoilt[..., :20].isnan().any()
    assert torch.equal(spoilt[..., 20:], y[..., 20:])
    assert all(torch.equal(a[..., 20:], b[..., 20:]) for a, b in zip(final, others, strict=True))


def results_with(layer, case, value):
    layer.hx[0][..., 3] = value
    with interpret(seed=3):
        return layer.kernels(CPU)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("heads", [2, 5, 24])
def test_where_a_head_stays_on_chip_follows_from_its_size(cell, heads):
    """The heuristic finds a kernel for heads where it finds one for a layer of a head's size, in the same regime."""
    for size, limits, phase in itertools.product((7, 32, 100, 256, 768, 1024), (H100, A100), ("forward", "backward")):
        one = choose(Problem(cell, torch.bfloat16, size, 16, phase=phase), limits)
        several = choose(Problem(cell, torch.bfloat16, heads * size, 16, phase=phase, num_heads=heads), limits)
        assert isinstance(one, Config) == isinstance(several, Config)


def test_twelve_heads_of_64_are_single_programs():
    for phase in ("forward", "backward"):
        found = choose(Problem("lstm", torch.bfloat16, 768, 16, phase=phase, num_heads=12), H100)
        assert found.regime == "single_cta"


def test_results_of_one_head_are_found_under_their_old_names():
    """A key names its heads only where there are several: what was tuned before there were any is still found."""
    one, several = (key_of(Problem("lstm", torch.bfloat16, 768, 16, num_heads=n)) for n in (1, 12))
    assert "num_heads" not in one.asdict()
    assert one.name == "lstm-forward-bfloat16-h768-b16-long-2f5adbf5"
    assert several.asdict()["num_heads"] == 12
    assert several.name != one.name
    for key in (one, several):
        assert from_fields(Key, key.asdict()) == key
        assert problem_of(key).num_heads == key.num_heads
