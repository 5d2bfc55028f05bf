"""Lengths, packed rows, resets, dropout of h, zoneout and every cell in the time loops: values and gradients as those
of the plain recurrence in float64, for random combinations."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import holdfast
from holdfast.bench.check import features
from holdfast.bench.check.features import Call, draw_call, errors_of, plainly, small_config
from holdfast.cells.eager.activations import ACTIVATIONS
from holdfast.kernels import gemm, layer
from holdfast.kernels.cell_spec import CELLS, find_cell
from holdfast.kernels.extras import Extras
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.kept import Keep
from holdfast.kernels.layer import LayerWeights, forward_layer
from holdfast.kernels.problem import FEATURES, Problem

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NAMES = [*CELLS, "lstm(softsign,hard_sigmoid)", "gru(elu,sigmoid)", "lstm_peephole(softsign,sigmoid)"]
REGIMES = ["single_cta", "dataflow", "barrier"]


def assert_right(call: Call, regime: str, keep: Keep, device: torch.device) -> None:
    for name, errors in errors_of(call, regime, keep, device).items():
        assert errors.ok, f"{name}: {errors}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("cell", "regime"), list(itertools.product(NAMES, REGIMES)))
def test_random_combinations(cell, regime, seed, device):
    call = draw_call(cell, seed + sum(map(ord, cell + regime)))
    assert_right(call, regime, ("save", "recompute")[seed % 2], device)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "regime"), list(itertools.product(NAMES, REGIMES)))
def test_many_random_combinations(cell, regime, device):
    for _ in range(40):
        seed = random.randrange(2**31)
        try:
            assert_right(draw_call(cell, seed), regime, ("save", "recompute")[seed % 2], device)
        except Exception as error:
            raise AssertionError(f"draw_call({cell!r}, {seed})") from error


@pytest.mark.parametrize("error", [8e-7, 3e-6])
def test_an_error_is_right_where_torchs_own_may_be_as_large_nearby(error, monkeypatch):
    """By luck torch errs by 1.9e-7 in this call, and by up to 4.1e-7 a thousandth away: 8e-7 are allowed, 3e-6 not."""
    call = draw_call("rnn_tanh", 1810123310)
    right = plainly(call, torch.float64)
    beside = {name: (value * (1 + error)).float() for name, value in right.items()}
    monkeypatch.setattr(features, "through_kernels", lambda *arguments: beside)
    found = errors_of(call, "dataflow", "save", torch.device("cpu"))
    assert all(errors.ok for errors in found.values()) == (error < 1e-6)


def test_the_draws_reach_every_feature():
    calls = [draw_call("lstm", seed) for seed in range(100)]
    given = {"lengths": "lengths", "resets": "resets", "reset_state": "reset_state", "recurrent_dropout": "dropout"}
    given |= {"zoneout": "zoneout", "packed": "packed"}
    assert set(given) == set(FEATURES)
    for name in given.values():
        assert (
            10
            < sum(
                getattr(call, name) not in (None, False) if name == "packed" else getattr(call, name) is not None
                for call in calls
            )
            < 90
        )


def dense(cell="lstm", T=6, B=3, H=20, **arguments):
    generator = torch.Generator().manual_seed(7)
    spec = find_cell(cell)
    rows = spec.gates * H

    def randn(*size):
        return torch.randn(*size, generator=generator)

    weights = [[randn(rows, 3) / 2, randn(rows, H) / H**0.5, randn(rows) / 3, randn(rows) / 3]]
    gradients = [randn(T, B, H), *(randn(1, B, H) for _ in range(spec.states))]
    return Call(cell, randn(T, B, 3), weights, gradients=gradients, **arguments)


def forward(call, regime, **extras):
    config = small_config(regime, call.hidden)
    given = Extras(**extras)
    problem = Problem(call.cell, torch.float32, call.hidden, call.x.shape[1], features=given.features)
    weights = [LayerWeights(*own) for own in call.weights]
    return forward_layer(problem, config, call.x, weights, extras=given)[:2]


@pytest.mark.parametrize("regime", REGIMES)
def test_the_steps_past_the_longest_row_are_not_walked(regime):
    """A tile ends with its longest row: with one step each, no program has more turns than a sequence of one step."""
    call = dense(T=40)
    lengths = torch.ones(3, dtype=torch.int64)
    with interpret() as few:
        forward(call, regime, lengths=lengths)
    call.x = call.x[:1]
    with interpret() as one:
        forward(call, regime, lengths=lengths)
    assert len(few.trace) <= len(one.trace) + 20


@pytest.mark.parametrize("regime", REGIMES)
def test_lengths_out_of_range_are_clamped(regime):
    """On a device nobody can check them without waiting for it; they must not read or write out of bounds."""
    call = dense(T=4)
    with interpret():
        found = forward(call, regime, lengths=torch.tensor([9, -3, 2]))
        expected = forward(call, regime, lengths=torch.tensor([4, 0, 2]))
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize("regime", REGIMES)
def test_a_reset_state_may_hold_the_sentinel(regime):
    """The NaN whose bits mean "not yet written" in a user's reset state is a NaN and nobody waits for it."""
    call = dense(T=3)
    state = torch.zeros(1, 3, 20)
    state[0, 1, 4] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    resets = torch.tensor([[False] * 3, [True] * 3, [False] * 3])
    with interpret():
        y, _ = forward(call, regime, resets=resets, reset_state=[state, torch.zeros_like(state)])
    assert y[1:, 1].isnan().all()
    assert not y[:, [0, 2]].isnan().any()
    assert not y[0].isnan().any()


