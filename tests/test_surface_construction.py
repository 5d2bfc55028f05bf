"""Construction: signature, checks, parameters, attributes, repr and state_dict are those of torch.nn."""

import inspect

import pytest
import torch
from torch import nn

import holdfast

torch.set_num_threads(1)

PAIRS = [
    pytest.param(holdfast.RNN, nn.RNN, id="rnn"),
    pytest.param(holdfast.GRU, nn.GRU, id="gru"),
    pytest.param(holdfast.LSTM, nn.LSTM, id="lstm"),
]
OPTIONS = [
    {},
    {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.1, "bidirectional": True},
    {"num_layers": 3, "dropout": 1},
    {"bidirectional": 1},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16, "bidirectional": True},
]


def outcome(function, *args, **kwargs):
    """What a call comes to: its result, or the type and message of its error."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)


def variants(ours, theirs):
    """Both modules of every kind that the class has: nonlinearities of RNN, projections of LSTM."""
    yield {}
    if theirs is nn.RNN:
        yield {"nonlinearity": "relu"}
    if theirs is nn.LSTM:
        yield {"proj_size": 2}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_seed_gives_same_module(ours, theirs, options):
    for variant in variants(ours, theirs):
        torch.manual_seed(3)
        a = ours(3, 4, **options, **variant)
        after = torch.rand(1)
        torch.manual_seed(3)
        b = theirs(3, 4, **options, **variant)
        assert torch.equal(after, torch.rand(1)), "the generator was left elsewhere"

        assert repr(a) == repr(b)
        assert list(a.state_dict()) == list(b.state_dict())
        for (name, p), (other_name, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            assert name == other_name
            assert p.dtype == q.dtype
            assert torch.equal(p, q)
        assert a.__dict__.keys() == b.__dict__.keys()
        for name in set(b.__dict__) - {"_parameters", "_flat_weights", "_flat_weight_refs"}:
            assert a.__dict__[name] == b.__dict__[name], name
        assert [[id(p) for p in layer] for layer in a.all_weights] == [
            [id(a.get_parameter(name)) for name in layer] for layer in b._all_weights
        ]
        assert a.__constants__ == b.__constants__
        assert a.__jit_unused_properties__ == b.__jit_unused_properties__


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_state_dict_loads_both_ways(ours, theirs):
    for variant in variants(ours, theirs):
        a, b = (make(3, 4, num_layers=2, bidirectional=True, **variant) for make in (ours, theirs))
        a.load_state_dict(b.state_dict(), strict=True)
        x = torch.randn(5, 2, 3)
        assert torch.equal(a(x)[0], b(x)[0])
        c = ours(3, 4, num_layers=2, bidirectional=True, **variant)
        b.load_state_dict(c.state_dict(), strict=True)
        assert torch.equal(c(x)[0], b(x)[0])


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"dropout": "a"},
        {"dropout": "0.5"},
        {"dropout": -0.1},
        {"dropout": 1.1},
        {"dropout": True},
        {"dropout": None},
        {"bias": 1},
        {"bias": 1, "batch_first": 1},
        {"batch_first": None},
        {"input_size": 3.0},
        {"input_size": 0},
        {"input_size": -1, "hidden_size": 1.5},
        {"hidden_size": 4.0},
        {"hidden_size": 0},
        {"num_layers": 0},
        {"num_layers": -1, "hidden_size": 0},
        {"num_layers": 1.5},
        {"dropout": 2.0, "bias": 1},
        {"proj_size": 2},
        {"proj_size": -1},
        {"proj_size": 4},
        {"proj_size": 4, "num_layers": 0},
        {"nonlinearity": "x"},
        {"nonlinearity": "x", "dropout": "a"},
        {"nonlinearity": None},
        {"nonsense": 1},
        {"device": "nonsense"},
        {"dtype": torch.int32},
    ],
    ids=str,
)
def test_refused_in_the_same_words(ours, theirs, arguments):
    unknown = {"nonsense", "nonlinearity"} & set(arguments)
    arguments = {"input_size": 3, "hidden_size": 4, **arguments}
    expected = outcome(theirs, **arguments)
    result = outcome(ours, **arguments)
    if isinstance(expected, nn.Module):
        assert repr(result) == repr(expected)
    elif theirs is nn.LSTM and unknown:
        # An explicit signature names LSTM.__init__ where torch.nn's names RNNBase.__init__.
        assert result[0] is expected[0] is TypeError
    else:
        assert result == expected


@pytest.mark.parametrize("ours", [holdfast.RNN, holdfast.GRU, holdfast.LSTM])
def test_missing_and_unknown_arguments_are_type_errors(ours):
    for call in (lambda: ours(), lambda: ours(3), lambda: ours(3, 4, nonsense=1)):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_dropout_on_one_layer_warns(ours, theirs):
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last") as expected:
        theirs(3, 4, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last") as warned:
        ours(3, 4, dropout=0.5)
    assert str(warned[0].message) == str(expected[0].message)


def test_positional_arguments():
    """nonlinearity is the fourth of RNN alone."""
    assert repr(holdfast.RNN(3, 4, 2, "relu", False, True)) == repr(nn.RNN(3, 4, 2, "relu", False, True))
    assert holdfast.RNN(3, 4, 2, "relu").mode == "RNN_RELU"
    arguments = (3, 4, 2, False, True, 0.5, True)
    assert repr(holdfast.GRU(*arguments)) == repr(nn.GRU(*arguments))
    assert repr(holdfast.LSTM(*arguments, 2)) == repr(nn.LSTM(*arguments, 2))


@pytest.mark.parametrize("ours", [holdfast.RNN, holdfast.GRU, holdfast.LSTM])
def test_explicit_signature(ours):
    """Where torch.nn has (*args, **kwargs) and skip_init refuses it."""
    names = list(inspect.signature(ours).parameters)
    assert names[:3] == ["input_size", "hidden_size", "num_layers"]
    assert {"device", "dtype"} <= set(names)
    module = nn.utils.skip_init(ours, 3, 4, bidirectional=True)
    module.reset_parameters()
    assert module(torch.randn(5, 2, 3))[0].shape == (5, 2, 8)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_methods_and_attributes_of_torch(ours, theirs):
    def public(kind):
        return {name for name in dir(kind) if not name.startswith("__")}

    assert public(theirs(3, 4)) <= public(ours(3, 4))
    assert issubclass(ours, nn.RNNBase)
    # What torch.compile refuses.
    assert not issubclass(ours, (nn.RNN, nn.GRU, nn.LSTM))


@pytest.mark.parametrize("ours", [holdfast.RNN, holdfast.GRU, holdfast.LSTM])
def test_meta_device_and_device_context(ours):
    with torch.device("meta"):
        module = ours(3, 4)
    assert all(p.is_meta for p in module.parameters())
    assert module(torch.randn(5, 2, 3, device="meta"))[0].shape == (5, 2, 4)
    module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)
    assert all(w is p for w, p in zip(module._flat_weights, module.parameters(), strict=True))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_reset_parameters_draws_as_torch(ours, theirs):
    a, b = ours(3, 4, 2), theirs(3, 4, 2)
    for module in (a, b):
        torch.manual_seed(1)
        module.reset_parameters()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
