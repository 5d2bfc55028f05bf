"""The forward time loops, in the concurrent interpreter or, marked gpu, compiled on the device."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from holdfast.bench.check.features import most_units
from holdfast.bench.check.layer import Case, Layer, check_case
from holdfast.bench.check.run import DTYPES, REGIMES
from holdfast.kernels import launch
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.launch import NotResidentError
from holdfast.kernels.layer import project_input, run_layer
from holdfast.kernels.stall import StalledError, raise_if_stalled

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def assert_right(case: Case, device: torch.device, seed: int = 0) -> None:
    errors = check_case(case, device, seed)
    assert errors.ok, f"{case}: {errors}, allowed {errors.tolerance}"


def outputs(case: Case, device: torch.device, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return Layer(case, seed).kernels(device)


EVERY = list(itertools.product(CELLS, REGIMES))


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_as_torch_in_float64(cell, regime, dtype, device):
    assert_right(Case(cell, regime, dtype, hidden_size=37, batch_size=5, length=6), device)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("hidden", "batch", "length"), [(1, 1, 1), (7, 17, 2), (16, 16, 3), (33, 1, 4), (100, 3, 2)], ids=str
)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_odd_shapes(cell, regime, hidden, batch, length, device):
    dtype = torch.float32 if hidden <= most_units(regime, torch.float32) else torch.float16
    case = Case(cell, regime, dtype, hidden, batch, length, directions=2, batch_first=True)
    assert_right(case, device, seed=hidden)


@pytest.mark.sampled
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "h_0"])
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_optional_arguments(cell, regime, initial, bias, device):
    assert_right(Case(cell, regime, torch.bfloat16, 21, 4, 4, directions=2, bias=bias, initial=initial), device)


@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_one_direction_from_the_end(cell, regime, device):
    assert_right(Case(cell, regime, torch.float32, 20, 3, 5, reverse=True), device)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_tf32(cell, regime, device):
    assert_right(Case(cell, regime, torch.float32, 40, 3, 5, precision="tf32"), device)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_long_sequences_do_not_drift(cell, regime, device):
    assert_right(Case(cell, regime, torch.float16, 17, 2, 100), device)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "regime", "dtype"), list(itertools.product(CELLS, REGIMES, DTYPES)), ids=str)
def test_many_random_cases(cell, regime, dtype, device):
    generator = torch.Generator().manual_seed(hash((cell, regime, str(dtype))) % 2**31)

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    for seed in range(6):
        case = Case(
            cell,
            regime,
            dtype,
            hidden_size=min(draw(1, 2, 15, 31, 64, 100, 128), most_units(regime, dtype)),
            batch_size=draw(1, 3, 16, 33),
            length=draw(1, 2, 9),
            directions=draw(1, 2),
            bias=draw(False, True),
            initial=draw(False, True),
            batch_first=draw(False, True),
        )
        assert_right(case, device, seed)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_more_than_65535_steps(device):
    """Not in the PTX executor: a step there takes 5 ms and more turns than it allows a launch."""
    assert_right(Case("rnn_tanh", "single_cta", torch.float32, 3, 1, 66_000), device)


@pytest.mark.parametrize("regime", REGIMES)
def test_many_batch_tiles_share_few_teams(regime):
    """130 rows are 9 tiles; 6 resident programs are one team of 3 per direction, which visits them in turn."""
    case = Case("lstm", regime, torch.float32, 40, 130, 3, directions=2)
    with interpret(seed=1, resident_programs=6):
        assert_right(case, CPU)


@pytest.mark.parametrize("regime", REGIMES)
def test_every_schedule_gives_the_same_bits(regime):
    case = Case("gru", regime, torch.bfloat16, 37, 20, 4, directions=2)
    layer = Layer(case, seed=0)
    results = []
    for seed in range(4):
        with interpret(seed=seed):
            results.append(layer.kernels(CPU))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_a_sequence_in_two_halves_is_the_sequence(cell, regime, device):
    case = Case(cell, regime, torch.float32, 24, 3, 7)
    layer = Layer(case, seed=2)
    whole = layer.kernels(device)
    x, hx = layer.x.to(device), [s.to(device) for s in layer.hx]
    weights = layer.weights(device)
    first, states = run_layer(case.problem, case.config, x[:3], weights, hx)
    second, states = run_layer(case.problem, case.config, x[3:], weights, states)
    assert torch.equal(torch.cat([first, second]).cpu(), whole[0])
    assert all(torch.equal(a.cpu(), b) for a, b in zip(states, whole[1:], strict=True))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_batch_order_does_not_matter(cell, regime, device):
    case = Case(cell, regime, torch.float16, 24, 19, 3)
    layer = Layer(case, seed=3)
    straight = layer.kernels(device)
    order = torch.randperm(case.batch_size)
    layer.x, layer.hx = layer.x[:, order], tuple(s[:, order] for s in layer.hx)
    assert all(torch.equal(a[:, order], b) for a, b in zip(straight, layer.kernels(device), strict=True))


@pytest.mark.parametrize("regime", REGIMES)
def test_both_directions_are_two_layers(regime, device):
    """One launch for both equals one forward layer and one reverse layer."""
    case = Case("lstm", regime, torch.float32, 24, 3, 5, directions=2)
    layer = Layer(case, seed=4)
    y, h, c = layer.kernels(device)
    one = replace(case, directions=1)
    for direction, weights in enumerate(layer.weights(device)):
        hx = [s[direction : direction + 1].to(device) for s in layer.hx]
        part, states = run_layer(one.problem, one.config, layer.x.to(device), [weights], hx, reverse=direction == 1)
        assert torch.equal(part.cpu(), y[..., direction * 24 : (direction + 1) * 24])
        assert torch.equal(states[0].cpu(), h[direction : direction + 1])
        assert torch.equal(states[1].cpu(), c[direction : direction + 1])


@pytest.mark.parametrize("regime", REGIMES)
def test_any_strides_of_x(regime, device):
    case = Case("gru", regime, torch.float32, 20, 6, 4)
    layer = Layer(case, seed=5)
    expected = layer.kernels(device)
    wide = torch.randn(4, 12, 6)
    wide[:, ::2] = layer.x
    for view in (layer.x.transpose(0, 1).contiguous().transpose(0, 1), wide[:, ::2]):
        layer.x = view
        assert all(torch.equal(a, b) for a, b in zip(layer.kernels(device), expected, strict=True))
    layer.x = layer.x[:1].expand(4, -1, -1)
    assert torch.equal(layer.kernels(device)[0][0], expected[0][0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_input_projection_copies_no_x(batch_first, monkeypatch):
    x = torch.randn(4, 6, 5)
    case = Case("gru", "single_cta", torch.float32, 8, input_size=5)
    weights = Layer(case, 0).weights(CPU)
    seen = []
    addmm = torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda b, rows, *a, **k: (seen.append(rows.data_ptr()), addmm(b, rows, *a, **k))
    )
    for view in (x, x.transpose(0, 1)):
        gx = project_input(case.problem, view, weights, batch_first=batch_first)
        logical = view.transpose(0, 1) if batch_first else view
        expected = torch.nn.functional.linear(logical, weights[0].w_ih, weights[0].b_ih)
        torch.testing.assert_close(gx[0], expected)
    assert seen == [x.data_ptr()] * 2


@pytest.mark.parametrize("regime", REGIMES)
def test_an_empty_batch_launches_nothing(regime, device):
    y, h, c = outputs(Case("lstm", regime, torch.float32, 8, batch_size=0), device)
    assert y.shape == (5, 0, 8)
    assert h.shape == c.shape == (1, 0, 8)


ALL_ONES = torch.full((), -1, dtype=torch.int32).view(torch.float32)
"""The NaN whose bits are the dataflow sentinel, in a user's data."""


