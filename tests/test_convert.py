"""convert() swaps modules in place and changes nothing else; to_torch() undoes it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import holdfast

torch.set_num_threads(1)

PAIRS = [
    (nn.RNN, holdfast.RNN),
    (nn.GRU, holdfast.GRU),
    (nn.LSTM, holdfast.LSTM),
    (nn.RNNCell, holdfast.RNNCell),
    (nn.GRUCell, holdfast.GRUCell),
    (nn.LSTMCell, holdfast.LSTMCell),
]
X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """One recurrent module of each kind, one of them twice, one more inside containers."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 4, nonlinearity="relu")
        self.gru = nn.GRU(4, 4, 2, dropout=0.3, bidirectional=True)
        self.lstm = nn.LSTM(8, 4, proj_size=2)
        self.cell = nn.LSTMCell(2, 4)
        self.same = self.rnn
        self.nested = nn.Sequential(nn.Linear(4, 3), nn.ModuleDict({"a": nn.LSTM(3, 4)}))

    def forward(self, x):
        for module in (self.rnn, self.gru, self.lstm):
            x = module(x)[0]
        return self.cell(x[-1])[0]


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_the_model_itself(theirs, ours):
    module = theirs(3, 4)
    assert type(holdfast.convert(module)) is ours
    assert type(holdfast.to_torch(module)) is theirs


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_everything_in_a_model():
    model = Model()
    parameters, modules = list(model.parameters()), list(model.modules())
    names = list(model.state_dict())
    torch.manual_seed(0)
    expected = model(X)

    assert holdfast.convert(model) is model
    assert [type(m).__module__.split(".")[0] for m in (model.rnn, model.gru, model.lstm, model.cell)] == [
        "holdfast"
    ] * 4
    assert type(model.nested[1]["a"]) is holdfast.LSTM
    assert model.same is model.rnn
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert all(m is n for m, n in zip(modules, model.modules(), strict=True))
    assert names == list(model.state_dict())
    torch.manual_seed(0)
    assert torch.equal(model(X), expected)

    assert holdfast.to_torch(model) is model
    assert not any(type(m).__module__.startswith("holdfast") for m in model.modules())
    torch.manual_seed(0)
    assert torch.equal(model(X), expected)


def test_converted_module_is_as_a_new_one():
    converted, new = holdfast.convert(nn.LSTM(3, 4, 2, batch_first=True)), holdfast.LSTM(3, 4, 2, batch_first=True)
    assert repr(converted) == repr(new)
    assert converted.__dict__.keys() == new.__dict__.keys()
    for copied in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert type(copied) is holdfast.LSTM
        assert torch.equal(copied(X)[0], converted(X)[0])
    with torch.no_grad():
        converted.weight_hh_l0.zero_()
    assert not torch.equal(copied(X)[0], converted(X)[0])


def test_convert_twice():
    model = holdfast.convert(holdfast.convert(Model()))
    assert type(model.gru) is holdfast.GRU


def test_training_flag_dtype_hooks_and_tying_are_kept():
    module = nn.LSTM(3, 4, bidirectional=True).double().eval()
    module.weight_hh_l0_reverse = module.weight_hh_l0
    module.weight_ih_l0.requires_grad_(False)
    calls = []
    module.register_forward_hook(lambda *args: calls.append(1))
    holdfast.convert(module)
    module(X.double())
    assert not module.training
    assert module.weight_hh_l0.dtype is torch.float64
    assert module.weight_hh_l0_reverse is module.weight_hh_l0
    assert not module.weight_ih_l0.requires_grad
    assert calls == [1]


def test_optimizer_keeps_training():
    model, reference = Model(), Model()
    reference.load_state_dict(model.state_dict())
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, reference)]
    for step in range(3):
        for m, optimizer in zip((model, reference), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            m(X).sum().backward()
            optimizer.step()
        holdfast.convert(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))


def test_pruned():
    module = nn.LSTM(3, 4)
    prune.random_unstructured(module, "weight_hh_l0", 0.5)
    expected = module(X)[0]
    holdfast.convert(module)
    assert type(module) is holdfast.LSTM
    assert torch.equal(module(X)[0], expected)
    prune.remove(module, "weight_hh_l0")
    assert isinstance(module.weight_hh_l0, nn.Parameter)


def test_parametrized():
    module = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    expected = module(X)[0]
    holdfast.convert(module)
    assert isinstance(module, holdfast.LSTM)
    assert type(module).__name__ == "ParametrizedLSTM"
    assert torch.equal(module(X)[0], expected)
    with torch.no_grad():
        # deepcopy refuses the graph that a forward with gradients leaves in _flat_weights, in torch.nn as well.
        module(X)
        copied = copy.deepcopy(module)
        module.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.equal(module(X)[0], expected)
    assert torch.equal(copied(X)[0], expected)

    holdfast.to_torch(module)
    assert isinstance(module, nn.LSTM)
    nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is nn.LSTM


