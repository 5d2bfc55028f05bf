"""layer_norm=True: Ba et al.'s equations, written out row by row and head by head, on every path; what it goes with."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import triton
from torch import Tensor

import holdfast
from holdfast.autotune.pin import pinned
from holdfast.bench.check.features import draw_call, errors_of
from holdfast.bench.check.layer import Case, Layer, check_case, check_gradients
from holdfast.bench.method.judge import compare_all
from holdfast.cells.eager.reference import REFERENCES
from holdfast.kernels.activations import tanh
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.describe import team_size
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.normalise import normalised, through_normalised

ALONE = Config("single_cta", 16, 32, 32)
TEAMS = {
    "dataflow": Config("cooperative", 16, 16, 32),
    "barrier": Config("cooperative", 16, 16, 32, exchange="barrier"),
}
"""Of several programs, of whose 20 or 40 units the last has fewer."""
CPU = torch.device("cpu")
S, TANH = torch.sigmoid, torch.tanh


@pytest.fixture
def products_in_float32():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def norm(values: Tensor) -> Tensor:
    """Equation 4, over the last dimension."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def lstm_step(w, u, gains, x, h, c):
    """One row of one head: equations 20 to 22."""
    of_x, of_h, bias, of_c, bias_of_c = gains
    i, f, g, o = (norm(w @ x) * of_x + norm(u @ h) * of_h + bias).chunk(4)
    c = S(f) * c + S(i) * TANH(g)
    return S(o) * TANH(norm(c) * of_c + bias_of_c), c


def gru_step(w, u, gains, x, h, reset_after=True):
    """Equations 23 to 25; before them the formula of 2014 with its second product normalised by itself."""
    of_x, of_h, bias, bias_of_n = gains
    x_r, x_z, x_n = (norm(w @ x) * of_x + bias).chunk(3)
    H = len(h)
    a = norm(u @ h) * of_h if reset_after else norm(u[: 2 * H] @ h) * of_h[: 2 * H]
    r, z = S(x_r + a[:H]), S(x_z + a[H : 2 * H])
    if reset_after:
        n = TANH(x_n + r * (a[2 * H :] + bias_of_n))
    else:
        n = TANH(x_n + norm(u[2 * H :] @ (r * h)) * of_h[2 * H :] + bias_of_n)
    return ((1 - z) * n + z * h,)


