"""The backward time loops, in the concurrent interpreter or, marked gpu, compiled on the device."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from holdfast.bench.check.layer import Case, Layer, check_gradients
from holdfast.bench.check.run import DTYPES, REGIMES
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.gemm import Wanted, WeightGradients
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.layer import backward_layer, forward_layer

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("poisoned_memory")
KEEP = ["save", "recompute"]
EVERY = list(itertools.product(CELLS, REGIMES))


def assert_right(case, device, keep, seed=0):
    errors = check_gradients(case, device, seed, keep)
    assert errors.ok, f"{case} {keep}: {errors}, allowed {errors.tolerance}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_as_torch_in_float64(cell, regime, keep, dtype, device):
    assert_right(Case(cell, regime, dtype, hidden_size=21, batch_size=4, length=5), device, keep)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("hidden", "batch", "length"), [(1, 1, 1), (7, 17, 2), (33, 1, 3)], ids=str)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_odd_shapes(cell, regime, hidden, batch, length, dtype, device):
    case = Case(cell, regime, dtype, hidden, batch, length, directions=2, batch_first=True)
    assert_right(case, device, KEEP[hidden % 2], seed=hidden)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "h_0"])
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_optional_arguments(cell, regime, initial, bias, device):
    assert_right(Case(cell, regime, torch.float32, 18, 3, 3, directions=2, bias=bias, initial=initial), device, "save")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_one_direction_from_the_end(cell, regime, keep, device):
    assert_right(Case(cell, regime, torch.float32, 20, 3, 4, reverse=True), device, keep)


@pytest.mark.parametrize("regime", REGIMES)
def test_many_batch_tiles_share_few_teams(regime):
    with interpret(seed=1, resident_programs=8):
        assert_right(Case("gru", regime, torch.float32, 40, 70, 2, directions=2), CPU, "recompute")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize("cell", CELLS)
def test_directions_that_do_not_fit_at_once_take_turns(cell, exchange, split, monkeypatch):
    """37 units are 3 programs a direction, forwards, and 3 or 4 backwards: two launches for each where 5 fit."""
    config = Config("cooperative", 16, 16, 32, exchange=exchange, SPLIT_K=split)
    monkeypatch.setattr(Case, "config", config)
    case = Case(cell, "cooperative", torch.float32, 37, 3, 2, directions=2)
    layer, found = Layer(case, seed=1), []
    dy, *d_final = layer.loss_weights()
    for resident, launches in [(132, 2), (5, 4)]:
        with interpret(seed=resident, resident_programs=resident) as interpreter:
            found.append(flat(gradients(case, layer, CPU, dy, d_final)))
            assert interpreter.launches == launches
    assert all(torch.equal(together, in_turn) for together, in_turn in zip(*found, strict=True))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("split", [1, 2, 8])
@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize("cell", CELLS)
def test_any_number_of_programs_may_share_a_product(cell, exchange, split, device, monkeypatch):
    """Of 8 programs for 36 units most have none of their own."""
    config = Config("cooperative", 16, 16, 32, exchange=exchange, SPLIT_K=split)
    monkeypatch.setattr(Case, "config", config)
    assert_right(Case(cell, "cooperative", torch.float32, 36, 18, 3, directions=2), device, "save", seed=split)


@pytest.mark.slow
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_long_sequences(cell, regime, keep, device):
    assert_right(Case(cell, regime, torch.float32, 17, 2, 512), device, keep)


def gradients(case, layer, device, dy, d_final, keep="save", **options):
    x, hx = layer.x.to(device), [s.to(device) for s in layer.hx]
    weights = layer.weights(device)
    y, _, residuals = forward_layer(case.problem, case.config, x, weights, hx, keep=keep)
    backward = replace(case.problem, phase="backward")
    return backward_layer(backward, case.config, x, weights, hx, y, residuals, dy, d_final, **options)


def flat(found):
    tensors = [found.x, *found.initial, *(t for w in found.weights for t in w)]
    return [t for t in tensors if t is not None]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_no_gradient_in_none_out(cell, regime, device):
    case = Case(cell, regime, torch.float32, 20, 3, 3)
    layer = Layer(case, 0)
    found = gradients(case, layer, device, torch.zeros(3, 3, 20, device=device), [None] * len(layer.hx))
    assert all(torch.equal(t, torch.zeros_like(t)) for t in flat(found))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_the_gradient_is_linear_in_its_outputs(cell, regime, device):
    """Of y alone and of the final states alone add up to that of both."""
    case = Case(cell, regime, torch.float32, 20, 3, 3)
    layer = Layer(case, 1)
    dy, *d_final = (t.to(device) for t in layer.loss_weights())
    both = flat(gradients(case, layer, device, dy, d_final))
    of_y = flat(gradients(case, layer, device, dy, [None] * len(d_final)))
    of_states = flat(gradients(case, layer, device, None, d_final))
    for a, b, c in zip(both, of_y, of_states, strict=True):
        torch.testing.assert_close(a, b + c)


@pytest.mark.parametrize("regime", REGIMES)
def test_every_schedule_gives_the_same_bits(regime):
    case = Case("gru", regime, torch.bfloat16, 37, 20, 3, directions=2)
    layer = Layer(case, 2)
    results = []
    for seed in range(3):
        with interpret(seed=seed):
            results.append(layer.gradients(CPU, "recompute"))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_a_sequence_in_two_halves_is_the_sequence(cell, regime, device):
    """The gradient of the second half's initial state, handed to the first half, is the whole's gradient."""
    case = Case(cell, regime, torch.float32, 24, 3, 6)
    layer = Layer(case, 3)
    dy, *d_final = (t.to(device) for t in layer.loss_weights())
    x, hx, weights = layer.x.to(device), [s.to(device) for s in layer.hx], layer.weights(device)
    backward = replace(case.problem, phase="backward")

    def run(x, hx, dy, d_final):
        y, final, residuals = forward_layer(case.problem, case.config, x, weights, hx, keep="save")
        return final, lambda dy, d: backward_layer(backward, case.config, x, weights, hx, y, residuals, dy, d)

    whole = run(x, hx, dy, d_final)[1](dy, d_final)
    middle, first = run(x[:3], hx, None, None)
    _, second = run(x[3:], middle, None, None)
    later = second(dy[3:], d_final)
    earlier = first(dy[:3], later.initial)
    torch.testing.assert_close(torch.cat([earlier.x, later.x]), whole.x)
    for a, b, c in zip(whole.initial, earlier.initial, whole.initial, strict=True):
        torch.testing.assert_close(a, b)
        assert c.isfinite().all()
    for a, b, c in zip(whole.weights[0], earlier.weights[0], later.weights[0], strict=True):
        if a is not None:
            torch.testing.assert_close(a, b + c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("regime", REGIMES)
def test_any_strides_of_dy(regime, device):
    case = Case("lstm", regime, torch.float32, 20, 4, 3)
    layer = Layer(case, 4)
    dy, *d_final = (t.to(device) for t in layer.loss_weights())
    expected = flat(gradients(case, layer, device, dy, d_final))
    for view in (dy.transpose(0, 1).contiguous().transpose(0, 1), dy.permute(2, 1, 0).contiguous().permute(2, 1, 0)):
        assert all(
            torch.equal(a, b)
            for a, b in zip(flat(gradients(case, layer, device, view, d_final)), expected, strict=True)
        )
    one = torch.ones((), device=device).expand(3, 4, 20)
    for a, b in zip(
        flat(gradients(case, layer, device, one, d_final)),
        flat(gradients(case, layer, device, one.contiguous(), d_final)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("regime", REGIMES)
def test_an_empty_batch(regime, device):
    case = Case("lstm", regime, torch.float32, 8, batch_size=0)
    layer = Layer(case, 5)
    found = gradients(case, layer, device, torch.zeros(5, 0, 8, device=device), [None, None])
    assert found.x.shape == (5, 0, 6)
    assert all(w is None or not w.any() for w in found.weights[0])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("field", Wanted._fields)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_a_gradient_alone_is_that_among_all(cell, regime, field, device):
    case = Case(cell, regime, torch.float32, 20, 3, 3, directions=2)
    layer = Layer(case, 6)
    dy, *d_final = (t.to(device) for t in layer.loss_weights())
    found = [
        gradients(case, layer, device, dy, d_final, wanted=wanted)
        for wanted in (Wanted(), Wanted(*[name == field for name in Wanted._fields]))
    ]
    everything, alone = (
        {"x": g.x, "initial": g.initial, "reset_state": g.reset_state}
        | {name: tuple(getattr(w, name) for w in g.weights) for name in WeightGradients._fields}
        for g in found
    )
    for name, value in alone.items():
        if name == field:
            torch.testing.assert_close(value, everything[name], rtol=0, atol=0)
        else:
            assert not any(t is not None for t in (value if isinstance(value, tuple) else (value,))), name


def test_recompute_keeps_at_most_half():
    """Bytes between forward and backward, beyond inputs and outputs."""

    def held(cell, keep):
        case = Case(cell, "single_cta", torch.float32, 20)
        layer = Layer(case, 7)
        with interpret():
            _, _, residuals = forward_layer(case.problem, case.config, layer.x, layer.weights(CPU), layer.hx, keep=keep)
        return sum(t.nbytes for t in (*residuals.kept, residuals.saved) if t is not None)

    for cell, spec in CELLS.items():
        # What a second product multiplies comes back from no single GEMM: such a cell always saves.
        assert held(cell, "recompute") <= held(cell, "save") / (2 if spec.inner is None else 1)
