"""A cell of one's own: its definition, its module, its kernels, and what is refused."""

import copy
import pickle

import pytest
import torch
import triton
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import holdfast
from holdfast.cells.eager.reference import REFERENCES
from holdfast.kernels.activations import sigmoid, tanh
from holdfast.kernels.cell_spec import CELLS, find_cell
from holdfast.kernels.interpreter import interpret

T, B, INPUT, HIDDEN = 5, 3, 2, 4


# A leaky update gate unit (Collins et al. 2016's UGRNN) whose gate also sees its unit's own h, and which hands on a
# trace of its updates as a second state.


@triton.jit
def gates_of(x, a, state, p):
    return sigmoid(x[0] + a[0] + p[0] * state[0]), tanh(x[1] + a[1])


@triton.jit
def update(v, state, p):
    u, n = v
    return u * state[0] + (1.0 - u) * n, p[1] * state[1] + u


@triton.jit
def gradients(d, v, before, after, p):
    u, n = v
    du = (d[0] * (before[0] - n) + d[1]) * u * (1.0 - u)
    dn = d[0] * (1.0 - u) * (1.0 - n * n)
    return (du, dn), (du, dn), (d[0] * u + du * p[0], d[1] * p[1]), (du * before[0], d[1] * before[1])


def reference(x, product, states, parameters):
    h, s = states
    peep, decay = parameters
    u, n = (x + product(h)).chunk(2, -1)
    u, n = torch.sigmoid(u + peep * h), torch.tanh(n)
    return (u * h + (1 - u) * n, decay * s + u), (u, n)


DEFINITION = {
    "gates": 2,
    "states": 2,
    "values": 2,
    "gates_of": gates_of,
    "update": update,
    "gradients": gradients,
    "reference": reference,
    "gate_names": ("u", "n"),
    "parameters": 2,
}


@pytest.fixture
def cell():
    """The cell, forgotten again after the test."""
    name = holdfast.define_cell("leaky", **DEFINITION)
    yield name
    del REFERENCES[name], CELLS[name]


def test_definition(cell):
    assert cell == "leaky"
    spec = find_cell(cell)
    assert (spec.gates, spec.states, spec.values, spec.saved, spec.parameters) == (2, 2, 2, 2, 2)
    assert spec.gate_names == ("u", "n")
    assert not spec.split_gradient


def test_module(cell):
    module = holdfast.Recurrent(cell, INPUT, HIDDEN, 2, bidirectional=True, learn_initial_state=True)
    assert repr(module) == "Recurrent('leaky', 2, 4, num_layers=2, bidirectional=True, learn_initial_state=True)"
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["weight_ih_l1_reverse"] == (2 * HIDDEN, 2 * HIDDEN)
    assert shapes["weight_hh_l0"] == (2 * HIDDEN, HIDDEN)
    assert shapes["weight_unit_l0"] == (2, HIDDEN)
    assert shapes["initial_h"] == shapes["initial_c"] == (4, 1, HIDDEN)
    assert all(0 < p.abs().max() <= HIDDEN**-0.5 for name, p in module.named_parameters() if "initial" not in name)
    x = torch.randn(T, B, INPUT)
    y, (h, s), gates = module(x, lengths=[5, 0, 2], return_gates=True)
    assert y.shape == (T, B, 2 * HIDDEN)
    assert h.shape == s.shape == (4, B, HIDDEN)
    assert list(gates[0]) == ["u", "n", "h", "c"]
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x, lengths=[5, 0, 2])[0], y)


