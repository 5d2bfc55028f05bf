"""The rest of torch that touches a module: pickling, parametrizations, functional calls, transforms, compile."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import holdfast
from holdfast.kernels.executor import interpreting

torch.set_num_threads(1)

CELLS = {
    "rnn_tanh": (holdfast.RNN, nn.RNN, {}),
    "rnn_relu": (holdfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, nn.GRU, {}),
    "lstm": (holdfast.LSTM, nn.LSTM, {}),
    "lstm_proj": (holdfast.LSTM, nn.LSTM, {"proj_size": 2}),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


def pair(cell, **options):
    ours, theirs, more = CELLS[cell]
    a, b = ours(3, 4, **options, **more), theirs(3, 4, **options, **more)
    a.load_state_dict(b.state_dict())
    return a, b


X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


def y(module, x=X):
    return module(x)[0]


# Copies and pickles


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(cell, copied):
    a, _ = pair(cell, num_layers=2, bidirectional=True)
    b = copied(a)
    assert type(b) is type(a)
    assert torch.equal(y(a), y(b))
    assert all(w is p for w, p in zip(b._flat_weights, b.parameters(), strict=True))
    with torch.no_grad():
        b.weight_hh_l0.zero_()
    assert not torch.equal(y(a), y(b))


def test_torch_save(cell):
    a, _ = pair(cell)
    file = io.BytesIO()
    torch.save(a, file)
    file.seek(0)
    assert torch.equal(y(torch.load(file, weights_only=False)), y(a))


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
def test_state_of_an_old_pickle(cell):
    """As written before torch 1.8: no proj_size, `all_weights` instead of `_all_weights` and names."""
    a, _ = pair(cell, num_layers=2, bidirectional=True)
    state = a.__getstate__()
    del state["proj_size"]
    state["all_weights"] = state.pop("_all_weights")
    old = type(a).__new__(type(a))
    old.__setstate__(state)
    assert old.proj_size == 0
    assert torch.equal(y(old), y(a))

    older = a.__getstate__()
    older["all_weights"] = [[getattr(a, name) for name in names] for names in older.pop("_all_weights")]
    old = type(a).__new__(type(a))
    old.__setstate__(older)
    assert torch.equal(y(old), y(a))


# Weights that change under the module


@pytest.mark.parametrize("change", ["replace", "tie", "load", "data", "double", "delete"])
def test_changed_weights_are_used(cell, change):
    a, b = pair(cell, bidirectional=True)
    y(a), y(b)
    new = torch.randn_like(a.weight_hh_l0)
    x = X
    for module in (a, b):
        if change == "replace":
            module.weight_hh_l0 = nn.Parameter(new)
        elif change == "tie":
            module.weight_hh_l0_reverse = module.weight_hh_l0
        elif change == "load":
            module.load_state_dict({**module.state_dict(), "weight_hh_l0": new})
        elif change == "data":
            module.weight_hh_l0.data = new
        elif change == "double":
            module.double()
            x = X.double()
        elif change == "delete":
            del module.weight_hh_l0
            module.weight_hh_l0 = new * 1
    assert torch.equal(y(a, x), y(b, x))


def test_tied_weights_have_one_gradient(cell):
    a, b = pair(cell, bidirectional=True)
    for module in (a, b):
        module.weight_hh_l0_reverse = module.weight_hh_l0
        y(module).sum().backward()
    assert len(list(a.parameters())) == len(list(b.parameters()))
    assert torch.equal(a.weight_hh_l0.grad, b.weight_hh_l0.grad)


REPARAMETRIZED = {
    "old weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
    "old spectral_norm": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: nn.utils.parametrizations.spectral_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m, "weight_hh_l0"),
    "prune": lambda m: prune.random_unstructured(m, "weight_hh_l0", 0.5),
}


@pytest.mark.parametrize("how", REPARAMETRIZED)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_reparametrized_weights(cell, how):
    """Same values and gradients, before and after an optimizer step."""
    a, b = pair(cell)
    for module in (a, b):
        torch.manual_seed(0)
        REPARAMETRIZED[how](module)
    assert type(a).__name__ == type(b).__name__
    for _ in range(2):
        for module in (a, b):
            torch.manual_seed(1)
            optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
            optimizer.zero_grad()
            y(module).sum().backward()
            optimizer.step()
        assert torch.equal(y(a), y(b))
        for (name, p), (other, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(p.grad, q.grad)
    assert [isinstance(w, nn.Parameter) for w in a._flat_weights] == [
        isinstance(w, nn.Parameter) for w in b._flat_weights
    ]


class Counted(nn.Module):
    """Halves a weight and counts how often it is asked to."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, w):
        self.calls += 1
        return w / 2


