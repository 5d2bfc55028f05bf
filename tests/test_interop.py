"""torch's other tools on holdfast's modules: they work, or say what to do."""

import pytest
import torch
from torch import nn

import holdfast

torch.set_num_threads(1)

MODULES = [holdfast.RNN, holdfast.GRU, holdfast.LSTM, holdfast.RNNCell, holdfast.GRUCell, holdfast.LSTMCell]
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")


def model_of(module, keep_isinstance=False):
    model = nn.ModuleDict({"layer": module(3, 4)})
    return holdfast.convert(model, keep_isinstance=keep_isinstance)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_script_names_to_torch(module, keep):
    model = model_of(module, keep)
    with pytest.raises(RuntimeError, match=rf"not take holdfast\.{module.__name__}: .*holdfast\.to_torch\(model\)"):
        torch.jit.script(model["layer"])
    holdfast.to_torch(model)
    torch.jit.script(model["layer"])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace():
    layer, x = holdfast.GRU(3, 4).eval(), torch.randn(5, 2, 3)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(layer, x, check_trace=False)(x)[0], layer(x)[0])


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("module", MODULES)
def test_quantize_dynamic_names_to_torch(module):
    model = model_of(module)
    kind = getattr(nn, module.__name__)
    with pytest.warns(UserWarning, match=rf"leaves holdfast\.{module.__name__} as it is.*holdfast\.to_torch\(model\)"):
        left = torch.ao.quantization.quantize_dynamic(model, {kind}, dtype=torch.qint8)
    assert type(left["layer"]) is module
    assert not hasattr(left["layer"], "qconfig")
    made = torch.ao.quantization.quantize_dynamic(holdfast.to_torch(model), {kind}, dtype=torch.qint8)
    if module is not holdfast.RNN:  # torch.ao has none
        assert type(made["layer"]).__module__.startswith("torch.ao")


@pytest.mark.parametrize("module", MODULES)
def test_opacus_is_refused_where_it_sets_its_function(module):
    layer = module(3, 4)
    assert not hasattr(layer, "ft_compute_sample_grad")
    with pytest.raises(NotImplementedError, match=r"holdfast\.to_torch\(model\), then opacus"):
        layer.ft_compute_sample_grad = print


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_fx_traces_it_as_one_node(module, keep):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model_of(module, keep)["layer"]

        def forward(self, x, hx):
            after = self.layer(x, hx)
            return after, self.layer(x)

    model = Twice()
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes].count("call_module") == 2
    x = torch.randn(5, 2, 3) if issubclass(module, nn.RNNBase) else torch.randn(2, 3)
    h = torch.randn(1, 2, 4) if x.dim() == 3 else torch.randn(2, 4)
    hx = (h, -h) if "LSTM" in module.__name__ else h
    torch.testing.assert_close(traced(x, hx), model(x, hx), rtol=0, atol=0)


@pytest.mark.parametrize("module", [holdfast.LSTM(3, 4), holdfast.GRU(3, 4), holdfast.RNN(3, 4)], ids=type)
def test_an_unknown_argument_names_keep_isinstance(module):
    """torchrl passes `mask` to what is no torch.nn.LSTM: it takes it for its own."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'mask'.*keep_isinstance=True"):
        module(torch.zeros(2, 1, 3), mask=None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        holdfast.to_torch(module)(torch.zeros(2, 1, 3), mask=None)
