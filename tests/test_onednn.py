"""torch.lstm and its derivative by oneDNN's layers: bitwise what torch does, wherever the op says that it would."""

import itertools
import random

import pytest
import torch
from torch import nn
from torch._functorch import config as functorch_config

import holdfast
from holdfast.cells.call.records import Call, as_hx
from holdfast.cells.eager import onednn
from holdfast.cells.eager.path import eager_path
from holdfast.cells.ops import eager as eager_op

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN"),  # of torch.backends.mkldnn.flags
]

USED = [("y",), ("h",), ("c",), ("y", "c"), ("y", "h", "c")]

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def fresh():
    """What other tests compiled would make this graph a dynamic one."""
    torch._dynamo.reset()


def an_hx(rows, B, H, form):
    """None, contiguous states, or states that lie in memory in another order."""
    if form == "none":
        return None
    if form == "given":
        return [torch.randn(rows, B, H) for _ in range(2)]
    return [torch.randn(B, rows, H).transpose(0, 1), torch.randn(rows, 1, H).expand(rows, B, H)]


@needs_onednn
@pytest.mark.parametrize("form", ["none", "given", "strided"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_layers", "directions"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_bitwise_as_torch(num_layers, directions, bias, form):
    every = list(itertools.product((1, 6), (1, 3), (4, 37), USED, (True, False)))
    for T, B, H, used, training in random.sample(every, 12):
        m = nn.LSTM(5, H, num_layers, bias=bias, bidirectional=directions == 2).train(training)
        rows, weights = num_layers * directions, list(m.parameters())
        x, hx = torch.randn(T, B, 5, requires_grad=True), an_hx(rows, B, H, form)
        states = [torch.zeros(rows, B, H) for _ in range(2)] if hx is None else hx
        wanted = [x, *weights, *(state.requires_grad_() for state in hx or ())]
        y, h, c = torch.lstm(x, states, weights, bias, num_layers, 0.0, training, directions == 2, False)
        results = {"y": y, "h": h, "c": c}
        grads = {name: torch.randn_like(t) for name, t in results.items() if name in used}
        expected = torch.autograd.grad(
            [results[name] for name in grads], wanted, list(grads.values()), allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            layers = onednn.OneDNNLayers(H, num_layers, directions, bias)
            answers = layers.forward(x, weights, hx)
            assert all(torch.equal(p, q) for p, q in zip(answers, results.values(), strict=True)), (T, B, H, training)
            for t in answers:  # a compiler may
                t.fill_(torch.nan)
            found = layers.gradients([grads.get(name) for name in "yhc"], x, weights, hx)
        assert not any(t.requires_grad for t in (*answers, *found))
        assert len({t.data_ptr() for t in found}) == len(found)
        for p, q in zip(found, expected, strict=True):
            assert torch.equal(p, q), (T, B, H, used, training)


def told_and_given(rng):
    """A call as the op gets it, of any cell and with any options: the module's own numbers."""
    cell = rng.choice(["lstm", "lstm", "gru", "rnn", "own"])
    options = {"num_layers": rng.choice([1, 2]), "bidirectional": rng.random() < 0.3, "bias": rng.random() < 0.7}
    options["dropout"] = 0.5 if options["num_layers"] == 2 and rng.random() < 0.3 else 0.0
    if rng.random() < 0.2:
        options["zoneout"] = 0.1
    if rng.random() < 0.2:
        options["recurrent_dropout"] = 0.1
    if cell == "lstm" and options.keys().isdisjoint({"zoneout", "recurrent_dropout"}) and rng.random() < 0.3:
        options["proj_size"] = 2
    make = {"lstm": holdfast.LSTM, "gru": holdfast.GRU, "rnn": holdfast.RNN}.get(cell)
    m = holdfast.Recurrent("gru_reset_before", 3, 4, **options) if make is None else make(3, 4, **options)
    m = m.to(rng.choice([torch.float32, torch.float32, torch.float64])).train(rng.random() < 0.5)
    T, B = rng.choice([1, 5]), rng.choice([0, 1, 3])
    x = torch.randn(T, B, 3, dtype=m.weight_ih_l0.dtype)
    layers = m._describe()
    hx = layers.zeros(x, B) if rng.random() < 0.5 else None
    lengths = torch.full((B,), T) if rng.random() < 0.2 else None
    resets = torch.zeros(T, B, dtype=torch.bool) if rng.random() < 0.2 else None
    return Call(
        layers, x, None if hx is None else as_hx(hx), lengths=lengths, resets=resets, return_gates=rng.random() < 0.1
    )


def test_the_op_finds_torchs_op_where_the_eager_path_does():
    rng, seen = random.Random(0), set()
    for _ in range(600):
        call = told_and_given(rng)
        told, given = eager_op.arguments_of(call, None)
        dense = eager_op._is_dense(call.x, told, given)
        assert dense == (eager_path(call) == "fused"), call
        direct = eager_op._is_onednn(call.x, call.layers.weights, told, given)
        assert dense or not direct
        seen.add((dense, direct))
    assert seen == {(False, False), (True, False), (True, True)} or not onednn.available()


@needs_onednn
def test_not_by_onednn():
    """Where torch.lstm would do something else, or refuse: then the op asks torch.lstm."""

    def direct(m, x, hx=None):
        told, given = eager_op.arguments_of(Call(m._describe(), x, hx), None)
        return eager_op._is_onednn(x, m._describe().weights, told, given)

    m, x = holdfast.LSTM(3, 4), torch.randn(5, 2, 3)
    assert direct(m, x)
    assert not direct(m, x, (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)))  # of another batch
    assert not direct(m, x, (torch.zeros(1, 2, 4).double(), torch.zeros(1, 2, 4)))
    assert not direct(m, torch.randn(5, 0, 3))
    assert not direct(m.double(), x.double())
    assert not direct(holdfast.LSTM(3, 4, 2, dropout=0.5), x)
    assert direct(holdfast.LSTM(3, 4, 2, dropout=0.5).eval(), x)
    assert not direct(holdfast.LSTM(3, 4, proj_size=2), x)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not direct(holdfast.LSTM(3, 4), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not direct(holdfast.LSTM(3, 4), x)


@needs_onednn
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_weight_that_changes_before_the_way_back(backend):
    """Refused as in eager mode: oneDNN reads the weights again."""
    m = holdfast.LSTM(3, 4)
    compiled = torch.compile(m, fullgraph=True, backend=backend)
    y, _ = compiled(torch.randn(5, 2, 3))
    with torch.no_grad():
        m.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@needs_onednn
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("given", [False, True])
@functorch_config.patch(donated_buffer=False)  # with it torch refuses the second way back of a dynamic graph
def test_two_ways_back_through_one_compiled_call(given, dynamic):
    m = holdfast.LSTM(3, 4, 2, bidirectional=True)
    hx = tuple(torch.randn(4, 2, 4, requires_grad=True) for _ in range(2)) if given else None
    x = torch.randn(5, 2, 3, requires_grad=True)
    wanted = [x, *m.parameters(), *(hx or ())]
    y, _ = torch.compile(m, fullgraph=True, backend="aot_eager", dynamic=dynamic)(x, hx)
    first = torch.autograd.grad(y.sin().sum(), wanted, retain_graph=True)
    again = torch.autograd.grad(y.sin().sum(), wanted)
    expected = torch.autograd.grad(m(x, hx)[0].sin().sum(), wanted)
    for found in (first, again):
        assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))
