"""What is wrong with lengths, resets, reset_state and the new options is said in words, before anything runs."""

import numpy as np
import pytest
import torch
from torch.func import vmap
from torch.nn.utils.rnn import pack_sequence

import holdfast

T, B = 5, 3
X = torch.randn(T, B, 2)
RESETS = torch.zeros(T, B, dtype=torch.bool)
H = torch.zeros(1, B, 4)

MODULES = {
    "rnn": lambda **options: holdfast.RNN(2, 4, **options),
    "gru": lambda **options: holdfast.GRU(2, 4, **options),
    "lstm": lambda **options: holdfast.LSTM(2, 4, **options),
}


def refused(error, message, module, *args, **arguments):
    """By forward and by explain, whatever the backend."""
    for call in (module, module.explain):
        for backend in ("auto", "triton"):
            with holdfast.backend(backend), pytest.raises(error) as raised:
                call(*args, **arguments)
            assert str(raised.value) == message


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": "abc"}, "lengths should be an integer tensor or a list of ints, got str"),
        ({"lengths": 3}, "lengths should be an integer tensor or a list of ints, got int"),
        ({"lengths": np.array([1, 2, 3])}, "lengths should be an integer tensor or a list of ints, got ndarray"),
        ({"lengths": [1, 2.0, 3]}, "lengths should be a list of ints or an integer tensor, got a list with 2.0"),
        ({"lengths": [1, True, 3]}, "lengths should be a list of ints or an integer tensor, got a list with True"),
        (
            {"lengths": torch.ones(3)},
            "lengths should be of dtype torch.int64 or torch.int32, got torch.float32",
        ),
        (
            {"lengths": torch.ones(3, dtype=torch.bool)},
            "lengths should be of dtype torch.int64 or torch.int32, got torch.bool",
        ),
        ({"lengths": [1, 2]}, "lengths should be of shape (3,), one length per row of the batch, got (2,)"),
        (
            {"lengths": torch.ones(3, 1, dtype=torch.int32)},
            "lengths should be of shape (3,), one length per row of the batch, got (3, 1)",
        ),
        ({"lengths": [1, 6, 3]}, "lengths should lie in [0, 5], as x has 5 steps, got 6 for row 1"),
        ({"lengths": torch.tensor([1, 2, -1])}, "lengths should lie in [0, 5], as x has 5 steps, got -1 for row 2"),
        ({"resets": [True] * T}, "resets should be a tensor, got list"),
        ({"resets": RESETS.cfloat()}, "resets should be bool, integer or floating point, got torch.complex64"),
        ({"resets": RESETS.t()}, "resets should be of shape (5, 3), [T, B] of x, got (3, 5)"),
        ({"resets": RESETS[:, 0]}, "resets should be of shape (5, 3), [T, B] of x, got (5,)"),
        (
            {"reset_state": H},
            "reset_state is the state that resets lead to, but resets is None: pass resets [T, B]",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused(module, arguments, message):
    refused(ValueError, message, MODULES[module](), X, **arguments)


def test_refused_in_the_layout_of_x():
    module = holdfast.GRU(2, 4, batch_first=True)
    x = X.transpose(0, 1)
    refused(ValueError, "resets should be of shape (3, 5), [B, T] of x, got (5, 3)", module, x, resets=RESETS)
    module(x, resets=RESETS.t())
    module = holdfast.GRU(2, 4)
    refused(ValueError, "resets should be of shape (5,), [T] of x, got (5, 2)", module, X[:, 0], resets=RESETS[:, :2])
    message = "lengths should be of shape (1,) or () for unbatched input, got (3,)"
    refused(ValueError, message, module, X[:, 0], lengths=[1, 2, 3])


@pytest.mark.parametrize(
    ("module", "state", "message"),
    [
        ("gru", torch.zeros(1, 2, 4), "reset_state: Expected hidden size (1, 3, 4), got [1, 2, 4]"),
        ("gru", torch.zeros(2, 3, 4), "reset_state: Expected hidden size (1, 3, 4), got [2, 3, 4]"),
        ("gru", torch.zeros(3, 4), "reset_state: For batched 3-D input, hx should also be 3-D but got 2-D tensor"),
        ("gru", (H,), "reset_state should be a tensor, as hx, got tuple"),
        ("lstm", H, "reset_state should be a tuple of 2 tensors, as hx, got Tensor"),
        ("lstm", (H, H, H), "reset_state should be a tuple of 2 tensors, as hx, got tuple"),
        ("lstm", (H, None), "reset_state should be a tuple of 2 tensors, as hx, got tuple"),
        ("lstm", (H, H[:, :2]), "reset_state: Expected hidden[1] size (1, 3, 4), got [1, 2, 4]"),
        ("rnn", H.double(), "reset_state should be torch.float32 on cpu, as x, got torch.float64 on cpu"),
        ("rnn", H.to("meta"), "reset_state should be torch.float32 on cpu, as x, got torch.float32 on meta"),
    ],
    ids=lambda value: str(value)[:30].replace("\n", ""),
)
def test_reset_state_of_another_form(module, state, message):
    refused(ValueError, message, MODULES[module](), X, resets=RESETS, reset_state=state)


@pytest.mark.parametrize("argument", ["lengths", "resets", "reset_state"])
def test_refused_with_a_packed_sequence(argument):
    x = pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])
    message = (
        f"{argument} does not go with a PackedSequence, which has lengths of its own: "
        f"leave {argument} out, or pass the padded tensor with lengths"
    )
    refused(ValueError, message, holdfast.LSTM(2, 4), x, **{argument: torch.tensor([3, 2])})