def by_the_equations(module: holdfast.LSTM | holdfast.GRU, x: Tensor) -> list[Tensor]:
    """y and the final states of one layer and direction from zeros."""
    is_lstm = isinstance(module, holdfast.LSTM)
    gates, heads, H = 4 if is_lstm else 3, module.num_heads, module.hidden_size
    w_ih, w_hh = (w.unflatten(0, (gates, heads, -1)) for w in (module.weight_ih_l0, module.weight_hh_l0))
    rows = module.layer_norm_l0.unflatten(1, (heads, -1))
    ys, finals = [], []
    for row in x.unbind(1):
        of_heads = []
        for head in range(heads):
            own = rows[:, head]
            parts = own.split([gates, gates, gates, *([1, 1] if is_lstm else [1])])
            gains = [part.flatten() for part in parts]
            w, u = w_ih[:, head].flatten(0, 1), w_hh[:, head].flatten(0, 1)
            states = (x.new_zeros(H // heads),) * module.n_states
            hs = []
            for step in row:
                if is_lstm:
                    states = lstm_step(w, u, gains, step, *states)
                else:
                    states = gru_step(w, u, gains, step, *states, reset_after=module.reset_after)
                hs.append(states[0])
            of_heads.append((torch.stack(hs), *states))
        y, *final = (torch.cat(each, -1) for each in zip(*of_heads, strict=True))
        ys.append(y)
        finals.append(final)
    return [torch.stack(ys, 1), *(torch.stack(each).unsqueeze(0) for each in zip(*finals, strict=True))]


def by_the_module(module, x):
    y, hx = module(x)
    return [y, *(hx if isinstance(hx, tuple) else (hx,))]


def results(run, module, x):
    x = x.clone().requires_grad_()
    found = run(module, x)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in found]
    return [*found, *torch.autograd.grad(found, [x, *module.parameters()], weights)]


def drawn(kind, hidden=20, **options):
    module = kind(3, hidden, layer_norm=True, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("layer_norm"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


KINDS = {"lstm": (holdfast.LSTM, {}), "gru": (holdfast.GRU, {})}
KINDS |= {f"{name} of 2 heads": (kind, {"num_heads": 2}) for name, (kind, _) in [*KINDS.items()]}
BEFORE = {"gru, reset before": (holdfast.GRU, {"reset_after": False, "num_heads": 2})}


@pytest.mark.parametrize(("kind", "options"), (KINDS | BEFORE).values(), ids=KINDS | BEFORE)
def test_plain_steps_equal_the_equations(kind, options):
    module, x = drawn(kind, 6, **options).double(), torch.randn(4, 2, 3, dtype=torch.float64)
    both = results(by_the_module, module, x), results(by_the_equations, module, x)
    for found, right in zip(*both, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("products_in_float32")
@pytest.mark.sampled(1)
@pytest.mark.parametrize("config", [ALONE, *TEAMS.values()], ids=["alone", *TEAMS])
@pytest.mark.parametrize(("kind", "options"), (KINDS | BEFORE).values(), ids=KINDS | BEFORE)
def test_kernels_equal_the_equations(kind, options, config):
    module, x = drawn(kind, 20 * options.get("num_heads", 1), **options), torch.randn(3, 2, 3)
    plain = results(by_the_equations, module, x)
    exact = results(by_the_equations, module.double(), x.double())
    with interpret(), holdfast.backend("triton"), pinned(config):  # a kernel or an error
        found = results(by_the_module, module.float(), x)
    for index, errors in enumerate(compare_all(found, plain, exact, torch.float32, 2.0**-22)):
        assert errors.ok, f"{index}: {errors}"


CELL_NAMES = ("lstm_layer_norm", "gru_layer_norm", "gru_reset_before_layer_norm")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("regime", ["single_cta", "cooperative/dataflow", "cooperative/barrier"])
@pytest.mark.parametrize("cell", [*CELL_NAMES, "lstm_layer_norm(softsign,hard_sigmoid)"])
def test_with_every_feature(cell, regime, heads):
    """Random calls with lengths, packed rows, resets, dropout and zoneout, all gradients; v is worked out again."""
    for seed in (3, 4):
        with interpret():
            for name, errors in errors_of(draw_call(cell, seed, heads), regime, "save", CPU).items():
                assert errors.ok, f"{seed} {name}: {errors}"


@pytest.mark.parametrize("length", [1, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exchange", TEAMS)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_odd_sizes(cell, exchange, dtype, length):
    """100 units, whose last program has four, three rows, and steps enough for many rounds, or a single one."""
    case = Case(cell, f"cooperative/{exchange}", dtype, hidden_size=100, batch_size=3, length=length)
    with interpret():
        assert (errors := check_case(case, CPU, 0)).ok, errors
        if dtype == torch.float32:
            errors = check_gradients(case, CPU, 0, "save")
            assert errors.ok, errors


def test_the_check_takes_the_means_of_each_head():
    """`holdfast check` compares with plain steps, whose W_hh is one matrix: its zeros do not tell them of heads."""
    with interpret():
        errors = check_gradients(
            Case("gru_layer_norm", "single_cta", torch.float32, 6, 2, 2, num_heads=2), CPU, 0, "save"
        )
    assert errors.ok, errors


def test_a_team_that_shares_one_programs_product_loses_no_bit():
    """A layer norm of one unit's c is zero, whatever c is; less a c of 23 bits it would be hundreds of roundings."""
    case = Case("lstm_layer_norm", "single_cta", torch.float32, hidden_size=1, batch_size=1, length=1, bias=False)
    layers = [Layer(replace(case, regime=f"cooperative/{exchange}"), 264) for exchange in TEAMS] + [Layer(case, 264)]
    assert all(team_size(layer.case.problem, layer.case.config) > 1 for layer in layers[:-1])
    with interpret():
        *teams, alone = (layer.kernels(CPU) for layer in layers)
    for found in teams:
        assert all(map(torch.equal, found, alone))


@pytest.mark.parametrize("ptx_executor", ["sm_90"], indirect=True)
def test_a_gradient_less_its_own_mean_is_zero(ptx_executor):
    """Of a single unit. A compiler made one instruction of the gradient's product and the subtraction."""
    case = Case("gru_reset_before_layer_norm", "single_cta", torch.float32, 1, 1, 1, bias=False)
    errors = check_gradients(case, CPU, 234, "save")
    assert errors.ok, errors
    assert ptx_executor.launches


def test_a_mean_far_from_zero_costs_no_digits():
    """Thousands of standard deviations from zero: by sums of squares a variance in float32 has no digit left.

    torch's error is the rounding of the preactivations to 24 bits. Ours is that and the rounding of what crosses the
    team to 23, which is twice as much: three times torch's in all.
    """
    torch.manual_seed(0)
    module, x = drawn(holdfast.LSTM, 40), torch.randn(2, 2, 3)
    with torch.no_grad():
        module.weight_ih_l0[:] = 0.01 * module.weight_ih_l0 + 3.0
    plain = module(x)[0]
    exact = module.double()(x.double())[0]
    with interpret(), holdfast.backend("triton"), pinned(TEAMS["barrier"]):
        found = module.float()(x)[0]
    (errors,) = compare_all([found], [plain], [exact], torch.float32, 2.0**-22)
    assert errors.ours <= 3 * errors.tolerance, errors


def test_programs_have_the_same_mean():
    """Bit for bit, in whatever order they publish: the same call under other schedules."""
    module, x = drawn(holdfast.GRU, 40), torch.randn(3, 2, 3)
    found = []
    for seed in range(3):
        with interpret(seed), holdfast.backend("triton"), pinned(TEAMS["dataflow"]):
            found.append(module(x)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("exchange", TEAMS)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_compiled_kernels(cell, exchange, phase, ptx_executor):
    """In the PTX executor: forwards three programs, so that the fourth's numbers are copies."""
    case = Case(cell, f"cooperative/{exchange}", torch.bfloat16, hidden_size=40, batch_size=3, length=3)
    errors = check_case(case, CPU, 0) if phase == "forward" else check_gradients(case, CPU, 0, "save")
    assert errors.ok, errors
    assert ptx_executor.launches


def test_the_next_step_gets_c_as_it_is():
    """PyTorch's benchmarks/fastrnns hands on the normalised one, whose mean is its bias."""
    _, (_, c) = drawn(holdfast.LSTM, 6)(torch.randn(4, 2, 3))
    assert (c.mean(-1).abs() > 1e-3).all()


@pytest.mark.usefixtures("products_in_float32")
def test_a_gradient_of_a_gradient():
    """From the kernels, through plain steps, whose means are each head's own."""
    module, x = drawn(holdfast.LSTM, 8, num_heads=2), torch.randn(3, 2, 3, requires_grad=True)

    def twice() -> Tensor:
        (first,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    with interpret(), holdfast.backend("triton"), pinned(ALONE):
        found = twice()
    plain = twice()
    module, x = module.double(), x.detach().double().requires_grad_()
    exact = twice()
    (errors,) = compare_all([found], [plain], [exact], torch.float32, 2.0**-22)
    assert errors.ok, errors


def test_surface():
    module = holdfast.LSTM(3, 8, 2, bidirectional=True, layer_norm=True, num_heads=2, zoneout=0.1)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert "bias_ih_l0" not in shapes
    assert shapes["layer_norm_l1_reverse"] == (14, 8)
    assert "layer_norm=True" in repr(module)
    for parameter in (module.layer_norm_l0, drawn(holdfast.GRU).layer_norm_l0):
        assert len(parameter) in (14, 10)
    with torch.no_grad():
        module.layer_norm_l0.fill_(5.0)
    module.reset_parameters()
    assert module.layer_norm_l0[:, 0].tolist() == [1.0] * 8 + [0.0] * 4 + [1.0, 0.0]
    assert holdfast.GRU(3, 8, layer_norm=True).layer_norm_l0[:, 0].tolist() == [1.0] * 6 + [0.0] * 4
    other = holdfast.LSTM(3, 8, 2, bidirectional=True, layer_norm=True, num_heads=2, zoneout=0.1)
    other.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 3)
    for same in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same.eval()(x)[0], module.eval()(x)[0])
    stream = holdfast.Stateful(drawn(holdfast.GRU, 8, num_heads=2))
    whole = stream.module(x)[0]
    torch.testing.assert_close(torch.cat([stream(x[:2]), *(stream.step(row)[None] for row in x[2:])]), whole)


@pytest.mark.parametrize("kind", [pytest.param(holdfast.LSTM, marks=pytest.mark.thorough), holdfast.GRU])
def test_compiled_and_exported(kind):
    module, x = drawn(kind, 8), torch.randn(5, 2, 3)
    right = module(x)[0]
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x)[0], right)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x)[0], right)


def test_who_runs_it():
    x = torch.randn(5, 2, 3)
    with interpret():
        for module, regime in (
            (holdfast.LSTM(3, 32, layer_norm=True), "single_cta"),
            (holdfast.LSTM(3, 512, layer_norm=True), "cooperative"),
            (holdfast.GRU(3, 512, layer_norm=True, reset_after=False), "cooperative"),
        ):
            assert module.explain(x).regime == regime
        (reason,) = drawn(holdfast.LSTM, 8).explain(x, return_gates=True).reasons
        assert reason.name == "values_not_kept"
    assert drawn(holdfast.LSTM, 8)(x, return_gates=True)[2][0]["i"].shape == (5, 2, 8)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (holdfast.LSTM, {"bias": False}, "bias does not go with layer_norm, got bias=False, layer_norm=True"),
        (holdfast.LSTM, {"peepholes": True}, "peepholes does not go with layer_norm, got peepholes=True"),
        (holdfast.LSTM, {"forget_bias": 1.0}, "forget_bias does not go with layer_norm, got forget_bias=1.0"),
        (holdfast.LSTM, {"proj_size": 2}, "layer_norm does not go with proj_size, got layer_norm=True, proj_size=2"),
        (holdfast.GRU, {"bias": False}, "bias does not go with layer_norm, got bias=False, layer_norm=True"),
    ],
)
def test_refusals(kind, options, said):
    with pytest.raises(ValueError, match=said):
        kind(3, 8, layer_norm=True, **options)
    with pytest.raises(TypeError, match="layer_norm should be of type bool"):
        kind(3, 8, layer_norm=1)
    with pytest.raises(TypeError, match="layer_norm"):
        holdfast.RNN(3, 8, layer_norm=True)


