"""Files of a previous version load and give what that version gave: `data/previous_version/make.py` wrote them."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.cells.eager import ragged
from holdfast.cells.eager.reference import REFERENCES
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.interpreter import interpret

FILES = Path(__file__).parent / "data" / "previous_version"
NAMES = [
    "RNN",
    "GRU",
    "GRU, options",
    "LSTM",
    "LSTM, options",
    "LSTM, projected",
    "Recurrent",
    "Recurrent, own cell",
    "Stateful",
    "converted",
    "LSTMCell",
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent._flat_weights"),
]


def imported(name, monkeypatch):
    monkeypatch.syspath_prepend(FILES)
    spec = importlib.util.spec_from_file_location(name, FILES / f"{name}.py")
    monkeypatch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def make(monkeypatch):
    """The script that wrote the files, and with it the cell that they have a module of."""
    own_cell = imported("own_cell", monkeypatch)
    yield imported("make", monkeypatch)
    del CELLS[own_cell.NAME], REFERENCES[own_cell.NAME]


@pytest.fixture
def stored(make):
    return torch.load(FILES / "results.pt", weights_only=True)


@pytest.fixture
def same(make, stored):
    """Compares bit for bit where torch.nn still gives the bits of that day: another processor may round otherwise."""
    exactly = torch.equal(make.bits_of_torch(), stored["bits of torch"])

    def same(found, expected):
        assert type(found) is type(expected)
        if isinstance(expected, tuple):
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                same(one, other)
        elif exactly:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    return same


@pytest.fixture
def tagger(make):
    tagger = make.Tagger()
    tagger.load_state_dict(torch.load(FILES / "tagger.pt", weights_only=True))
    return tagger.eval()


@pytest.mark.parametrize("name", NAMES)
def test_whole_modules(name, stored, same, monkeypatch):
    """A call with resets in the layout of that day, packed segments: null steps came later."""
    monkeypatch.setattr(ragged, "MOST_STEPS_OF_A_KERNEL", 0.0)
    calls = torch.load(FILES / "modules.pt", weights_only=False)
    assert list(calls) == NAMES
    module, args, options = calls[name]
    with torch.no_grad():
        same(module(*args, **options), stored["results"][name])


def test_null_steps_round_otherwise(stored):
    """What a call with resets takes today. Another order of sums is one rounding of numbers below 1 for each of the
    2 * 4 steps of a path through both layers."""
    module, args, options = torch.load(FILES / "modules.pt", weights_only=False)["LSTM"]
    with torch.no_grad():
        found = module(*args, **options)
    torch.testing.assert_close(found, stored["results"]["LSTM"], rtol=0, atol=8 * torch.finfo(torch.float32).eps)


def test_a_module_has_its_options(make):
    module = torch.load(FILES / "modules.pt", weights_only=False)["LSTM, options"][0]
    assert module.chosen_options() == {
        "recurrent_dropout": 0.25,
        "zoneout": (0.2, 0.1),
        "learn_initial_state": True,
        "forget_bias": 1.0,
        "peepholes": True,
    }
    assert torch.load(FILES / "modules.pt", weights_only=False)["LSTM"][0].keep == "recompute"


def test_state_dicts(make, stored, same):
    calls, fresh = torch.load(FILES / "modules.pt", weights_only=False), make.modules()
    for name, state_dict in torch.load(FILES / "state_dicts.pt", weights_only=True).items():
        (old, args, options), (module, *_) = calls[name], fresh[name]
        module.load_state_dict(state_dict)
        if name == "Stateful":  # its state is none of the state_dict's
            module.state = old.state
        with torch.no_grad():
            same(module(*args, **options), stored["results"][name])


def test_an_exported_program_of_torchs_op(stored, same):
    program = torch.export.load(FILES / "eager.pt2")
    same(program.module()(stored["x"]), stored["results"]["eager.pt2"])


def test_an_exported_program_of_the_kernels(tagger, stored, same, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    program = torch.export.load(FILES / "kernels.pt2")
    with interpret(seed=0) as interpreter:
        same(program.module()(stored["x"]), stored["results"]["kernels.pt2"])
    assert interpreter.launches == 2


def test_an_onnx_file_is_what_the_module_still_exports(tagger, stored, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    old = onnx.load(FILES / "eager.onnx")
    with torch.no_grad():
        program = torch.onnx.export(tagger, (stored["x"],), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model_proto.graph.node] == [node.op_type for node in old.graph.node]
    for model in (old, program.model_proto):
        (input,) = model.graph.input
        (y,) = ReferenceEvaluator(model).run(None, {input.name: stored["x"].numpy()})
        torch.testing.assert_close(torch.from_numpy(y), stored["results"]["eager.onnx"], rtol=1e-4, atol=1e-5)
