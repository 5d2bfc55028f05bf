"""Within holdfast.patch() torch.nn's recurrent modules are holdfast's as they are built, and torch is itself after."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn import LSTM as BOUND_BEFORE

import holdfast

torch.set_num_threads(1)

KINDS = [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell]
CONSTRUCTORS = {kind: kind.__init__ for kind in KINDS}


@pytest.fixture(autouse=True)
def _torch_is_itself_after():
    yield
    assert {kind: kind.__init__ for kind in KINDS} == CONSTRUCTORS


class Mine(nn.LSTM):
    """Somebody's subclass with a constructor of its own."""

    def __init__(self, size):
        super().__init__(size, size)
        self.scale = 2.0

    def forward(self, input, hx=None):
        return super().forward(self.scale * input, hx)


def test_every_kind_with_torchs_weights_and_random_numbers():
    torch.manual_seed(3)
    expected = [kind(3, 4) for kind in KINDS] + [torch.rand(2)]
    torch.manual_seed(3)
    with holdfast.patch():
        built = [kind(3, 4) for kind in KINDS] + [torch.rand(2)]
    assert torch.equal(built.pop(), expected.pop())
    for ours, theirs in zip(built, expected, strict=True):
        assert type(ours) is getattr(holdfast, type(theirs).__name__)
        assert repr(ours) == repr(theirs)
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_names_bound_before_are_reached():
    with holdfast.patch():
        assert type(BOUND_BEFORE(3, 4, num_layers=2)) is holdfast.LSTM


def test_what_is_not_built_is_not_touched():
    module = nn.LSTM(3, 4)
    with holdfast.patch():
        nn.GRU(3, 4)
        assert type(copy.deepcopy(module)) is nn.LSTM
        assert type(pickle.loads(pickle.dumps(module))) is nn.LSTM
        assert isinstance(module, nn.LSTM)
    assert type(module) is nn.LSTM


def test_nested_with_other_options():
    with holdfast.patch():
        with holdfast.patch(keep_isinstance=True, subclasses=[Mine]):
            inner = [nn.LSTM(3, 4), Mine(3)]
        outer = [nn.LSTM(3, 4), Mine(3)]
    assert all(isinstance(module, nn.LSTM) and isinstance(module, holdfast.LSTM) for module in inner)
    assert [type(module) for module in outer] == [holdfast.LSTM, Mine]
    x = torch.randn(5, 2, 3)
    inner[1].load_state_dict(outer[1].state_dict())
    assert torch.equal(inner[1](x)[0], outer[1](x)[0])


def test_an_exception_ends_it():
    with pytest.raises(TypeError, match="missing"), holdfast.patch():
        nn.LSTM(3)
    assert type(nn.LSTM(3, 4)) is nn.LSTM


def test_as_a_decorator():
    @holdfast.patch()
    def build():
        return nn.GRU(3, 4)

    assert type(build()) is type(build()) is holdfast.GRU
    assert type(nn.GRU(3, 4)) is nn.GRU


def test_other_threads_build_torchs():
    """Also where their blocks overlap and end in another order."""
    built = {}
    first_is_open, second_is_open, first_has_ended = (threading.Event() for _ in range(3))

    def first():
        with holdfast.patch():
            first_is_open.set()
            second_is_open.wait(60)
            built["first"] = nn.LSTM(3, 4)
        first_has_ended.set()

    def second():
        first_is_open.wait(60)
        built["without"] = nn.LSTM(3, 4)
        with holdfast.patch(keep_isinstance=True):
            second_is_open.set()
            first_has_ended.wait(60)
            built["second"] = nn.LSTM(3, 4)

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert type(built["first"]) is holdfast.LSTM
    assert type(built["without"]) is nn.LSTM
    assert isinstance(built["second"], holdfast.LSTM)
    assert isinstance(built["second"], nn.LSTM)


def test_warns_where_nothing_was_built():
    with pytest.warns(UserWarning, match=r"holdfast\.patch swapped nothing") as caught, holdfast.patch():
        nn.Linear(3, 4)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"Mine  left: a subclass of torch\.nn\.LSTM"), holdfast.patch():
        Mine(3)


def test_what_is_no_subclass():
    with pytest.raises(TypeError, match="subclasses should be"), holdfast.patch(subclasses=[nn.Linear]):
        pass
