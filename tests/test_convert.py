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
    model = nn.Sequential(Gated(3, 4), parametrizations.weight_norm(Gated(3, 4), "weight_hh_l0"))
    kinds = [type(m) for m in model]
    expected = model[0](X)[0]
    holdfast.convert(model)
    assert [type(m) for m in model] == kinds
    assert torch.equal(model[0](X)[0], expected)


def test_subclass_of_ours_is_left_alone_by_to_torch():
    class Mine(holdfast.LSTM):
        pass

    module = Mine(3, 4)
    assert type(holdfast.to_torch(module)) is Mine


def test_model_without_recurrence():
    model = nn.Linear(3, 4)
    assert holdfast.convert(model) is model
    assert holdfast.to_torch(model) is model


@pytest.mark.parametrize("no_model", [None, "lstm", 3, torch.zeros(2), nn.LSTM], ids=str)
@pytest.mark.parametrize("function", [holdfast.convert, holdfast.to_torch])
def test_not_a_module(function, no_model):
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        function(no_model)