def test_parametrized_then_converted_then_removed():
    module = holdfast.convert(parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"))
    nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is holdfast.GRU


class Gated(nn.LSTM):
    """Somebody's LSTM that computes something else."""

    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


def test_subclasses_are_left_alone():
    model = nn.Sequential(Gated(3, 4), parametrizations.weight_norm(Gated(3, 4), "weight_hh_l0"), nn.GRU(3, 4))
    kinds = [type(m) for m in model][:2]
    expected = model[0](X)[0]
    holdfast.convert(model)
    assert [type(m) for m in model] == [*kinds, holdfast.GRU]
    assert torch.equal(model[0](X)[0], expected)


def test_subclass_of_ours_is_left_alone_by_to_torch():
    class Mine(holdfast.LSTM):
        pass

    module = Mine(3, 4)
    assert type(holdfast.to_torch(module)) is Mine


def test_model_without_recurrence():
    model = nn.Linear(3, 4)
    with pytest.warns(UserWarning, match=r"swapped nothing: no RNN.* in this model\n.*plain list.*holdfast\.patch"):
        assert holdfast.convert(model) is model
    assert holdfast.to_torch(model) is model


def test_nothing_swapped_warns_with_the_reason():
    with pytest.warns(UserWarning, match=r"swapped nothing: a  .*Gated  left: a subclass .*subclasses=\[Gated\]"):
        holdfast.convert(nn.ModuleDict({"a": Gated(3, 4)}))


@pytest.mark.filterwarnings("error::UserWarning")
def test_no_warning_where_something_is_holdfasts():
    holdfast.convert(holdfast.convert(Model()))
    holdfast.convert(nn.Sequential(nn.GRU(3, 4), Gated(3, 4)))


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning")
def test_report(capsys):
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM})
    model = nn.ModuleDict({"ours": nn.GRU(3, 4), "cell": nn.LSTMCell(3, 4), "theirs": Gated(3, 4)})
    model.update({"scripted": torch.jit.script(nn.GRU(3, 4)), "int8": quantised, "head": nn.Linear(4, 2)})
    before = holdfast.conversion_report(model)
    assert [found.name for found in before.converted] == []
    assert before.left[0].left == "holdfast.convert was not called since it was made"

    holdfast.convert(model, report=True)
    report = holdfast.conversion_report(model)
    assert str(report) in capsys.readouterr().out
    assert [(found.name, found.module) for found in report.converted] == [
        ("ours", "holdfast.GRU"),
        ("cell", "holdfast.LSTMCell"),
    ]
    assert {found.name: found.left.split(":")[0].split(",")[0] for found in report.left} == {
        "theirs": "a subclass of torch.nn.LSTM",
        "scripted": "scripted",
        "int8.0": "quantised",
    }
    assert len(report) == 5
    assert {found.name for found in report} == {"ours", "cell", "theirs", "scripted", "int8.0"}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_keep_isinstance(theirs, ours):
    module = theirs(3, 4)
    x = X if issubclass(theirs, nn.RNNBase) else X[0]
    expected = module(x)
    assert holdfast.convert(module, keep_isinstance=True) is module
    assert isinstance(module, theirs)
    assert isinstance(module, ours)
    assert repr(module) == repr(theirs(3, 4))
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(each) is type(module)
        torch.testing.assert_close(each(x), expected, rtol=0, atol=0)
    assert module.explain(x).regime == "eager"
    holdfast.to_torch(module)
    assert type(module) is theirs


def test_keep_isinstance_of_a_converted_model():
    module = holdfast.LSTM(3, 4, peepholes=True)
    expected = module(X)[0]
    holdfast.convert(module, keep_isinstance=True)
    assert isinstance(module, nn.LSTM)
    assert torch.equal(module(X)[0], expected)
    holdfast.convert(module)
    assert isinstance(module, nn.LSTM)
    with pytest.raises(ValueError, match="peepholes=True"):
        holdfast.to_torch(module)


def test_keep_isinstance_of_a_parametrized_module():
    module = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    expected = module(X)[0]
    holdfast.convert(module, keep_isinstance=True)
    assert isinstance(module, nn.LSTM)
    assert isinstance(module, holdfast.LSTM)
    assert torch.equal(module(X)[0], expected)
    assert type(nn.utils.parametrize.type_before_parametrizations(holdfast.to_torch(module))) is type


def test_keep_isinstance_and_its_price_under_compile():
    module = holdfast.convert(nn.GRU(3, 4), keep_isinstance=True)
    expected = module(X)[0]
    with pytest.raises(torch._dynamo.exc.Unsupported, match="allow_rnn"):
        torch.compile(module, backend="eager", fullgraph=True)(X)
    with torch._dynamo.config.patch(allow_rnn=True):
        torch._dynamo.reset()
        assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(X)[0], expected)


def test_cooperative_subclass():
    module = parametrizations.weight_norm(Gated(3, 4), "weight_hh_l0")
    model = nn.Sequential(Gated(3, 4), module, nn.LSTM(3, 4))
    expected = [m(X)[0] for m in model]
    holdfast.convert(model, subclasses=[Gated])
    assert all(isinstance(m, holdfast.LSTM) for m in model)
    assert [isinstance(m, Gated) for m in model] == [True, True, False]
    assert all(torch.equal(m(X)[0], e) for m, e in zip(model, expected, strict=True))
    assert holdfast.conversion_report(model).converted[0].module == f"{Gated.__module__}.Gated"
    for copied in (copy.deepcopy(model[0]), pickle.loads(pickle.dumps(model[0]))):
        assert type(copied) is type(model[0])
        assert torch.equal(copied(X)[0], expected[0])
    holdfast.to_torch(model)
    assert [type(model[0]), type(model[2])] == [Gated, nn.LSTM]
    assert not isinstance(model[1], holdfast.LSTM)


@pytest.mark.parametrize("wrong", [nn.LSTM, nn.Linear, holdfast.Stateful, "Gated"], ids=str)
def test_no_subclass(wrong):
    with pytest.raises(TypeError, match=r"subclasses should be subclasses of torch\.nn's recurrent modules, got"):
        holdfast.convert(Model(), subclasses=[wrong])


@pytest.mark.parametrize("no_model", [None, "lstm", 3, torch.zeros(2), nn.LSTM], ids=str)
@pytest.mark.parametrize("function", [holdfast.convert, holdfast.to_torch])
def test_not_a_module(function, no_model):
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        function(no_model)