def test_equals_a_plain_loop(cell):
    """Both directions, with lengths and resets to a given state, row by row."""
    module = holdfast.Recurrent(cell, INPUT, HIDDEN, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    hx = tuple(torch.randn(2, B, HIDDEN, dtype=torch.float64) for _ in range(2))
    new = tuple(torch.randn(2, 1, HIDDEN, dtype=torch.float64) for _ in range(2))
    resets, lengths = torch.rand(T, B) < 0.4, [4, 0, 5]
    y, finals = module(x, hx, lengths=lengths, resets=resets, reset_state=new)
    for direction, suffix in enumerate(("", "_reverse")):
        w_ih, w_hh, b_ih, b_hh, unit = (
            getattr(module, f"{n}_l0{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_unit")
        )
        for b in range(B):
            h, s = (state[direction, b] for state in hx)
            walk = range(lengths[b]) if direction == 0 else reversed(range(lengths[b]))
            for t in walk:
                if resets[t, b] if direction == 0 else t + 1 < lengths[b] and resets[t + 1, b]:
                    h, s = (state[direction, 0] for state in new)
                u, n = (w_ih @ x[t, b] + b_ih + w_hh @ h + b_hh).chunk(2)
                u = torch.sigmoid(u + unit[0] * h)
                h, s = u * h + (1 - u) * n.tanh(), unit[1] * s + u
                torch.testing.assert_close(y[t, b].chunk(2)[direction], h)
            torch.testing.assert_close((finals[0][direction, b], finals[1][direction, b]), (h, s))


def test_options_and_inputs(cell):
    module = holdfast.Recurrent(cell, INPUT, HIDDEN, recurrent_dropout=0.5, zoneout=(1.0, 0.0), batch_first=True)
    x = torch.randn(B, T, INPUT)
    h, s = torch.randn(2, 1, B, HIDDEN)
    y, (final, _) = module(x, (h, s))
    assert torch.equal(final, h)
    assert torch.equal(y, h.transpose(0, 1).expand(-1, T, -1))
    y, (h, s) = module(x[0], (h[:, 0], s[:, 0]))
    assert (y.shape, h.shape, s.shape) == ((T, HIDDEN), (1, HIDDEN), (1, HIDDEN))
    module = holdfast.Recurrent(cell, INPUT, HIDDEN)
    parts = [torch.randn(n, INPUT) for n in (2, 5)]
    packed, finals = module(pack_sequence(parts, enforce_sorted=False))
    for k, part in enumerate(parts):
        torch.testing.assert_close(tuple(f[:, k] for f in finals), module(part)[1])
    assert packed.data.shape == (7, HIDDEN)
    stream = holdfast.Stateful(module)
    torch.testing.assert_close(torch.stack([stream.step(row.unsqueeze(0))[0] for row in parts[1]]), module(parts[1])[0])


@pytest.mark.parametrize(
    ("hx", "error", "message"),
    [
        (torch.zeros(1, B, HIDDEN), ValueError, "'leaky' should be a tuple of 2 tensors, got Tensor"),
        ((torch.zeros(1, B, HIDDEN),) * 3, ValueError, "'leaky' should be a tuple of 2 tensors, got 3 of them"),
        (
            (torch.zeros(1, B, HIDDEN), torch.zeros(1, B, 5)),
            RuntimeError,
            r"Expected hidden\[1\] size \(1, 3, 4\)",
        ),
        ((torch.zeros(1, B, HIDDEN), torch.zeros(B, HIDDEN)), RuntimeError, "hx should also be 3-D but got 2-D"),
    ],
    ids=["tensor", "three", "size", "rank"],
)
def test_hx_of_another_form(cell, hx, error, message):
    with pytest.raises(error, match=message):
        holdfast.Recurrent(cell, INPUT, HIDDEN)(torch.randn(T, B, INPUT), hx)


def test_kernels_equal_the_reference(cell):
    """Through the registered op in the interpreter: values and gradients."""
    module = holdfast.Recurrent(cell, INPUT, HIDDEN, bidirectional=True)
    x = torch.randn(T, B, INPUT, requires_grad=True)
    with holdfast.backend("eager"):
        y, finals = module(x)
    sources = [x, *module.parameters()]
    expected = torch.autograd.grad((y.sin().sum() + finals[1].sin().sum()), sources)
    with interpret(seed=0) as running:
        results = torch.ops.holdfast.layer(
            x, module.flat_weights(), [None, None], cell, 2, False, "float32", "ieee", "save"
        )
        found = torch.autograd.grad(results[0].sin().sum() + results[2].sin().sum(), sources)
    assert running.launches == 2
    torch.testing.assert_close(tuple(results[:3]), (y, *finals), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
def test_built_in_cells_are_torch_s(name):
    ours = holdfast.Recurrent(name, INPUT, HIDDEN, 2, bidirectional=True)
    kind = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[name]
    more = {"nonlinearity": "relu"} if name == "rnn_relu" else {}
    theirs = kind(INPUT, HIDDEN, 2, bidirectional=True, **more)
    assert ours.mode == theirs.mode
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(T, B, INPUT)
    for p, q in zip(ours(x), theirs(x), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(p, q, strict=True))


def test_names_with_activations():
    module = holdfast.Recurrent("lstm_peephole(relu,hard_sigmoid)", INPUT, HIDDEN)
    same = holdfast.LSTM(INPUT, HIDDEN, peepholes=True, activation="relu", recurrent_activation="hard_sigmoid")
    assert same.cell == module.cell
    weights = {name.replace("unit", "peephole"): p for name, p in module.state_dict().items()}
    same.load_state_dict(weights)
    x = torch.randn(T, B, INPUT)
    torch.testing.assert_close(module(x), same(x))


@pytest.mark.parametrize("name", ["lstmm", "lstm(relu)", "rnn_tanh(relu,relu)", "lstm(gelu,sigmoid)", ""])
def test_unknown_cells(name):
    with pytest.raises(ValueError, match=r"should be one of '"):
        holdfast.Recurrent(name, INPUT, HIDDEN)


def test_constructor_checks_are_torch_s(cell):
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        holdfast.Recurrent(cell, INPUT, 0)
    with pytest.raises(TypeError, match="bias should be of type bool, got: int"):
        holdfast.Recurrent(cell, INPUT, HIDDEN, bias=1)
    without = holdfast.Recurrent(cell, INPUT, HIDDEN, bias=False)
    assert [name for name, _ in without.named_parameters()] == ["weight_ih_l0", "weight_hh_l0", "weight_unit_l0"]
    without(torch.randn(T, B, INPUT))[0].sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": 3}, TypeError, "name should be a string, got 3"),
        (
            {"name": "Leaky"},
            ValueError,
            "name should be of lower-case letters, digits and underscores, .*, got 'Leaky'",
        ),
        ({"name": "a(b,c)"}, ValueError, "name should be of lower-case letters"),
        ({"name": "lstm"}, ValueError, "name should be new, but there is a cell 'lstm' already; choose another"),
        ({"name": "rnn_relu"}, ValueError, "there is a cell 'rnn_relu' already"),
        ({"gates": 0}, ValueError, "gates should be at least 1, got 0"),
        ({"states": 1.0}, TypeError, "states should be an int, got 1.0"),
        ({"parameters": -1}, ValueError, "parameters should be at least 0, got -1"),
        ({"saved": 3}, ValueError, "saved should be from 0 to values, 2, got 3"),
        ({"outer_gates": 1}, TypeError, "inner should be a function under @triton.jit, got NoneType"),
        (
            {"inner": update, "outer_gradients": update, "outer_gates": 2},
            ValueError,
            "outer_gates should be from 1 to gates - 1, 1, with inner, got 2",
        ),
        ({"split_gradient": None}, TypeError, "split_gradient should be of type bool, got: NoneType"),
        ({"update": reference}, TypeError, "update should be a function under @triton.jit, got function"),
        ({"gate_names": "un"}, TypeError, "gate_names should be a sequence of strings, got 'un'"),
        ({"gate_names": ("u", "u")}, ValueError, "gate_names should differ .*, got 'u' twice"),
        ({"gate_names": ("u", "h")}, ValueError, "gate_names should differ .*, got 'h' twice"),
        (
            {"gate_names": ("u",)},
            ValueError,
            "should return as gates a tuple of 1 tensors .*, got a tuple of 2: a tensor",
        ),
        (
            {"gates": 3},
            ValueError,
            r"reference failed on x \[2, 9\], 2 states \[2, 3\] and 2 parameters",
        ),
        ({"reference": lambda *_: None}, ValueError, r"reference should return \(states, gates\), got NoneType"),
        (
            {"reference": lambda x, product, states, parameters: (states[0], (x, x))},
            ValueError,
            r"return as states a tuple of 2 tensors of the states' shape \[2, 3\], got a tensor \[2, 3\]",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_definitions_that_are_refused(change, error, message):
    before = dict(CELLS), dict(REFERENCES)
    with pytest.raises(error, match=message):
        holdfast.define_cell(**{"name": "leaky", **DEFINITION, **change})
    assert before == (CELLS, REFERENCES)


def test_a_name_is_given_once(cell):
    with pytest.raises(ValueError, match="there is a cell 'leaky' already; choose another"):
        holdfast.define_cell("leaky", **DEFINITION)
