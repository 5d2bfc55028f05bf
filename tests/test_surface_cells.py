"""RNNCell, GRUCell and LSTMCell equal torch.nn's: construction, results, gradients and errors."""

import copy
import pickle

import pytest
import torch
from torch import nn

import holdfast

torch.set_num_threads(1)

CELLS = {
    "rnn_tanh": (holdfast.RNNCell, nn.RNNCell, {}),
    "rnn_relu": (holdfast.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRUCell, nn.GRUCell, {}),
    "lstm": (holdfast.LSTMCell, nn.LSTMCell, {}),
}


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


def pair(cell, input_size=3, hidden_size=4, **options):
    ours, theirs, more = CELLS[cell]
    modules = []
    for kind in (ours, theirs):
        torch.manual_seed(0)
        modules.append(kind(input_size, hidden_size, **options, **more))
    return modules


def state(cell, *size):
    h = torch.randn(size)
    return (h, torch.randn(size)) if cell == "lstm" else h


def outcome(function, *args):
    try:
        result = function(*args)
    except Exception as error:
        return type(error), str(error)
    return [t.tolist() for t in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"dtype": torch.float64}, {"hidden_size": 0}, {"input_size": 0}], ids=str
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_same_seed_gives_same_module(cell, options):
    a, b = pair(cell, **options)
    assert repr(a) == repr(b)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    a.load_state_dict(b.state_dict(), strict=True)
    b.load_state_dict(a.state_dict(), strict=True)
    assert a.__dict__.keys() == b.__dict__.keys()


def test_results_and_gradients(cell):
    a, b = pair(cell)
    for x, hx in [
        (torch.randn(2, 3), None),
        (torch.randn(2, 3), state(cell, 2, 4)),
        (torch.randn(3), None),
        (torch.randn(3), state(cell, 4)),
        (torch.randn(0, 3), None),
    ]:
        assert outcome(a, x, hx) == outcome(b, x, hx)
        for module in (a, b):
            result = module(x, hx)
            (result[0] if cell == "lstm" else result).sum().backward()
        assert torch.equal(a.weight_hh.grad, b.weight_hh.grad)


def test_refused_in_the_same_words(cell):
    a, b = pair(cell)
    for x, hx in [
        (torch.randn(2, 7), None),
        (torch.randn(1, 2, 3), None),
        (torch.randn(()), None),
        (torch.randn(2, 3), state(cell, 2, 5)),
        (torch.randn(2, 3), state(cell, 5, 4)),
        (torch.randn(2, 3), state(cell, 1, 1, 2, 4)),
        (torch.randn(2, 3).double(), None),
        (torch.randn(2, 3), "hx"),
        (None, None),
    ]:
        expected = outcome(b, x, hx)
        assert isinstance(expected, tuple), "torch.nn accepts this"
        assert outcome(a, x, hx) == expected


def test_unknown_nonlinearity_fails_in_forward():
    a, b = (kind(3, 4, nonlinearity="x") for kind in (holdfast.RNNCell, nn.RNNCell))
    assert outcome(a, torch.randn(2, 3)) == outcome(b, torch.randn(2, 3))


def test_copies(cell):
    a, _ = pair(cell)
    x = torch.randn(2, 3)
    for b in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert outcome(a, x) == outcome(b, x)


def test_plan_is_eager_and_says_why(cell):
    a, _ = pair(cell)
    plan = a.explain(torch.randn(2, 3))
    assert plan.regime == "eager"
    assert plan.problem.cell == cell
    assert plan.problem.batch_size == 2
    assert [reason.name for reason in plan.reasons] == ["single_step"]


def test_no_kernel_under_triton(cell):
    a, _ = pair(cell)
    with holdfast.backend("triton"), pytest.raises(RuntimeError, match="single_step"):
        a(torch.randn(2, 3))