@pytest.mark.parametrize("regime", REGIMES)
def test_a_row_that_has_ended_leaves_the_others_alone(regime):
    """NaN past a row's end reaches nothing."""
    call = dense(T=5)
    lengths = torch.tensor([2, 5, 3])
    with interpret():
        clean = forward(call, regime, lengths=lengths)
        call.x[2:, 0] = float("nan")
        call.x[3:, 2] = float("nan")
        dirty = forward(call, regime, lengths=lengths)
    assert torch.equal(clean[0], dirty[0])
    assert (dirty[0][2:, 0] == 0).all()
    assert (dirty[0][3:, 2] == 0).all()


def test_what_overflowed_in_a_rows_last_step_reaches_no_gradient(monkeypatch):
    """The step behind it has a gradient of zero, which times infinity is NaN."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    module, x = holdfast.RNN(3, 16, nonlinearity="relu"), torch.randn(4, 2, 3)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1.0)
    x[1, 0], dy = 3e38, torch.randn(4, 2, 16)
    gradients = []
    for backend in ("eager", "triton"):
        with interpret(), holdfast.backend(backend):
            module.zero_grad()
            y, _ = module(x, lengths=torch.tensor([2, 4]))
            y.backward(dy)
        assert y[1, 0].isinf().all()
        gradients.append(module.weight_hh_l0.grad)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=str)
def test_padding_reaches_no_gradient(options):
    module, gradients = holdfast.GRU(3, 16, **options), []
    x, past = torch.randn(4, 4, 3), torch.arange(4) >= torch.tensor([[2], [4], [0], [1]])
    for padding in (0.0, torch.nan, torch.inf):
        padded = torch.where((past if module.batch_first else past.t()).unsqueeze(-1), padding, x).requires_grad_()
        with interpret(), holdfast.backend("triton"):
            y, h = module(padded, lengths=torch.tensor([2, 4, 0, 1]))
        gradients.append([y, h, *torch.autograd.grad(y.sum() + h.sum(), [padded, *module.parameters()])])
    for other in gradients[1:]:
        assert all(map(torch.equal, gradients[0], other))


@pytest.mark.parametrize("cell", ["RNN", "LSTM"])
def test_the_initial_state_of_a_row_without_steps_reaches_no_gradient(cell, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")  # TF32, torch's default, errs by 1e-3
    module, x = getattr(holdfast, cell)(3, 16), torch.randn(4, 2, 3)
    h = torch.randn(1, 2, 16)
    h[0, 1] = torch.inf
    gradients = []
    for backend in ("eager", "triton"):
        module.zero_grad()
        with interpret(), holdfast.backend(backend):
            y, _ = module(x, (h, h) if cell == "LSTM" else h, lengths=torch.tensor([4, 0]))
        y.sum().backward()
        gradients.append(module.weight_hh_l0.grad)
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("cell", ["gru({},sigmoid)", "lstm(tanh,{})"])
def test_activations(cell, name, device):
    call = dense(cell.format(name), T=2, H=16)
    call.x = call.x / 2
    assert_right(call, "single_cta", "save", device)


@pytest.mark.parametrize("regime", ["single_cta", "barrier"])
def test_offsets_beyond_31_bits(regime, monkeypatch):
    """Rows of a packed sequence 2^27 apart, offsets beyond 2^31, in memory reserved but hardly touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    call, apart = dense("rnn_tanh", T=3, B=2, H=16), 2**27
    lengths, far = torch.tensor([3, 3]), torch.arange(3) * apart
    rows = (far[:, None] + torch.arange(2)).flatten()
    with interpret():
        projected = gemm.project_input(problem_of(call), call.x, [LayerWeights(*call.weights[0])], batch_first=False)
        expected = forward(call, regime)
        gx = torch.empty(1, 2 * apart + 2, 16)
        gx[0, rows] = projected.flatten(1, 2)[0]
        monkeypatch.setattr(layer, "project_input", lambda *arguments, **options: gx)
        call.x = call.x.new_empty(1, call.x.shape[-1]).expand(gx.shape[1], -1)
        found = forward(call, regime, lengths=lengths, starts=far)
    assert far[-1] * 16 >= 2**31
    assert torch.equal(found[0][rows], expected[0].flatten(0, 1))
    assert torch.equal(found[1][0], expected[1][0])


def problem_of(call, **options):
    return Problem(call.cell, torch.float32, call.hidden, call.x.shape[1], **options)
