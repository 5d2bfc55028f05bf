"""Options that torch.nn's modules do not have: parameters, copies, conversion, masks, and what they compute."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import holdfast
from holdfast.cells.eager.activations import ACTIVATIONS
from holdfast.cells.eager.noise import draw

T, B, INPUT, HIDDEN = 6, 3, 2, 4
X = torch.randn(T, B, INPUT)

OPTIONS = [
    pytest.param(holdfast.RNN, {"recurrent_dropout": 0.3, "zoneout": 0.2}, "rnn_tanh", id="rnn"),
    pytest.param(holdfast.RNN, {"nonlinearity": "relu", "learn_initial_state": True}, "rnn_relu", id="rnn_relu"),
    pytest.param(holdfast.GRU, {"reset_after": False}, "gru_reset_before", id="gru_reset_before"),
    pytest.param(holdfast.GRU, {"activation": "elu"}, "gru(elu,sigmoid)", id="gru"),
    pytest.param(
        holdfast.LSTM,
        {"peepholes": True, "recurrent_activation": "hard_sigmoid", "forget_bias": 1.0, "zoneout": (0.1, 0.3)},
        "lstm_peephole(tanh,hard_sigmoid)",
        id="lstm_peephole",
    ),
    pytest.param(holdfast.LSTM, {"learn_initial_state": True, "forget_bias": 2}, "lstm", id="lstm"),
]


def seeded(module, *args, **arguments):
    torch.manual_seed(5)
    y, final = module(*args, **arguments)
    return [y, *(final if isinstance(final, tuple) else (final,))]


def same(results, expected):
    assert all(torch.equal(p, q) for p, q in zip(results, expected, strict=True))


@pytest.mark.parametrize(("kind", "options", "cell"), OPTIONS)
def test_modules_with_options(kind, options, cell):
    """Name, repr, state_dict, copies and pickles."""
    module = kind(INPUT, HIDDEN, 2, bidirectional=True, **options)
    assert module.cell == cell
    shown = [f"{name}={value!r}" for name, value in options.items() if name != "nonlinearity"]
    assert all(part in repr(module) for part in shown)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    expected = seeded(module, X, lengths=[6, 2, 0])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        same(seeded(other, X, lengths=[6, 2, 0]), expected)
        assert repr(other) == repr(module)
    fresh = kind(INPUT, HIDDEN, 2, bidirectional=True, **options)
    fresh.load_state_dict(module.state_dict(), strict=True)
    same(seeded(fresh, X, lengths=[6, 2, 0]), expected)
    by_name = [getattr(module, name) for name in module._flat_weights_names]
    assert all(weight is parameter for weight, parameter in zip(module.flat_weights(), by_name, strict=True))


@pytest.mark.parametrize(("kind", "options", "cell"), OPTIONS)
def test_dtype_device_and_replaced_weights(kind, options, cell):
    module = kind(INPUT, HIDDEN, **options).double()
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    before = seeded(module, X.double())[0]
    for name in [name for name, _ in module.named_parameters()]:
        setattr(module, name, nn.Parameter(getattr(module, name).detach() + 1))
    assert not torch.equal(seeded(module, X.double())[0], before)
    meta = kind(INPUT, HIDDEN, device="meta", **options)
    assert meta(X.to("meta"))[0].shape == (T, B, HIDDEN)
    meta.to_empty(device="cpu").reset_parameters()
    assert all(p.isfinite().all() for p in meta.parameters())


def test_the_same_seed_gives_the_weights_of_torch():
    """Whatever is added is drawn after them."""
    options = {"peepholes": True, "learn_initial_state": True, "zoneout": 0.1}
    torch.manual_seed(3)
    ours = holdfast.LSTM(INPUT, HIDDEN, 2, **options)
    torch.manual_seed(3)
    theirs = nn.LSTM(INPUT, HIDDEN, 2)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter)
    added = set(ours.state_dict()) - set(theirs.state_dict())
    assert added == {"weight_peephole_l0", "weight_peephole_l1", "initial_h", "initial_c"}
    assert not ours.initial_h.any()
    assert ours.initial_c.shape == (2, 1, HIDDEN)
    assert 0 < ours.weight_peephole_l1.abs().max() <= HIDDEN**-0.5
    assert ours._flat_weights_names[4:6] == ["weight_peephole_l0", "weight_ih_l1"]


@pytest.mark.parametrize("value", [1.0, -2])
def test_forget_bias(value):
    module = holdfast.LSTM(INPUT, HIDDEN, 2, bidirectional=True, forget_bias=value)
    plain = holdfast.LSTM(INPUT, HIDDEN)
    for name, bias in module.named_parameters():
        if name.startswith("bias"):
            i, f, g, o = bias.detach().chunk(4)
            assert (f == (value if "ih" in name else 0)).all()
            assert all(gate.std() > 0 for gate in (i, g, o))
    nn.init.zeros_(module.bias_ih_l1)
    nn.init.ones_(module.bias_hh_l1)
    module.reset_parameters()
    assert (module.bias_ih_l1[HIDDEN : 2 * HIDDEN] == value).all()
    assert not module.bias_hh_l1[HIDDEN : 2 * HIDDEN].any()
    assert plain.bias_ih_l0[HIDDEN : 2 * HIDDEN].std() > 0


def test_reset_parameters_zeroes_a_learnt_initial_state():
    module = holdfast.GRU(INPUT, HIDDEN, learn_initial_state=True)
    nn.init.ones_(module.initial_h)
    module.reset_parameters()
    assert not module.initial_h.any()


@pytest.mark.parametrize("kind", [holdfast.RNN, holdfast.GRU, holdfast.LSTM])
def test_converted_and_older_modules_take_the_new_arguments(kind):
    """They have no attribute of an option: the class answers for them."""
    module = getattr(nn, kind.__name__)(INPUT, HIDDEN, batch_first=True)
    holdfast.convert(module)
    assert type(module) is kind
    assert not {"zoneout", "activation", "learn_initial_state"} & set(module.__dict__)
    x = X.transpose(0, 1)
    y, _ = module(x, lengths=[2, 0, 6], resets=torch.rand(B, T) < 0.3)
    assert not y[1].any()
    holdfast.to_torch(module)
    assert type(module) is getattr(nn, kind.__name__)


def test_to_torch_refuses_what_torch_lacks_and_changes_nothing():
    model = nn.ModuleDict({"plain": holdfast.GRU(2, 3), "gru": holdfast.GRU(2, 3, reset_after=False, zoneout=0.5)})
    with pytest.raises(ValueError, match=r"torch.nn has nothing for zoneout=0.5, reset_after=False of 'gru'"):
        holdfast.to_torch(model)
    assert type(model["plain"]) is holdfast.GRU
    with pytest.raises(ValueError, match=r"torch.nn has nothing for peepholes=True$"):
        holdfast.to_torch(holdfast.LSTM(2, 3, peepholes=True))
    with pytest.raises(ValueError, match=r"torch.nn has nothing for holdfast.Stateful of '0'"):
        holdfast.to_torch(nn.Sequential(holdfast.Stateful(holdfast.LSTM(2, 3))))
    with pytest.raises(ValueError, match=r"torch.nn has nothing for holdfast.Recurrent$"):
        holdfast.to_torch(holdfast.Recurrent("gru", 2, 3))


def test_activations_given_by_name_are_torch_s_where_they_are_its_own():
    torch.manual_seed(0)
    a = holdfast.LSTM(INPUT, HIDDEN, activation="tanh", recurrent_activation="sigmoid")
    assert a.cell == "lstm"
    assert repr(a) == "LSTM(2, 4)"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_is_a_function_of_the_output(name):
    """Which is all that a kernel keeps: two inputs with the same output have the same derivative."""
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64, requires_grad=True)
    y = ACTIVATIONS[name](x)
    (dy,) = torch.autograd.grad(y.sum(), x)
    of_output = {
        "tanh": lambda y: 1 - y**2,
        "sigmoid": lambda y: y * (1 - y),
        "relu": lambda y: (y > 0).double(),
        "linear": torch.ones_like,
        "hard_sigmoid": lambda y: ((y > 0) & (y < 1)).double() / 6,
        "softsign": lambda y: (1 - y.abs()) ** 2,
        "elu": lambda y: torch.where(y > 0, 1.0, y + 1),
        "softplus": lambda y: 1 - torch.exp(-y),
        "exponential": lambda y: y,
        "selu": lambda y: torch.where(y > 0, 1.0507009873554805, y + 1.0507009873554805 * 1.6732632423543772),
    }
    torch.testing.assert_close(dy, of_output[name](y), rtol=1e-7, atol=1e-9)


# Masks

NOISY = {"recurrent_dropout": 0.4, "zoneout": 0.3}


def packed():
    return pack_sequence([torch.randn(n, INPUT) for n in (2, 5, 3)], enforce_sorted=False)


@pytest.mark.parametrize("x", [X, packed()], ids=["tensor", "packed"])
def test_masks_follow_the_seed_and_the_mode(x):
    module = holdfast.LSTM(INPUT, HIDDEN, 2, bidirectional=True, recurrent_dropout=0.4, zoneout=(0.3, 0.2))
    call = module._checked(x, None)
    torch.manual_seed(0)
    first = draw(call)
    torch.manual_seed(0)
    again = draw(call)
    steps = (T, B) if isinstance(x, torch.Tensor) else (10,)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.dropout, other.dropout)
        assert one.dropout.shape == (2, B, HIDDEN)
        assert set(one.dropout.unique().tolist()) <= {0.0, torch.tensor(1 / 0.6).item()}
        for p, q in zip(one.zoneout, other.zoneout, strict=True):
            assert torch.equal(p, q)
            assert p.shape == (*steps, 2 * HIDDEN)
            assert set(p.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first[0].dropout, first[1].dropout)
    assert not torch.equal(*first[0].zoneout)
    for dropout, zoneout in draw(module.eval()._checked(x, None)):
        assert dropout is None
        assert [(z == p).all().item() for z, p in zip(zoneout, (0.3, 0.2), strict=True)] == [True, True]
    same(seeded(module, X), seeded(module, X))
    assert torch.equal(module(X)[0], module(X)[0])
    module.train()
    assert not torch.equal(module(X)[0], module(X)[0])


def test_the_dtype_does_not_change_the_masks():
    module = holdfast.GRU(INPUT, HIDDEN, **NOISY)
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        found.append(draw(module.to(dtype)._checked(X.to(dtype), None))[0])
    for other in found[1:]:
        assert torch.equal(other.zoneout[0].float(), found[0].zoneout[0])
        assert torch.equal(other.dropout.bool(), found[0].dropout.bool())


def test_rates():
    """Of many draws as many are zero as asked for."""
    module = holdfast.RNN(1, 64, recurrent_dropout=0.25, zoneout=0.1)
    ((dropout, (zoneout,)),) = draw(module._checked(torch.zeros(50, 200, 1), None))
    assert abs((dropout == 0).float().mean() - 0.25) < 0.02  # five standard deviations of 12,800 draws
    assert abs(zoneout.mean() - 0.1) < 0.002


def test_full_zoneout_keeps_the_state():
    for module in (holdfast.GRU(INPUT, HIDDEN, zoneout=1.0), holdfast.LSTM(INPUT, HIDDEN, zoneout=(1.0, 1.0))):
        h = torch.randn(1, B, HIDDEN)
        y, final = module(X, h if module.n_states == 1 else (h, h))
        assert torch.equal(y, h.expand(T, -1, -1))
        same(final if isinstance(final, tuple) else [final], [h] * module.n_states)


def test_full_recurrent_dropout_forgets_h():
    module = holdfast.RNN(INPUT, HIDDEN, recurrent_dropout=1.0)
    each = torch.cat([module(X[t : t + 1])[0] for t in range(T)])
    torch.testing.assert_close(module(X, torch.randn(1, B, HIDDEN))[0], each)


@pytest.mark.parametrize(("name", "value"), [("recurrent_dropout", 0.5), ("zoneout", 0.5)])
def test_rates_may_be_changed_between_calls(name, value):
    """As torch.nn's dropout."""
    module = holdfast.GRU(INPUT, HIDDEN)
    before = module(X)[0]
    setattr(module, name, value)
    assert not torch.allclose(module(X)[0], before)
    setattr(module, name, 0.0)
    assert torch.equal(module(X)[0], before)


def test_eval_mode_without_zoneout_runs_torch_s_op():
    module = holdfast.LSTM(INPUT, HIDDEN, recurrent_dropout=0.5).eval()
    plan = module.explain(X)
    assert plan.op == "fused"
    assert module.train().explain(X).op == "recurrence"
