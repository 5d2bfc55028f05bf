"""What torch.nn refuses in forward is refused with the same type and message, whatever the backend setting allows."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import holdfast

torch.set_num_threads(1)

CELLS = {
    "rnn_tanh": (holdfast.RNN, nn.RNN, {}),
    "rnn_relu": (holdfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, nn.GRU, {}),
    "lstm": (holdfast.LSTM, nn.LSTM, {}),
    "lstm_proj": (holdfast.LSTM, nn.LSTM, {"proj_size": 2}),
}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


def pair(cell, **options):
    ours, theirs, more = CELLS[cell]
    a, b = ours(3, 4, **options, **more), theirs(3, 4, **options, **more)
    a.load_state_dict(b.state_dict())
    return a, b


def state(cell, *size, dtype=torch.float32, device="cpu"):
    """hx of the given leading size in the form the cell wants."""
    h = torch.zeros(*size, 2 if cell == "lstm_proj" else 4, dtype=dtype, device=device)
    return (h, torch.zeros(*size, 4, dtype=dtype, device=device)) if cell.startswith("lstm") else h


def refusal(module, *args):
    with pytest.raises(Exception) as raised:  # noqa: PT011  compared with torch's below
        module(*args)
    return raised.type, str(raised.value)


def refused_alike(a, b, *args):
    expected = refusal(b, *args)
    assert refusal(a, *args) == expected
    assert refusal(a.explain, *args) == expected
    with holdfast.backend("triton"):
        assert refusal(a, *args) == expected


X = torch.zeros(5, 2, 3)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (1, 5, 2, 3), (5, 2, 7), (5, 7), (0, 2, 3), (0, 3), (0, 0, 3)], ids=str)
def test_shape_of_x(cell, batch_first, shape):
    a, b = pair(cell, batch_first=batch_first)
    if batch_first and len(shape) == 3:
        shape = (shape[1], shape[0], shape[2])
    refused_alike(a, b, torch.zeros(shape))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("size", [(2,), (1, 2, 1), (9, 2), (4, 9), (4, 1), ()], ids=str)
def test_shape_of_hx(cell, options, size):
    a, b = pair(cell, **options)
    refused_alike(a, b, X, state(cell, *size))


@pytest.mark.parametrize("size", [(1, 2), (1, 1, 2), (9,), ()], ids=str)
def test_shape_of_hx_unbatched(cell, size):
    a, b = pair(cell)
    refused_alike(a, b, X[:, 0], state(cell, *size))


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("size", [(1, 2, 5), (1, 2), (2, 2, 4)], ids=str)
def test_one_state_of_an_lstm(wrong, size):
    a, b = pair("lstm")
    hx = list(state("lstm", 1, 2))
    hx[wrong] = torch.zeros(size)
    refused_alike(a, b, X, tuple(hx))


@pytest.mark.parametrize(
    "hx",
    [
        torch.zeros(1, 2, 4),
        (torch.zeros(1, 2, 4),),
        (),
        (None, None),
        "hx",
        3,
    ],
    ids=lambda hx: str(hx)[:20] if not isinstance(hx, torch.Tensor) else f"tensor{tuple(hx.shape)}",
)
def test_container_of_hx_lstm(hx):
    a, b = pair("lstm")
    refused_alike(a, b, X, hx)


@pytest.mark.parametrize(
    "hx",
    [torch.zeros(2, 1, 2, 4), (torch.zeros(1, 2, 4),) * 3, [torch.zeros(1, 2, 4)] * 3],
    ids=["tensor", "triple", "list of three"],
)
def test_hx_of_an_lstm_that_is_no_pair(hx):
    """torch.nn leaves these to its op, so explain() does not raise: it gives the reason."""
    a, b = pair("lstm")
    assert refusal(a, X, hx) == refusal(b, X, hx)
    assert "malformed_hx" in {reason.name for reason in a.explain(X, hx).reasons}


@pytest.mark.parametrize("hx", [(torch.zeros(1, 2, 4),), [], "hx", 3], ids=["tuple", "list", "str", "int"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru"])
def test_container_of_hx(cell, hx):
    a, b = pair(cell)
    refused_alike(a, b, X, hx)


@pytest.mark.parametrize("x", [None, [[1.0]], 3, "x"], ids=str)
def test_x_is_no_tensor(cell, x):
    a, b = pair(cell)
    refused_alike(a, b, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str)
def test_dtype_of_x(cell, dtype):
    a, b = pair(cell)
    refused_alike(a, b, X.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_dtype_of_hx(cell, dtype):
    a, b = pair(cell)
    hx = state(cell, 1, 2, dtype=dtype)
    assert refusal(a, X, hx) == refusal(b, X, hx)


def test_device_of_x_and_hx(cell):
    a, b = pair(cell)
    for args in ((X.to("meta"),), (X, state(cell, 1, 2, device="meta"))):
        assert refusal(a, *args) == refusal(b, *args)


@pytest.mark.parametrize("width", [3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_packed(cell, width, dtype):
    a, b = pair(cell)
    x = pack_sequence([torch.zeros(4, width, dtype=dtype), torch.zeros(2, width, dtype=dtype)])
    for args in ((x,), (x, state(cell, 1, 1)), (x, state(cell, 3, 2))):
        if width == 3 and dtype is torch.float32 and len(args) == 1:
            continue
        assert refusal(a, *args) == refusal(b, *args)


def test_packed_of_wrong_rank(cell):
    a, b = pair(cell)
    x = PackedSequence(torch.zeros(4, 2, 3), torch.tensor([2, 2]))
    assert refusal(a, x) == refusal(b, x)


def test_abstract_base_has_no_forward():
    from holdfast.cells.base import RecurrentBase

    with pytest.raises(NotImplementedError):
        RecurrentBase("LSTM", 3, 4)(X)