def test_parametrization_is_evaluated_as_often_as_in_torch(cell):
    a, b = pair(cell)
    for module in (a, b):
        parametrize.register_parametrization(module, "weight_hh_l0", Counted())
        y(module)
        module.parametrizations.weight_hh_l0[0].calls = 0
    assert torch.equal(y(a), y(b))
    assert a.parametrizations.weight_hh_l0[0].calls == b.parametrizations.weight_hh_l0[0].calls


def test_functional_call(cell):
    a, b = pair(cell, num_layers=2)
    weights = {name: torch.randn_like(p) for name, p in a.named_parameters()}
    assert torch.equal(functional_call(a, weights, (X,))[0], functional_call(b, weights, (X,))[0])
    # and the module's own weights are back
    assert torch.equal(y(a), y(b))


def test_requires_grad_and_hooks(cell):
    a, b = pair(cell)
    seen = []
    for module in (a, b):
        module.requires_grad_(False)
        module.register_forward_pre_hook(lambda m, args: seen.append("before"))
        module.register_forward_hook(lambda m, args, out: seen.append(out[0]))
    assert torch.equal(y(a), y(b))
    assert not y(a).requires_grad
    assert seen[0] == "before"
    assert torch.equal(seen[1], seen[3])


def test_share_memory_and_flatten_parameters(cell):
    a, b = pair(cell)
    a.share_memory()
    a.flatten_parameters()
    assert a.weight_hh_l0.is_shared()
    assert torch.equal(y(a), y(b))


def test_data_parallel_replica(cell):
    a, b = pair(cell)
    replica = a._replicate_for_data_parallel()
    assert replica._flat_weights is not a._flat_weights
    assert torch.equal(y(replica), y(b))


def test_module_is_collected(cell):
    a, _ = pair(cell)
    y(a)
    gone = weakref.ref(a)
    del a
    gc.collect()
    assert gone() is None


# Autograd


def test_backward_twice_and_double_backward(cell):
    gradients = []
    for module in pair(cell):
        x = X.clone().requires_grad_()
        output = y(module, x).square().sum()
        output.backward(retain_graph=True)
        output.backward(retain_graph=True)
        (g,) = torch.autograd.grad(output, x, create_graph=True)
        (gg,) = torch.autograd.grad(g.square().sum(), module.weight_hh_l0)
        gradients.append((x.grad, g, gg))
    for p, q in zip(*gradients, strict=True):
        assert torch.equal(p, q)


def test_backward_in_eval_mode(cell):
    a, b = (m.eval() for m in pair(cell, num_layers=2, dropout=0.5))
    for module in (a, b):
        y(module).sum().backward()
    assert torch.equal(a.weight_hh_l0.grad, b.weight_hh_l0.grad)


def test_checkpoint(cell):
    a, b = pair(cell)
    x = X.clone().requires_grad_()
    checkpoint(lambda x: y(a, x), x, use_reentrant=False).sum().backward()
    y(b).sum().backward()
    assert torch.equal(a.weight_hh_l0.grad, b.weight_hh_l0.grad)


def test_inference_mode(cell):
    a, b = pair(cell)
    with torch.inference_mode():
        output = y(a)
    assert output.is_inference()
    assert torch.equal(output, y(b))


# Transforms that torch.nn's modules refuse

SHAPES = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_vmap(cell, options):
    a, _ = pair(cell, **options)
    x = torch.randn(7, 5, 2, 3)
    result = vmap(lambda x: a(x)[0])(x)
    torch.testing.assert_close(result, torch.stack([y(a, one) for one in x]))
    unbatched = vmap(lambda x: a(x)[0])(x[:, :, 0])
    torch.testing.assert_close(unbatched, torch.stack([y(a, one) for one in x[:, :, 0]]))


