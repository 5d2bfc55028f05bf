"""return_gates and plot_gates: what the gates of a call were, in every layout, and as a picture."""

import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import holdfast

T, B, INPUT, HIDDEN = 6, 3, 2, 4
LENGTHS = [4, 0, 6]
MODULES = {
    "rnn": (lambda **o: holdfast.RNN(INPUT, HIDDEN, **o), ["n", "h"]),
    "gru": (lambda **o: holdfast.GRU(INPUT, HIDDEN, **o), ["r", "z", "n", "h"]),
    "lstm": (lambda **o: holdfast.LSTM(INPUT, HIDDEN, **o), ["i", "f", "g", "o", "h", "c"]),
}


@pytest.fixture(params=MODULES)
def kind(request):
    return request.param


def test_names_and_layout(kind):
    make, names = MODULES[kind]
    x = torch.randn(T, B, INPUT)
    module = make(num_layers=2, bidirectional=True)
    y, final, gates = module(x, lengths=LENGTHS, return_gates=True)
    torch.testing.assert_close((y, final), module(x, lengths=LENGTHS))
    assert len(gates) == 2
    for layer in gates:
        assert list(layer) == names
        assert {tuple(t.shape) for t in layer.values()} == {(T, B, 2 * HIDDEN)}
        assert not any(t.requires_grad for t in layer.values())
        assert not any(t[:, 1].any() or t[4:, 0].any() for t in layer.values())
    assert torch.equal(gates[1]["h"], y)
    assert repr(gates).startswith(f"Gates({names[0]} [6, 3, 8], ")
    assert y.requires_grad

    first = make(num_layers=2, bidirectional=True, batch_first=True)
    first.load_state_dict(module.state_dict())
    for of_first, layer in zip(first(x.transpose(0, 1), lengths=LENGTHS, return_gates=True)[2], gates, strict=True):
        for name in names:
            torch.testing.assert_close(of_first[name], layer[name].transpose(0, 1))
    for alone, layer in zip(module(x[:, 2], return_gates=True)[2], gates, strict=True):
        for name in names:
            torch.testing.assert_close(alone[name], layer[name][:, 2])


def test_of_a_packed_sequence_in_the_order_of_its_rows(kind):
    make, names = MODULES[kind]
    module, x = make(), torch.randn(T, B, INPUT)
    packed = pack_padded_sequence(x, [4, 1, 6], enforce_sorted=False)
    *_, gates = module(packed, return_gates=True)
    *_, padded = module(x, lengths=[4, 1, 6], return_gates=True)
    for name in names:
        torch.testing.assert_close(gates[0][name], padded[0][name])


def test_a_step_follows_from_the_gates():
    """c = f * c + i * g and h = o * tanh(c), in every step."""
    module = holdfast.LSTM(INPUT, HIDDEN)
    c_0 = torch.randn(1, B, HIDDEN)
    *_, (layer,) = module(torch.randn(T, B, INPUT), (torch.zeros(1, B, HIDDEN), c_0), return_gates=True)
    before = torch.cat((c_0, layer["c"][:-1]))
    torch.testing.assert_close(layer["c"], layer["f"] * before + layer["i"] * layer["g"])
    torch.testing.assert_close(layer["h"], layer["o"] * layer["c"].tanh())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projected_h_is_narrower():
    module = holdfast.LSTM(INPUT, HIDDEN, proj_size=3, bidirectional=True)
    y, _, (layer,) = module(torch.randn(T, B, INPUT), return_gates=True)
    assert torch.equal(layer["h"], y)
    assert {name: t.shape[-1] for name, t in layer.items()} == {**dict.fromkeys("ifgoc", 8), "h": 6}


# The picture


def panels(figure):
    """The axes with an image, and the colour bars."""
    return [ax for ax in figure.axes if ax.images], [ax for ax in figure.axes if not ax.images]


def test_plot_has_a_panel_for_each_gate_layer_and_direction(kind, tmp_path):
    make, names = MODULES[kind]
    module = make(num_layers=2, bidirectional=True)
    x, resets = torch.randn(T, B, INPUT), torch.zeros(T, B, dtype=torch.bool)
    resets[2] = True
    path = tmp_path / "gates.png"
    figure = holdfast.plot_gates(module, x, row=0, lengths=LENGTHS, resets=resets, path=path)
    drawn, bars = panels(figure)
    assert len(drawn) == len(names) * 4
    assert len(bars) == len(names)
    assert path.stat().st_size > 1000
    titles = [ax.get_title() for ax in drawn[:4]]
    assert titles == ["layer 0, forward", "layer 0, reverse", "layer 1, forward", "layer 1, reverse"]
    *_, gates = module(x, lengths=LENGTHS, resets=resets, return_gates=True)
    for k, ax in enumerate(drawn):
        layer, direction = divmod(k % 4, 2)
        value = gates[layer][names[k // 4]][:4, 0].chunk(2, -1)[direction]
        torch.testing.assert_close(torch.as_tensor(ax.images[0].get_array()).float(), value.t().contiguous())
        assert [line.get_xdata()[0] for line in ax.lines] == [1.5]


def test_plot_of_some_units():
    module = holdfast.GRU(INPUT, HIDDEN)
    x = torch.randn(T, INPUT)
    drawn, _ = panels(holdfast.plot_gates(module, x, units=[3, 1]))
    assert [ax.images[0].get_array().shape for ax in drawn] == [(2, T)] * 4
    assert [drawn[0].yaxis.get_major_formatter()(place, None) for place in (0, 1, 2, 0.5)] == ["3", "1", "", ""]
    drawn, _ = panels(holdfast.plot_gates(module, x, units=slice(1, 4)))
    assert drawn[0].yaxis.get_major_formatter()(2, None) == "3"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"row": 3}, ValueError, "row should be one of the batch's 3 rows, 0 to 2, got 3"),
        ({"row": -1}, ValueError, "row should be one of the batch's 3 rows, 0 to 2, got -1"),
        ({"x": [1.0]}, TypeError, "x should be a tensor, with lengths where it is padded, got list"),
        (
            {"module": torch.nn.GRU(INPUT, HIDDEN)},
            TypeError,
            "module should be a holdfast.RNN, GRU, LSTM or Recurrent, got GRU",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_plot_refuses(change, error, message):
    arguments = {"module": holdfast.GRU(INPUT, HIDDEN), "x": torch.randn(T, B, INPUT), **change}
    with pytest.raises(error) as raised:
        holdfast.plot_gates(**arguments)
    assert str(raised.value) == message


def test_matplotlib_is_loaded_only_to_draw_and_asked_for_by_name():
    code = (
        "import sys, torch, holdfast\n"
        "assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib.figure'] = None\n"
        "try: holdfast.plot_gates(holdfast.GRU(2, 3), torch.randn(4, 2))\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "plot_gates draws with matplotlib, which is not installed: pip install matplotlib"
