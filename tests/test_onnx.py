"""ONNX, by both of torch's exporters, compared through onnxruntime at other lengths and batch sizes than the traced."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import holdfast
from holdfast.kernels.interpreter import interpret

onnx = pytest.importorskip("onnx", reason="make test installs onnx, onnxscript and onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="make test installs onnx, onnxscript and onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporters deprecate what they do themselves

INPUT, H = 3, 4
SIZES = [(3, 5), (2, 9), (6, 2), (1, 1)]
KINDS = {
    "rnn_tanh": lambda **o: holdfast.RNN(INPUT, H, **o),
    "rnn_relu": lambda **o: holdfast.RNN(INPUT, H, nonlinearity="relu", **o),
    "gru": lambda **o: holdfast.GRU(INPUT, H, **o),
    "gru_reset_before": lambda **o: holdfast.GRU(INPUT, H, reset_after=False, **o),
    "lstm": lambda **o: holdfast.LSTM(INPUT, H, **o),
    "lstm_proj": lambda **o: holdfast.LSTM(INPUT, H, proj_size=2, **o),
    "lstm_peephole": lambda **o: holdfast.LSTM(INPUT, H, peepholes=True, **o),
    "lstm_activations": lambda **o: holdfast.LSTM(INPUT, H, activation="elu", recurrent_activation="hard_sigmoid", **o),
}
WAYS = ["torchscript", "dynamo", "program"]
LAYERS = [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False, "batch_first": True}]


def inputs(m, B, T, with_hx, with_lengths):
    found = {"input": torch.randn((B, T, INPUT) if m.batch_first else (T, B, INPUT))}
    if with_hx:
        rows = m.num_layers * (2 if m.bidirectional else 1)
        h = torch.randn(rows, B, m.proj_size or H)
        found["hx"] = (h, torch.randn(rows, B, H)) if m.n_states == 2 else h
    if with_lengths:
        found["lengths"] = torch.randint(0, T + 1, (B,))
    return found


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for each in (value.values() if isinstance(value, dict) else value) for t in flat(each)]


def session_of(model, given, way, batch_first, path):
    """The model as ONNX at the sizes of `given`, all lengths and batch sizes open; "program": as its program."""
    arguments = tuple(value for name, value in given.items() if name != "lengths")
    keywords = {name: value for name, value in given.items() if name == "lengths"}
    if way != "torchscript":
        a, states = Dim.AUTO, {1: Dim.AUTO}
        of = {"input": {0: a, 1: a}, "hx": (states, states), "lengths": {0: a}}
        if "hx" in given and isinstance(given["hx"], torch.Tensor):
            of["hx"] = states
        shapes = {name: of[name] for name in given}
        if way == "program":
            model, arguments = torch.export.export(model, arguments, keywords, dynamic_shapes=shapes), ()
            keywords = shapes = None
        torch.onnx.export(model, arguments, path, kwargs=keywords, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        names = [f"{name}{k}" for name, value in given.items() for k in range(len(flat(value)))]
        axes = {"i": {0: "a", 1: "b"}, "h": {1: "a" if batch_first else "b"}, "l": {0: "a" if batch_first else "b"}}
        torch.onnx.export(
            model,
            arguments,
            path,
            kwargs=keywords,
            dynamo=False,
            input_names=names,
            dynamic_axes={name: axes[name[0]] for name in names},
        )
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def compare(session, model, m, with_hx=False, with_lengths=False):
    for B, T in SIZES:
        given = inputs(m, B, T, with_hx, with_lengths)
        fed = {place.name: t.numpy() for place, t in zip(session.get_inputs(), flat(given), strict=True)}
        with torch.no_grad():
            expected = flat(model(**given))
        for p, q in zip(session.run(None, fed), expected, strict=True):
            np.testing.assert_allclose(p, q.numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("arguments", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_cell_at_other_sizes(way, kind, options, arguments, tmp_path):
    """With hx, with lengths; the operators of ONNX, one a layer."""
    m = KINDS[kind](**options).eval()
    path = str(tmp_path / "m.onnx")
    session = session_of(m, inputs(m, 3, 5, *arguments), way, m.batch_first, path)
    compare(session, m, m, *arguments)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert sum(name in ("LSTM", "GRU", "RNN") for name in operators) == m.num_layers


class Tagger(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.embed = nn.Linear(INPUT, INPUT)
        self.recurrent = recurrent
        self.head = nn.Linear(2 * H, 5)

    def forward(self, input):
        return self.head(self.recurrent(self.embed(input))[0])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernels", [False, True], ids=["eager", "kernels"])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
@pytest.mark.parametrize("way", WAYS)
def test_inside_a_model_and_where_kernels_run(way, kind, kernels, tmp_path):
    m = KINDS[kind](bidirectional=True, batch_first=True)
    model = Tagger(m).eval()
    given = inputs(m, 3, 5, False, False)
    path = str(tmp_path / "m.onnx")
    if kernels:
        with interpret(), holdfast.backend("triton"):
            session = session_of(model, given, way, True, path)
    else:
        session = session_of(model, given, way, True, path)
    compare(session, model, m)


def test_a_converted_model_as_it_was_reported(tmp_path):
    """At T=20 the outputs of the 12 steps came back that had been traced."""
    model = holdfast.convert(nn.Sequential(nn.LSTM(8, 16, batch_first=True))).eval()
    a, path = Dim.AUTO, str(tmp_path / "o.onnx")
    torch.onnx.export(
        model, (torch.randn(4, 12, 8),), path, input_names=["x"], dynamo=True, dynamic_shapes=({0: a, 1: a},)
    )
    x = torch.randn(2, 20, 8)
    found = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, model(x)[0].detach().numpy(), atol=1e-6)


def test_a_root_module_through_torchscript_as_it_was_reported():
    """TypeError: forward() takes from 2 to 3 positional arguments but 7 were given."""
    torch.onnx.export(holdfast.GRU(3, 4).eval(), (torch.randn(5, 2, 3),), io.BytesIO(), dynamo=False)
    with pytest.raises(TypeError, match=r"forward\(\) takes from 2 to 3 positional arguments but 7 were given"):
        holdfast.GRU(3, 4)(torch.randn(5, 2, 3), None, None, None, None, False)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_cells(kind, way, tmp_path):
    cell = getattr(holdfast, f"{kind}Cell")(INPUT, H).eval()
    path, x = str(tmp_path / "c.onnx"), torch.randn(3, INPUT)
    if way == "dynamo":
        shapes = ({0: Dim.AUTO},)
        torch.onnx.export(cell, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    elif way == "program":
        program = torch.export.export(cell, (x,), dynamic_shapes=({0: Dim.AUTO},))
        torch.onnx.export(program, (), path, dynamo=True, verbose=False)
    else:
        torch.onnx.export(cell, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "B"}})
    session = onnxruntime.InferenceSession(path)
    x = torch.randn(5, INPUT)
    for p, q in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), flat(cell(x)), strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), atol=1e-6)


LACKING = {
    "resets": (lambda: holdfast.GRU(INPUT, H), {"resets": torch.zeros(5, 2, dtype=torch.bool)}),
    "return_gates": (lambda: holdfast.GRU(INPUT, H), {"return_gates": True}),
    "recurrent dropout or zoneout": (lambda: holdfast.GRU(INPUT, H, zoneout=0.1), {}),
    "cell 'gru\\(selu,sigmoid\\)'": (lambda: holdfast.GRU(INPUT, H, activation="selu"), {}),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", LACKING)
def test_what_onnx_lacks_is_refused_by_name(what, way):
    make, given = LACKING[what]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = make()

        def forward(self, x):
            return self.recurrent(x, **given)[0]

    model, arguments = Model().eval(), (torch.randn(5, 2, INPUT),)
    if way == "program":
        model, arguments = torch.export.export(model, arguments), ()
    with pytest.raises(Exception, match=f"ONNX's recurrent operators have no {what}"):
        torch.onnx.export(model, arguments, io.BytesIO(), dynamo=way != "torchscript", verbose=False)
