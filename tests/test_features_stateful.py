"""Stateful: chunks of any size and single steps equal the whole sequence; rows begin anew; the state goes along."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import holdfast
from holdfast.kernels.interpreter import interpret

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

MODULES = {
    "rnn": lambda **o: holdfast.RNN(3, 4, **o),
    "relu": lambda **o: holdfast.RNN(3, 4, nonlinearity="relu", bias=False, **o),
    "gru": lambda **o: holdfast.GRU(3, 4, **o),
    "gru_reset_before": lambda **o: holdfast.GRU(3, 4, reset_after=False, activation="relu", **o),
    "lstm": lambda **o: holdfast.LSTM(3, 4, **o),
    "lstm_proj": lambda **o: holdfast.LSTM(3, 4, proj_size=2, **o),
    "peephole": lambda **o: holdfast.LSTM(3, 4, peepholes=True, zoneout=(0.1, 0.2), **o),
    "learnt": lambda **o: holdfast.LSTM(3, 4, learn_initial_state=True, **o),
    "recurrent": lambda **o: holdfast.Recurrent("lstm_peephole", 3, 4, **o),
}
T, B = 9, 3


@pytest.fixture(params=MODULES)
def make(request):
    def make(**options):
        module = MODULES[request.param](dtype=torch.float64, **options).eval()
        if module.learn_initial_state:
            nn.init.normal_(module.initial_h)
            nn.init.normal_(module.initial_c)
        return module

    return make


def chunk(x, module, begin, end):
    part = x[begin:end]
    return part.transpose(0, 1) if module.batch_first else part


def close(results, expected):
    torch.testing.assert_close(results, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_layers": 2, "batch_first": True}], ids=str)
def test_chunks_and_steps_equal_the_whole(make, options):
    module = make(**options)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    whole, final = module(chunk(x, module, 0, T))
    whole = whole.transpose(0, 1) if module.batch_first else whole
    stream = holdfast.Stateful(module)
    parts = [stream(chunk(x, module, 0, 4)), stream(chunk(x, module, 4, 5))]
    parts = [p.transpose(0, 1) if module.batch_first else p for p in parts]
    parts += [stream.step(x[t]).unsqueeze(0) for t in range(5, 7)]
    last = stream(chunk(x, module, 7, T))
    close(torch.cat([*parts, last.transpose(0, 1) if module.batch_first else last]), whole)
    close(stream.state, final)


def test_gradients_through_all_chunks(make):
    module = make(num_layers=2)
    x = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
    stream = holdfast.Stateful(module, detach=False)
    y = torch.cat([stream(x[:4]), *(stream.step(x[t]).unsqueeze(0) for t in (4, 5)), stream(x[6:])])
    sources = [x, *module.parameters()]
    gradients = torch.autograd.grad(y.sin().sum(), sources)
    close(gradients, torch.autograd.grad(module(x)[0].sin().sum(), sources))


@pytest.mark.parametrize("by_step", [False, True], ids=["chunk", "step"])
def test_detached_by_default(make, by_step):
    module = make()
    x = torch.randn(2, B, 3, dtype=torch.float64, requires_grad=True)
    stream = holdfast.Stateful(module)
    for t in range(2):
        y = stream.step(x[t]) if by_step else stream(x[t : t + 1])
    state = stream.state
    assert not any(s.requires_grad for s in (state if isinstance(state, tuple) else (state,)))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert not dx[0].any()
    assert dx[1].any()


@pytest.mark.parametrize(
    "rows", [[1], torch.tensor([False, True, False]), torch.tensor([1], dtype=torch.int32)], ids=str
)
def test_reset_of_rows(make, rows):
    module = make(num_layers=2)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    stream = holdfast.Stateful(module)
    stream.reset(rows)  # before anything: nothing to do
    stream(x[:4])
    stream.reset(rows)
    y = stream(x[4:])
    close(y[:, 1:2], module(x[4:, 1:2])[0])
    close(y[:, [0, 2]], module(x[:, [0, 2]])[0][4:])


def test_resets_and_lengths_of_a_chunk(make):
    module = make()
    x = torch.randn(T, B, 3, dtype=torch.float64)
    resets = torch.rand(T, B) < 0.3
    stream = holdfast.Stateful(module)
    close(torch.cat([stream(x[:5], resets[:5]), stream(x[5:], resets[5:])]), module(x, resets=resets)[0])
    stream.reset()
    stream(x[:4], lengths=[4, 0, 2])
    y = stream(x[4:])
    close(y[:, 2], module(torch.cat((x[:2, 2:], x[4:, 2:])))[0][2:, 0])
    close(y[:, 1], module(x[4:, 1:2])[0][:, 0])


def test_unbatched(make):
    module = make()
    x = torch.randn(T, 3, dtype=torch.float64)
    stream = holdfast.Stateful(module)
    y = torch.cat([stream(x[:4]), stream.step(x[4]).unsqueeze(0), stream(x[5:])])
    close(y, module(x)[0])


def test_state_is_set_moved_copied_and_not_saved(make):
    module = make(num_layers=2)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    stream = holdfast.Stateful(module, detach=False)
    assert stream.state is None
    stream(x[:4])
    state = stream.state
    expected = stream(x[4:])
    stream.state = state
    close(stream(x[4:]), expected)
    stream.state = state
    assert not [name for name in stream.state_dict() if not name.startswith("module.")]
    for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        close(other(x[4:]), expected)
    half = stream.float()
    half.step(x[4].float())
    of_state = half.state if isinstance(half.state, tuple) else (half.state,)
    assert {s.dtype for s in of_state} == {torch.float32}


def test_training_draws_masks_by_step():
    module = holdfast.GRU(3, 4, recurrent_dropout=0.5, zoneout=0.5)
    stream = holdfast.Stateful(module)
    x = torch.randn(B, 3)
    torch.manual_seed(0)
    first = stream.step(x)
    stream.reset()
    torch.manual_seed(0)
    assert torch.equal(stream.step(x), first)
    module.eval()
    stream.reset()
    torch.testing.assert_close(stream.step(x), module(x.unsqueeze(0))[0][0])


def test_compiles_whole():
    torch._dynamo.reset()
    x = torch.randn(4, B, 3)
    with torch.no_grad():
        stream = holdfast.Stateful(holdfast.GRU(3, 4))
        expected = [stream(x), *(stream.step(x[0]) for _ in range(3))]
        stream.reset()
        chunk = torch.compile(stream, fullgraph=True, backend="aot_eager")
        step = torch.compile(stream.step, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close([chunk(x), *(step(x[0]) for _ in range(3))], expected)


def test_dropout_between_layers_in_a_step():
    module = holdfast.GRU(3, 4, 2, dropout=1.0)
    x = torch.randn(B, 3)
    zeros = torch.zeros(B, 4)
    stream = holdfast.Stateful(module)
    w = [module.weight_ih_l1, module.weight_hh_l1, module.bias_ih_l1, module.bias_hh_l1]
    torch.testing.assert_close(stream.step(x), torch.gru_cell(zeros, zeros, *w))


# What is refused


def test_modules_without_a_stream():
    with pytest.raises(ValueError, match="one direction, got bidirectional=True: a stream has no end"):
        holdfast.Stateful(holdfast.GRU(3, 4, bidirectional=True))
    with pytest.raises(TypeError, match=r"should be a holdfast.RNN, .* got GRU; holdfast.convert turns torch.nn's"):
        holdfast.Stateful(nn.GRU(3, 4))


def test_another_batch_size():
    stream = holdfast.Stateful(holdfast.LSTM(3, 4))
    stream(torch.randn(2, B, 3))
    message = r"input should have 3 rows, as the stream began with, got 2; reset\(\) begins anew"
    for call in (stream, lambda x: stream.step(x[0])):
        with pytest.raises(ValueError, match=message):
            call(torch.randn(1, 2, 3))
    stream.reset()
    assert stream.step(torch.randn(2, 3)).shape == (2, 4)


def test_inputs_of_another_form():
    stream = holdfast.Stateful(holdfast.GRU(3, 4))
    with pytest.raises(ValueError, match=r"input should be of shape \[B, 3\], got \[2, 5\]"):
        stream.step(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"input should be of shape \[B, 3\], got \[1, 2, 3\]"):
        stream.step(torch.randn(1, 2, 3))
    with pytest.raises(ValueError, match="got a PackedSequence: pass the padded tensor with lengths"):
        stream(pack_sequence([torch.randn(2, 3)]))
    with pytest.raises(RuntimeError, match="Expected 3, got 5"):
        stream(torch.randn(1, 2, 5))
    assert stream.state is None


@pytest.mark.parametrize(
    ("module", "state", "message"),
    [
        ("gru", torch.zeros(2, 3, 4), r"of shape \(1, 3, 4\), as hx, got \(2, 3, 4\)"),
        ("gru", "h", r"of shape \(1, B, 4\), as hx, got str"),
        ("lstm", torch.zeros(1, 3, 4), r"of shape \(1, 3, 4\) and \(1, 3, 4\), as hx, got \(1, 3, 4\)"),
        (
            "lstm",
            (torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)),
            r"of shape \(1, 3, 4\) and \(1, 3, 4\), as hx, got \(1, 3, 4\) and \(1, 2, 4\)",
        ),
    ],
    ids=["layers", "no tensor", "no pair", "batch"],
)
def test_states_of_another_form(module, state, message):
    stream = holdfast.Stateful(MODULES[module]())
    with pytest.raises(ValueError, match="state should be None or " + message):
        stream.state = state


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([3], "rows should be indices from 0 to 2, as the stream has 3 rows, got 3"),
        ([-1], "rows should be indices from 0 to 2, as the stream has 3 rows, got -1"),
        ([0.5], "rows should be a bool mask or integer indices, got torch.float32"),
        ([True, False], r"rows should be a mask of shape \(3,\), as the stream has 3 rows, got \(2,\)"),
    ],
    ids=str,
)
def test_rows_that_are_not_there(rows, message):
    stream = holdfast.Stateful(holdfast.GRU(3, 4))
    stream.step(torch.randn(B, 3))
    before = stream.state
    with pytest.raises(ValueError, match=message):
        stream.reset(rows)
    assert torch.equal(stream.state, before)


def test_no_silent_fallback():
    """A chunk may run on a kernel; a step is one op, which backend("triton") does not allow."""
    stream = holdfast.Stateful(holdfast.GRU(3, 4))
    x = torch.randn(2, B, 3)
    expected = stream(x)
    stream.reset()
    with interpret(seed=0) as running, holdfast.backend("triton"):
        torch.testing.assert_close(stream(x), expected, rtol=1e-3, atol=1e-3)
        assert running.launches == 1
        with pytest.raises(RuntimeError, match="single_step"):
            stream.step(x[0])