# A cell of one's own with a normalised preactivation.


@triton.jit
def gates_of(x, a, state, p):
    scaled, scales = normalised(((x[0] + a[0],),), p[1], 0)
    return tanh(scaled[0][0] * p[0][0]), scaled[0][0], scales[0]


@triton.jit
def update(v, state, p):
    return (v[0],)


@triton.jit
def gradients(d, v, before, after, p):
    dn = d[0] * (1.0 - v[0] * v[0])
    da = through_normalised(((dn * p[0][0],),), ((v[1],),), (v[2],), p[1], 1)
    return da[0], da[0], (d[0] * 0.0,), (dn * v[1],)


def reference(x, product, states, parameters):
    gain, heads = parameters
    h = TANH(norm((x + product(states[0])).unflatten(-1, (heads, -1))).flatten(-2) * gain)
    return (h,), (h,)


@pytest.mark.usefixtures("products_in_float32")
def test_a_cell_of_ones_own():
    functions = {"gates_of": gates_of, "update": update, "gradients": gradients, "reference": reference}
    name = holdfast.define_cell(
        "normal_rnn", gates=1, states=1, values=3, parameters=1, normalised=2, gate_names=("n",), **functions
    )
    try:
        module, x = holdfast.Recurrent(name, 3, 40, num_heads=2), torch.randn(4, 2, 3)
        plain = results(by_the_module, module, x)
        exact = results(by_the_module, module.double(), x.double())
        for config in (ALONE, TEAMS["barrier"]):
            with interpret(), holdfast.backend("triton"), pinned(config):
                found = results(by_the_module, module.float(), x)
            for index, errors in enumerate(compare_all(found, plain, exact, torch.float32, 2.0**-22)):
                assert errors.ok, f"{index}: {errors}"
    finally:
        del CELLS[name], REFERENCES[name]


@pytest.mark.parametrize("make", [holdfast.LSTM, lambda *sizes, **o: holdfast.GRU(*sizes, reset_after=False, **o)])
def test_what_a_module_prints_makes_it_anew(make):
    module = make(3, 8, num_heads=2, layer_norm=True)
    again = eval(f"holdfast.{module!r}")
    assert repr(again) == repr(module)
    assert [p.shape for p in again.parameters()] == [p.shape for p in module.parameters()]