def test_per_sample_gradients(cell):
    a, _ = pair(cell)
    weights = {name: p.detach() for name, p in a.named_parameters()}
    x = torch.randn(7, 5, 3)

    def loss(weights, x):
        return functional_call(a, weights, (x,))[0].square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for i in range(7):
        a.zero_grad()
        y(a, x[i]).square().sum().backward()
        for name, p in a.named_parameters():
            torch.testing.assert_close(per_sample[name][i], p.grad)


def test_ensemble(cell):
    modules = [pair(cell)[0] for _ in range(3)]
    weights, buffers = stack_module_state(modules)
    template = copy.deepcopy(modules[0]).to("meta")
    outputs = vmap(lambda w, b: functional_call(template, (w, b), (X,))[0])(weights, buffers)
    torch.testing.assert_close(outputs, torch.stack([y(m) for m in modules]))


def test_jvp_matches_the_difference_quotient(cell):
    a, _ = pair(cell, num_layers=2)
    a.double()
    x, v = X.double(), torch.randn(X.shape, dtype=torch.float64)
    _, tangent = jvp(lambda x: a(x)[0], (x,), (v,))
    eps = 1e-6
    torch.testing.assert_close(tangent, (y(a, x + eps * v) - y(a, x - eps * v)) / (2 * eps), rtol=1e-5, atol=1e-7)


def test_forward_ad(cell):
    a, _ = pair(cell)
    v = torch.randn(X.shape)
    with torch.autograd.forward_ad.dual_level():
        output = y(a, torch.autograd.forward_ad.make_dual(X, v))
        tangent = torch.autograd.forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(tangent, jvp(lambda x: a(x)[0], (X,), (v,))[1])


def test_gradient_through_vmap_free_transform_is_the_fused_one(cell):
    """torch.func.grad alone needs no unfused steps, so it costs what it costs in torch.nn."""
    a, b = pair(cell)
    (ours, theirs) = (grad(lambda x, m=m: y(m, x).sum())(X) for m in (a, b))
    assert torch.equal(ours, theirs)


# torch.compile and export


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_compile_fullgraph(cell):
    """torch.nn's are refused by Dynamo. aot_eager leaves out only the code generation."""
    # With the executor loaded, forward asks it whether it interprets, and Dynamo traces that too.
    assert not interpreting()

    torch._dynamo.reset()
    a, b = pair(cell)
    compiled = torch.compile(a, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(X)[0], y(b))
        torch.testing.assert_close(compiled(X[:, :1])[0], y(b, X[:, :1]))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_compiled_training(cell):
    torch._dynamo.reset()
    a, b = pair(cell)
    compiled = torch.compile(a, fullgraph=True, backend="aot_eager")
    for module, forward in ((a, compiled), (b, b)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            forward(X)[0].square().sum().backward()
            optimizer.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.slow
def test_compile_with_inductor():
    torch._dynamo.reset()
    a, b = pair("lstm", num_layers=2, bidirectional=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(a, fullgraph=True)(X)[0], y(b))


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
def test_export():
    a, b = pair("lstm")
    with torch.no_grad():
        program = torch.export.export(a, (X,))
        torch.testing.assert_close(program.module()(X)[0], y(b))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace(cell):
    a, b = pair(cell)
    traced = torch.jit.trace(a, X)
    torch.testing.assert_close(traced(X)[0], y(b))


class Tagger(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        output, _ = self.recurrent(x)
        return self.head(output)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
def test_fx_keeps_the_module_as_one_node(cell):
    """As it does modules of torch.nn; a module of anybody else's is traced into, and could not be."""
    a, b = (torch.fx.symbolic_trace(Tagger(module)) for module in pair(cell))
    b.head.load_state_dict(a.head.state_dict())
    assert [(n.op, str(n.target)) for n in a.graph.nodes] == [(n.op, str(n.target)) for n in b.graph.nodes]
    assert torch.equal(a(X), b(X))