def test_what_torch_refuses_comes_first():
    module = holdfast.LSTM(2, 4)
    with pytest.raises(RuntimeError, match="Expected 2, got 7"):
        module(torch.randn(T, B, 7), lengths="abc")


@pytest.mark.parametrize(
    "lengths",
    [
        [2, 0, 5],
        (2, 0, 5),
        torch.tensor([2, 0, 5]),
        torch.tensor([2, 0, 5], dtype=torch.int32),
        list(np.array([2, 0, 5])),
    ],
    ids=["list", "tuple", "int64", "int32", "list of numpy's ints"],
)
def test_forms_of_lengths(lengths):
    module = holdfast.GRU(2, 4)
    for p, q in zip(module(X, lengths=lengths), module(X, lengths=[2, 0, 5]), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("lengths", [torch.tensor(2), torch.tensor([2]), [2]], ids=str)
def test_unbatched(lengths):
    module = holdfast.LSTM(2, 4, bidirectional=True)
    y, (h, c) = module(X[:, 0], lengths=lengths)
    expected, (h_2, c_2) = module(X[:2, 0])
    torch.testing.assert_close((y[:2], h, c), (expected, h_2, c_2))
    assert not y[2:].any()


def test_clamped_where_the_range_cannot_be_looked_at():
    """Under vmap, as in a graph or on a GPU."""
    module = holdfast.GRU(2, 4)
    far = torch.tensor([[9, -3, 2]])
    y, _ = vmap(lambda n: module(X, lengths=n))(far)
    torch.testing.assert_close(y[0], module(X, lengths=[5, 0, 2])[0])


# Options


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"recurrent_dropout": 1.5}, "recurrent_dropout should be a number in range [0, 1], got 1.5"),
        (ValueError, {"recurrent_dropout": True}, "recurrent_dropout should be a number in range [0, 1], got True"),
        (ValueError, {"zoneout": -0.1}, "zoneout should be a number in range [0, 1], got -0.1"),
        (TypeError, {"learn_initial_state": 1}, "learn_initial_state should be of type bool, got: int"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_of_all_modules(module, error, options, message):
    with pytest.raises(error) as raised:
        MODULES[module](**options)
    assert str(raised.value) == message


NAMES = "'tanh', 'sigmoid', 'relu', 'linear', 'hard_sigmoid', 'softsign', 'elu', 'softplus', 'exponential', 'selu'"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: holdfast.GRU(2, 4, activation="gelu"), ValueError, f"activation should be one of {NAMES}, got 'gelu'"),
        (
            lambda: holdfast.LSTM(2, 4, recurrent_activation=None),
            ValueError,
            f"recurrent_activation should be one of {NAMES}, got None",
        ),
        (lambda: holdfast.GRU(2, 4, reset_after=0), TypeError, "reset_after should be of type bool, got: int"),
        (
            lambda: holdfast.GRU(2, 4, zoneout=(0.1,)),
            ValueError,
            "zoneout should be a number in range [0, 1], got (0.1,)",
        ),
        (lambda: holdfast.LSTM(2, 4, peepholes=1), TypeError, "peepholes should be of type bool, got: int"),
        (lambda: holdfast.LSTM(2, 4, forget_bias="1"), ValueError, "forget_bias should be a number, got '1'"),
        (
            lambda: holdfast.LSTM(2, 4, bias=False, forget_bias=1.0),
            ValueError,
            "forget_bias needs a bias to be set in, got forget_bias=1.0 with bias=False",
        ),
        (
            lambda: holdfast.LSTM(2, 4, zoneout=(0.1, 2)),
            ValueError,
            "zoneout of c should be a number in range [0, 1], got 2",
        ),
        (
            lambda: holdfast.LSTM(2, 4, zoneout=(0.1, 0.2, 0.3)),
            ValueError,
            "zoneout should be a number in range [0, 1], for h, or (zoneout_h, zoneout_c), got (0.1, 0.2, 0.3)",
        ),
        (lambda: holdfast.RNN(2, 4, activation="relu"), TypeError, None),
    ],
    ids=range(10),
)
def test_options_of_one_module(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert message is None or str(raised.value) == message


@pytest.mark.parametrize(
    "option",
    [{"peepholes": True}, {"zoneout": 0.1}, {"recurrent_dropout": 0.1}, {"activation": "relu"}],
    ids=lambda option: next(iter(option)),
)
def test_options_that_do_not_go_with_proj_size(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name} does not go with proj_size, got {name}={value!r}, proj_size=2"):
        holdfast.LSTM(2, 4, proj_size=2, **option)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_options_that_do():
    module = holdfast.LSTM(2, 4, proj_size=3, forget_bias=1.0, learn_initial_state=True)
    assert (module.initial_h.shape, module.initial_c.shape) == ((1, 1, 3), (1, 1, 4))
    module(X, lengths=[1, 2, 3])
