"""Forward on a CPU: results, strides, packing, dropout stream and autocast dtypes equal torch.nn's, bit for bit."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import holdfast

torch.set_num_threads(1)

CELLS = {
    "rnn_tanh": (holdfast.RNN, nn.RNN, {}),
    "rnn_relu": (holdfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, nn.GRU, {}),
    "lstm": (holdfast.LSTM, nn.LSTM, {}),
    "lstm_proj": (holdfast.LSTM, nn.LSTM, {"proj_size": 2}),
}
SHAPES = [
    {},
    {"bidirectional": True},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.4},
]

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


def pair(cell, **options):
    """A module of holdfast and torch.nn's with the same weights."""
    ours, theirs, more = CELLS[cell]
    a, b = ours(3, 4, **options, **more), theirs(3, 4, **options, **more)
    a.load_state_dict(b.state_dict())
    return a, b


def hidden(module, batch=2, dtype=torch.float32, batched=True):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    size = (rows, batch) if batched else (rows,)
    h = torch.randn(*size, module.proj_size or module.hidden_size, dtype=dtype)
    return (h, torch.randn(*size, module.hidden_size, dtype=dtype)) if module.mode == "LSTM" else h


def states(hx):
    return hx if isinstance(hx, tuple) else (hx,)


def same(a, b):
    """Equal in value (NaN to NaN), dtype, shape and strides."""
    assert type(a) is type(b)
    if isinstance(a, PackedSequence):
        for x, y in zip(a, b, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                same(x, y)
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif not isinstance(a, torch.Tensor):
        assert a == b
    else:
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def outcome(function, *args):
    """The results of a call, or the type and message of its error."""
    try:
        return function(*args)
    except Exception as error:
        return type(error), str(error)


def run(module, *args, seed=5):
    """Results of a call and gradients of everything it depends on."""
    torch.manual_seed(seed)
    output, hx = module(*args)
    data = output.data if isinstance(output, PackedSequence) else output
    module.zero_grad()
    if data.requires_grad:
        (data.sum() + sum(h.square().sum() for h in states(hx))).backward()
    gradients = tuple(p.grad for p in module.parameters() if p.grad is not None)
    return output, hx, gradients


@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batched(cell, options, given, training):
    a, b = pair(cell, **options)
    a.train(training), b.train(training)
    x = torch.randn(2, 5, 3) if a.batch_first else torch.randn(5, 2, 3)
    args = (x, hidden(a)) if given else (x,)
    same(run(a, *args), run(b, *args))


@pytest.mark.parametrize("options", SHAPES[:3], ids=str)
def test_unbatched(cell, options):
    a, b = pair(cell, **options)
    x = torch.randn(5, 3)
    same(run(a, x), run(b, x))
    hx = hidden(a, batched=False)
    same(run(a, x, hx), run(b, x, hx))


@pytest.mark.parametrize("options", SHAPES[1:4], ids=str)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed(cell, options, enforce_sorted):
    a, b = pair(cell, **options)
    lengths = [5, 3, 1] if enforce_sorted else [3, 5, 1]
    x = pack_padded_sequence(torch.randn(5, 3, 3), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    same(run(a, x), run(b, x))
    hx = hidden(a, batch=3)
    same(run(a, x, hx), run(b, x, hx))


def test_packed_with_too_large_an_hx_is_cut_as_in_torch(cell):
    a, b = pair(cell)
    x = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    hx = hidden(a, batch=7)
    same(run(a, x, hx), run(b, x, hx))


def test_list_as_hx_of_an_lstm():
    a, b = pair("lstm")
    x, hx = torch.randn(5, 2, 3), list(hidden(a))
    same(run(a, x, hx), run(b, x, hx))


def test_keywords(cell):
    a, _ = pair(cell)
    x, hx = torch.randn(5, 2, 3), hidden(a)
    same(a(input=x, hx=hx), a(x, hx))


@pytest.mark.parametrize("options", SHAPES[:3], ids=str)
def test_empty_batch(cell, options):
    a, b = pair(cell, **options)
    x = torch.randn(0, 5, 3) if a.batch_first else torch.randn(5, 0, 3)
    same(run(a, x), run(b, x))


def test_states_do_not_share_memory_with_the_output(cell):
    a, _ = pair(cell)
    with torch.no_grad():
        output, hx = a(torch.randn(1, 2, 3))
        before = output.clone()
        for state in states(hx):
            state.zero_()
    assert torch.equal(output, before)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_dtypes(cell, dtype):
    a, b = (m.to(dtype) for m in pair(cell, num_layers=2, bidirectional=True))
    x, hx = torch.randn(5, 2, 3, dtype=dtype), hidden(a, dtype=dtype)
    with torch.no_grad():
        same(outcome(a, x, hx), outcome(b, x, hx))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_autocast(cell, options):
    a, b = pair(cell, **options)
    x, hx = torch.randn(5, 2, 3), hidden(a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(run(a, x, hx), run(b, x, hx))
        same(run(a, x), run(b, x))
        # Dtypes of x and weights may differ under autocast, as far as torch's own op lets them.
        same(outcome(a, x.bfloat16(), hx), outcome(b, x.bfloat16(), hx))


def test_dropout_may_change_between_calls(cell):
    a, b = pair(cell, num_layers=2, dropout=0.2)
    x = torch.randn(5, 2, 3)
    for p in (0.2, 0.0, 0.7, 1.0):
        a.dropout = b.dropout = p
        same(run(a, x), run(b, x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "h_0", "weights"])
def test_nan_and_inf_spread_as_in_torch(cell, value, where):
    a, b = pair(cell, bidirectional=True)
    x, hx = torch.randn(5, 2, 3), hidden(a)
    if where == "x":
        x[2, 0, 1] = value
    elif where == "h_0":
        states(hx)[0][0, 1, 0] = value
    else:
        with torch.no_grad():
            for module in (a, b):
                module.weight_hh_l0[1, 1] = value
    same(run(a, x, hx), run(b, x, hx))


def test_non_contiguous_input(cell):
    a, b = pair(cell)
    x = torch.randn(3, 7, 5).permute(2, 1, 0)[:, ::2]
    same(run(a, x), run(b, x))


class Operators(TorchDispatchMode):
    """Counts the operators that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_eager_path_runs_the_operators_of_torch(cell, options):
    """The same operators in the same order: one fused call, nothing before or after it."""
    a, b = pair(cell, **options)
    x = torch.randn(2, 5, 3) if a.batch_first else torch.randn(5, 2, 3)
    for args in ((x,), (x, hidden(a)), (x[0],)):
        with Operators() as ours:
            a(*args)
        with Operators() as theirs:
            b(*args)
        assert ours.names == theirs.names


def test_one_fused_call(cell):
    a, _ = pair(cell, num_layers=2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        a(x)
    fused = [e for e in profile.events() if e.name in ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")]
    assert len(fused) == 1
