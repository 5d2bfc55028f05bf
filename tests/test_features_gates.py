"""return_gates and plot_gates: what the gates of a call were, in every layout, and as a picture."""

import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import holdfast
from holdfast.kernels.interpreter import interpret

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


def leaves(module, *tensors):
    return [t.clone().requires_grad_() for t in tensors], list(module.parameters())


def grads_of(results, weights, wanted):
    loss = sum((t * w).sum() for t, w in zip(results, weights, strict=True))
    return torch.autograd.grad(loss, wanted)


def test_gradients_of_every_state_are_those_of_a_loop_over_a_cell():
    """Of h and c in every step, with lengths, resets and an initial state; torch.nn's cell is the loop."""
    module, cell = holdfast.LSTM(INPUT, HIDDEN).double(), torch.nn.LSTMCell(INPUT, HIDDEN).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    x, h0, c0 = (torch.randn(*size).double() for size in ((T, B, INPUT), (1, B, HIDDEN), (1, B, HIDDEN)))
    resets = torch.rand(T, B) < 0.3
    (x1, h1, c1), own = leaves(module, x, h0, c0)
    *_, (gates,) = module(x1, (h1, c1), lengths=LENGTHS, resets=resets, return_gates="differentiable")

    (x2, h2, c2), others = leaves(cell, x, h0, c0)
    h, c, steps = h2[0], c2[0], []
    for t in range(T):
        keep = ~resets[t, :, None] | (t >= torch.tensor(LENGTHS)[:, None])
        new = cell(x2[t], (h * keep, c * keep))
        live = (t < torch.tensor(LENGTHS))[:, None]
        h, c = (torch.where(live, n, o) for n, o in zip(new, (h, c), strict=True))
        steps.append((h * live, c * live))
    expected = [torch.stack(of) for of in zip(*steps, strict=True)]
    torch.testing.assert_close([gates["h"], gates["c"]], expected)
    weights = [torch.randn_like(t) for t in expected]
    # h_0 and c_0 of a row without steps, or reset at once, have none
    torch.testing.assert_close(
        grads_of([gates["h"], gates["c"]], weights, [x1, h1, c1, *own]),
        grads_of(expected, weights, [x2, h2, c2, *others]),
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "make",
    [lambda **o: holdfast.LSTM(2, 2, proj_size=1, **o), lambda **o: holdfast.GRU(2, 2, **o)],
    ids=["lstm_proj", "gru"],
)
def test_gradcheck_through_every_gate_and_state(make):
    module = make(num_layers=2, bidirectional=True, batch_first=True).double()
    x = torch.randn(2, 3, 2).double().requires_grad_()

    def every(x, *weights):
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        *_, gates = torch.func.functional_call(module, named, (x,), {"return_gates": "differentiable"})
        return tuple(t for layer in gates for t in layer.values())

    detached = [t for layer in module(x, return_gates=True)[2] for t in layer.values()]
    torch.testing.assert_close(list(every(x, *module.parameters())), detached)
    assert torch.autograd.gradcheck(every, (x, *module.parameters()), fast_mode=True)


class Cells(torch.nn.Module):
    """The cell states of an LSTM's layers in every step."""

    def __init__(self, return_gates):
        super().__init__()
        self.lstm, self.return_gates = holdfast.LSTM(INPUT, HIDDEN, num_layers=2), return_gates

    def forward(self, x):
        *_, gates = self.lstm(x, return_gates=self.return_gates)
        return [layer["c"] for layer in gates]


def test_gradients_of_gates_in_whole_graphs():
    module, x = Cells("differentiable"), torch.randn(T, B, INPUT)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(module, (x,)).module()
    expected = grads_of([c.square() for c in module(x)], [1.0, 2.0], list(module.parameters()))
    assert all(g.any() for g in expected)
    for run in (compiled, exported):
        found = grads_of([c.square() for c in run(x)], [1.0, 2.0], list(run.parameters()))
        assert all(map(torch.equal, found, expected))
    module.return_gates = True
    assert not any(c.requires_grad for c in compiled(x))


def test_kernels_refuse_gradients_of_gates_by_name():
    module, x = holdfast.LSTM(INPUT, HIDDEN), torch.randn(T, B, INPUT)
    with interpret():
        plan = module.explain(x, return_gates="differentiable")
        assert (plan.op, [reason.name for reason in plan.reasons]) == ("recurrence", ["differentiable_gates"])
        with holdfast.backend("triton"), pytest.raises(RuntimeError, match="differentiable_gates"):
            module(x, return_gates="differentiable")
        *_, (gates,) = module(x, return_gates="differentiable")
        with torch.no_grad(), holdfast.backend("triton"):  # no backward pass can follow
            *_, (values,) = module(x, return_gates="differentiable")
    assert gates["c"].requires_grad
    assert not values["c"].requires_grad
    for name, value in values.items():
        torch.testing.assert_close(value, gates[name].detach(), atol=1e-3, rtol=1e-3)  # the kernels multiply in TF32
    with pytest.raises(ValueError, match="return_gates should be False, True or 'differentiable', got 'states'"):
        module(x, return_gates="states")


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