POISONS = [(float("nan"), torch.float32), (float("inf"), torch.float32), (ALL_ONES, torch.float32)]
POISONS += [(ALL_ONES, torch.bfloat16)]


@pytest.mark.sampled
@pytest.mark.parametrize("where", ["x", "h_0", "w_hh", "b_ih"])
@pytest.mark.parametrize("kind", POISONS, ids=["nan", "inf", "sentinel", "bfloat16 sentinel"])
@pytest.mark.parametrize(("cell", "regime"), [c for c in EVERY if c[1] != "cooperative/barrier"])
def test_nan_and_infinity_as_torch(cell, regime, kind, where, device):
    """The same elements are NaN and infinite as torch's, and nobody takes a NaN for memory not yet written."""
    value, dtype = kind
    case = Case(cell, regime, dtype, hidden_size=20, batch_size=3, length=3)
    layer = Layer(case, seed=6)
    value = torch.as_tensor(value)
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
    poison = torch.full((), -1, dtype=bits).view(dtype) if value is ALL_ONES else value.to(dtype)
    with torch.no_grad():
        if where == "x":
            layer.x[1, 1, 2] = poison
        elif where == "h_0":
            layer.hx[0][0, 1, 3] = poison
        elif where == "w_hh":
            layer.module.weight_hh_l0[4, 5] = poison
        else:
            layer.module.bias_ih_l0[4] = poison
    for ours, torchs in zip(layer.kernels(device), layer.torch_nn(torch.float64), strict=True):
        assert torch.equal(ours.isnan(), torchs.isnan())
        assert torch.equal(ours.isposinf(), torchs.isposinf())
        assert torch.equal(ours.isneginf(), torchs.isneginf())


