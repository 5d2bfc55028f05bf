"""Nothing outside a tensor is read or written: guard bands around every allocation, views at odd strides and offsets,
and every address of every access for all small sizes.

The interpreter knows every element of a launch's tensors (kernels/weak_memory.py): an access to anything else, a gap
between a view's rows or a band, is an OutOfBoundsError at once. On a GPU bands that were written are seen afterwards,
and what was read there shows in the results; `make sanitize` looks at every access.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from guards import BAND, GuardBandError, guarded, inside_bands

import holdfast
from holdfast.autotune.pin import kernels_where_they_can, pinned
from holdfast.bench.check.features import draw_call, errors_of
from holdfast.bench.check.layer import Case, Layer
from holdfast.bench.check.run import REGIMES
from holdfast.kernels import launch
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.executor import executing_on
from holdfast.kernels.interpreter import Interpreter, OutOfBoundsError, interpret
from holdfast.kernels.layer import forward_layer

CPU = torch.device("cpu")
EVERY = list(itertools.product(CELLS, REGIMES))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden", [5, 20, 37])
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_guard_bands_stay_and_nobody_reads_them(cell, regime, hidden, dtype, device):
    """Every tensor of a call forwards and backwards in bands of its own, fresh memory NaN, x and hx odd views: the
    same bits as without all that."""
    case = Case(cell, regime, dtype, hidden, batch_size=3, length=3, directions=2)
    layer = Layer(case, seed=13)
    plain = results(case, layer, device)
    _, B, inputs = layer.x.shape
    layer.x = inside_bands(layer.x, (B * (inputs + 3) + 7, inputs + 3, 1), offset=1)
    layer.hx = tuple(inside_bands(h, (5, 2 * hidden * 3 + 1, 2), offset=3) for h in layer.hx)
    with guarded() as allocated:
        found = results(case, layer, device)
    assert len(allocated) > 8
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def results(case, layer, device):
    return [*layer.kernels(device), *layer.gradients(device, "save").values()]


@pytest.mark.parametrize("where", [slice(0, BAND), slice(-BAND, None)], ids=["before", "behind"])
def test_a_band_that_is_written_is_noticed(where):
    def spill():
        with guarded() as allocated:
            torch.empty(3)
            torch.empty_like(torch.zeros(3))
            allocated[2][where][BAND // 2] = 1

    with pytest.raises(GuardBandError, match=r"1 bytes (before|behind) allocation 2 of 12 bytes were written"):
        spill()


def test_fresh_memory_is_nan_and_filled_memory_is_not():
    with guarded():
        assert torch.empty(5, dtype=torch.bfloat16).isnan().all()
        assert not torch.zeros(5).any()
        assert (torch.full((5,), 3, dtype=torch.int32) == 3).all()


# Every address.


@pytest.mark.parametrize("regime", REGIMES)
def test_all_small_sizes_stay_inside(regime):
    """Some T, B and H around the tile sizes: tiles of 2 rows, 4 units, 8 columns, so that every remainder occurs."""
    pick = random.Random(14)
    sizes = list(itertools.product(range(1, 4), range(1, 4), range(1, 10)))
    for T, B, H in pick.sample(sizes, 4):
        walk(pick.choice(["rnn_tanh", "gru"]), regime, T, B, H, pick)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_all_sizes_up_to_two_tiles_stay_inside(cell, regime):
    """Every T from 1 to 3, B from 1 to 4 and H from 1 to 9, a unit more than two tiles: 108 layers each, forwards and
    backwards."""
    pick = random.Random(15)
    for T, B, H in itertools.product(range(1, 4), range(1, 5), range(1, 10)):
        walk(cell, regime, T, B, H, pick)


def tiles_of_two_rows(regime, H, split):
    if regime == "single_cta":
        block = 1 << (H - 1).bit_length()
        return Config("single_cta", 2, block, block)
    return Config("cooperative", 2, 4, 8, exchange=regime.split("/")[1], SPLIT_K=split)


def walk(cell, regime, T, B, H, pick):
    config = tiles_of_two_rows(regime, H, pick.choice([1, 2]))
    case = Case(cell, regime, torch.float32, H, B, T, directions=pick.choice([1, 2]))
    layer = Layer(case, seed=T * 100 + B * 10 + H)
    with pytest.MonkeyPatch.context() as patch, interpret(seed=H, resident_programs=8), guarded():
        patch.setattr(Case, "config", config)
        found = results(case, layer, CPU)
    assert all(tensor.isfinite().all() for tensor in found), (case, config)


def every_lengths():
    """All lengths of at most three rows of at most three steps, none included, and which of them can be packed."""
    for T, B in itertools.product(range(1, 4), range(1, 4)):
        for lengths in itertools.product(range(T + 1), repeat=B):
            yield T, lengths, False
            if lengths[0] == T and lengths[-1] > 0 and list(lengths) == sorted(lengths, reverse=True):
                yield T, lengths, True


@pytest.mark.parametrize("regime", REGIMES)
def test_some_lengths_stay_inside(regime):
    for T, lengths, packed in random.Random(17).sample(list(every_lengths()), 3):
        walk_lengths(regime, T, lengths, packed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("regime", REGIMES)
def test_all_lengths_of_three_rows_and_steps_stay_inside(regime):
    for T, lengths, packed in every_lengths():
        walk_lengths(regime, T, lengths, packed)


def walk_lengths(regime, T, lengths, packed):
    """A GRU in both directions, padded or packed, forwards and backwards, of a tile and a part of one along each axis:
    accesses lie as in any other cell."""
    torch.manual_seed(T)
    gru = holdfast.GRU(3, 5, bidirectional=True)
    x = torch.randn(T, len(lengths), 3, requires_grad=True)
    config = tiles_of_two_rows(regime, 5, 1 + sum(lengths) % 2)
    executor = Interpreter(seed=sum(lengths), resident_programs=8)
    with executing_on(executor), guarded(), kernels_where_they_can(), pinned(config):
        if packed:
            y = gru(torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths)))[0].data
        else:
            y, _ = gru(x, lengths=torch.tensor(lengths))
        y.sum().backward()
    assert executor.launches == 2
    found = [y, x.grad, *(weight.grad for weight in gru.parameters())]
    assert all(tensor.isfinite().all() for tensor in found), (T, lengths, packed, config)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_every_feature_stays_inside(cell, regime, seed):
    """Lengths, packed rows, resets, reset states, dropout and zoneout as they are drawn, in bands."""
    call = draw_call(cell, 1000 + seed)
    with interpret(seed), guarded():
        errors = errors_of(call, regime, "save", CPU)
    assert all(error.ok for error in errors.values()), (str(call), errors)


def test_a_wild_access_would_be_found(monkeypatch):
    """A launch that is told of one row more than there is."""
    case = Case("lstm", "cooperative/barrier", torch.float32, 8, batch_size=3, length=2)
    layer = Layer(case, seed=16)
    real = launch.Launcher.interpret

    def one_row_more(self, executor, groups):
        real(self, executor, groups | {"B": groups["B"] + 1})

    monkeypatch.setattr(launch.Launcher, "interpret", one_row_more)
    with interpret(), pytest.raises(OutOfBoundsError, match="elements outside every tensor of its launch"):
        forward_layer(case.problem, case.config, layer.x, layer.weights(CPU), layer.hx)