COOPERATIVE = ["cooperative/dataflow", "cooperative/barrier"]


@pytest.mark.parametrize("regime", COOPERATIVE)
def test_a_team_whose_member_never_comes_ends_by_itself(regime, monkeypatch):
    """A bounded wait leaves NaN; the other direction's team does not notice."""
    case = Case("lstm", regime, torch.float32, 40, 3, 4, directions=2)
    layer = Layer(case, seed=7)
    monkeypatch.setattr(launch, "raise_if_stalled", lambda device: None)  # to see what the launch left behind
    with interpret(seed=7, stalled={1}, raise_on_deadlock=False) as interpreter:
        interpreter.spin_limit = 50
        y = layer.kernels(CPU)[0]
    with pytest.raises(StalledError):
        raise_if_stalled(CPU)
    arrived = [unit for unit in range(40) if not 16 <= unit < 32]
    assert y[1:, :, arrived].isnan().all()
    torch.testing.assert_close(y[..., 40:], layer.torch_nn(torch.float32)[0][..., 40:])


@pytest.mark.parametrize("regime", COOPERATIVE)
def test_a_stall_is_an_error_once(regime):
    case = Case("lstm", regime, torch.float32, 40)
    with interpret(stalled={0}, raise_on_deadlock=False) as interpreter:
        interpreter.spin_limit = 50
        with pytest.raises(StalledError, match=r"never arrived.*holdfast.backend\('eager'\)"):
            outputs(case, CPU)
    with interpret():
        assert_right(case, CPU)


@pytest.mark.parametrize("regime", COOPERATIVE)
def test_a_team_that_does_not_fit_is_not_launched(regime):
    with interpret(resident_programs=2), pytest.raises(NotResidentError, match="needs 4 programs"):
        outputs(Case("lstm", regime, torch.float32, 40), CPU)


def test_one_step_needs_no_sentinel():
    """T=1: nobody reads y, so nothing is filled; the result is right all the same."""
    with interpret():
        assert_right(Case("lstm", "cooperative/dataflow", torch.float32, 40, 2, 1), CPU)


def test_a_config_prints_what_its_regime_uses():
    assert "exchange" in str(Config("cooperative", 16, 16, 64))
    assert "exchange" not in str(Config("single_cta", 16, 16, 16))
