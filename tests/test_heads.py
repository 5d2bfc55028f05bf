"""`num_heads=`: values and gradients are torch.nn's with the block-diagonal matrix, on the kernels (interpreted) and on
torch's own op, alone and with every other argument."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import holdfast
from holdfast.kernels.heads import block_diagonal, diagonal_blocks
from holdfast.kernels.interpreter import interpret

MODULES = {
    "rnn": (holdfast.RNN, nn.RNN),
    "gru": (holdfast.GRU, nn.GRU),
    "lstm": (holdfast.LSTM, nn.LSTM),
}
PATHS = ["kernels", "eager"]
I, H, N = 3, 20, 4  # noqa: E741


def on(path: str):
    """Where calls run: through the interpreted kernels, or on torch's own op."""
    return interpret(seed=H) if path == "kernels" else nullcontext()


def pair(cell, dtype, **options):
    """A module of several heads, and torch.nn's in float64 with the same numbers in its block-diagonal matrices."""
    ours, theirs = MODULES[cell]
    several, dense = ours(I, H, dtype=dtype, num_heads=N, **options), theirs(I, H, dtype=torch.float64, **options)
    weights = several.state_dict()
    dense.load_state_dict({k: block_diagonal(w, N) if k.startswith("weight_hh") else w for k, w in weights.items()})
    return several, dense


def tensors(results):
    """Of a module, one after the other: y or its packed rows, then the final states."""
    y, states = results
    return [y.data if isinstance(y, PackedSequence) else y, *(states if isinstance(states, tuple) else (states,))]


def gradients(module, outputs):
    """Of every parameter, by the names and shapes of a module of several heads."""
    module.zero_grad()
    flat = tensors(outputs)
    generator = torch.Generator().manual_seed(3)
    torch.autograd.backward(flat, [torch.randn(t.shape, generator=generator).to(t) for t in flat])
    found = {name: p.grad.double() for name, p in module.named_parameters()}
    return {k: diagonal_blocks(g, N) if g.shape[-1] == H and "weight_hh" in k else g for k, g in found.items()}


def agree(found, expected, path):
    """float64 by the same op, to a rounding; float32 through three TF32 products to a few."""
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if path == "eager" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found, expected, check_dtype=False, **tolerance)


@pytest.fixture
def no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")


def compare(cell, path, arguments, **options):
    """The kernels in float32, or torch's op in float64, with torch.nn in float64."""
    dtype = torch.float32 if path == "kernels" else torch.float64
    ours, theirs = pair(cell, dtype, **options)
    with on(path):
        results = ours(*arguments(dtype))
        found = gradients(ours, results)
    expected = theirs(*arguments(torch.float64))
    agree(tensors(results), tensors(expected), path)
    agree(found, gradients(theirs, expected), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cell", MODULES)
def test_as_torch_with_the_block_diagonal_matrix(cell, path, no_tf32):
    x = torch.randn(3, 3, I)
    h = torch.randn(4, 3, H)
    states = (h, h.flip(0)) if cell == "lstm" else h

    def arguments(dtype):
        return x.to(dtype), tuple(s.to(dtype) for s in states) if cell == "lstm" else states.to(dtype)

    compare(cell, path, arguments, num_layers=2, bidirectional=True)


def test_a_layer_of_one_head_is_another_problem(no_tf32):
    """A config is remembered by the shape of W_hh, whose columns alone are those of one head."""
    x = torch.randn(2, 1, I)
    with on("kernels"):
        holdfast.RNN(I, H // N)(x)
    compare("rnn", "kernels", lambda dtype: (x.to(dtype),))


@pytest.mark.parametrize("path", PATHS)
def test_a_packed_sequence(path, no_tf32):
    x = torch.randn(6, 3, I)
    compare("gru", path, lambda dtype: (pack_padded_sequence(x.to(dtype), torch.tensor([6, 4, 1])),))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cell", MODULES)
def test_lengths_resets_and_states_are_each_heads_own(cell, path, no_tf32):
    """Head by head, as modules of one head."""
    ours = MODULES[cell][0](I, H, num_heads=N)
    x, lengths, resets = torch.randn(6, 3, I), torch.tensor([6, 3, 0]), torch.rand(6, 3) < 0.4
    with on(path):
        y, _ = ours(x, lengths=lengths, resets=resets)
    width = H // N
    for head in range(N):
        alone = MODULES[cell][0](I, width)
        units = slice(head * width, (head + 1) * width)
        with torch.no_grad():
            for name, p in alone.named_parameters():
                whole = getattr(ours, name)
                p.copy_(whole.unflatten(0, (-1, N, width))[:, head].flatten(0, 1))
        expected, _ = alone(x, lengths=lengths, resets=resets)
        torch.testing.assert_close(y[..., units], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"zoneout": 0.3},
        {"recurrent_dropout": 0.3},
        {"learn_initial_state": True},
        {"reset_after": False},
        {"activation": "softsign"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_with_options_both_paths_agree(options, no_tf32):
    """With the same random numbers, which are drawn for the whole layer."""
    module, x = holdfast.GRU(I, H, num_heads=N, **options), torch.randn(3, 3, I)
    found = []
    for path in PATHS:
        torch.manual_seed(5)
        with on(path):
            results = module(x)
            found.append((results, gradients(module, results)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_own_cells_and_their_numbers_have_heads(no_tf32):
    module = holdfast.Recurrent("lstm_peephole", I, H, num_heads=N)
    assert module.weight_hh_l0.shape == (4 * H, H // N)
    assert module.weight_unit_l0.shape == (3, H)
    x, found = torch.randn(4, 2, I), []
    for path in PATHS:
        with on(path):
            results = module(x)
            found.append((results, gradients(module, results)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", MODULES)
def test_one_head_is_torchs(cell):
    torch.manual_seed(1)
    ours = MODULES[cell][0](I, H, num_heads=1)
    torch.manual_seed(1)
    theirs = MODULES[cell][1](I, H)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert "num_heads" not in repr(ours)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "hidden_size should be a multiple of num_heads, got hidden_size=20, num_heads=3"),
        ({"num_heads": 0}, "num_heads should be a positive integer, got 0"),
        ({"num_heads": True}, "num_heads should be a positive integer, got True"),
        ({"num_heads": 2.0}, "num_heads should be a positive integer, got 2.0"),
        ({"num_heads": 4, "proj_size": 2}, "num_heads does not go with proj_size, got num_heads=4, proj_size=2"),
    ],
    ids=str,
)
def test_what_is_no_number_of_heads_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        holdfast.LSTM(I, H, **options)


@pytest.mark.parametrize(
    "module",
    [holdfast.RNN, holdfast.GRU, holdfast.LSTM, holdfast.SLSTM, partial(holdfast.Recurrent, "lstm_peephole")],
    ids=["RNN", "GRU", "LSTM", "SLSTM", "Recurrent"],
)
def test_every_module_says_which_sizes_heads_go_with(module):
    with pytest.raises(
        ValueError, match="hidden_size should be a multiple of num_heads, got hidden_size=20, num_heads=3"
    ):
        module(I, H, num_heads=3)
    with pytest.raises((ValueError, TypeError), match="proj_size"):
        module(I, H, num_heads=N, proj_size=2)


def test_weights_of_another_number_of_heads_do_not_load():
    with pytest.raises(RuntimeError, match=r"weight_hh_l0.*\[60, 5\]"):
        holdfast.GRU(I, H).load_state_dict(holdfast.GRU(I, H, num_heads=N).state_dict())


@pytest.mark.parametrize("cell", MODULES)
def test_to_torch_expands_the_matrix(cell):
    ours = MODULES[cell][0](I, H, 2, num_heads=N, bidirectional=True)
    ours.weight_hh_l1.requires_grad_(False)
    x = torch.randn(4, 2, I)
    y, _ = ours(x)
    model = nn.ModuleDict({"a": ours, "b": copy.deepcopy(ours)})
    model["b"].weight_hh_l0 = ours.weight_hh_l0
    assert holdfast.to_torch(model) is model
    theirs = model["a"]
    assert type(theirs) is MODULES[cell][1]
    assert not hasattr(theirs, "num_heads")
    assert torch.equal(theirs(x)[0], y)
    assert not theirs.weight_hh_l1.requires_grad
    assert model["b"].weight_hh_l0 is theirs.weight_hh_l0, "what was tied stays tied"
    assert theirs.state_dict().keys() == MODULES[cell][1](I, H, 2, bidirectional=True).state_dict().keys()
    torch.jit.script(theirs)
    holdfast.convert(model)
    assert model["a"].num_heads == 1, "the matrix says nothing of heads"
    assert torch.equal(model["a"](x)[0], y)


def test_to_torch_names_what_torch_has_nothing_for():
    for option in ("reset_after", "layer_norm"):
        model = nn.ModuleList([holdfast.GRU(I, H, num_heads=N, **{option: option == "layer_norm"})])
        with pytest.raises(ValueError, match=f"torch.nn has nothing for {option}="):
            holdfast.to_torch(model)


def test_to_torch_refuses_parametrized_heads():
    module = holdfast.GRU(I, H, num_heads=N)
    parametrize.register_parametrization(module, "weight_hh_l0", nn.Identity())
    with pytest.raises(ValueError, match="num_heads=4"):
        holdfast.to_torch(module)


@pytest.mark.parametrize("path", PATHS)
def test_copies_pickles_and_repr(path):
    module = holdfast.LSTM(I, H, num_heads=N)
    assert "num_heads=4" in repr(module)
    x = torch.randn(3, 2, I)
    with on(path):
        y = module(x)[0]
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(x)[0], y)


def test_explain_names_the_heads():
    module = holdfast.LSTM(I, 768, num_heads=12, dtype=torch.bfloat16)
    with interpret(), holdfast.backend("triton"):
        plan = module.explain(torch.randn(3, 2, I, dtype=torch.bfloat16))
    assert plan.regime == "single_cta", "a head that fits one program exchanges nothing"
    assert plan.backward.regime == "single_cta"
    assert "hidden_size=768 num_heads=12" in str(plan)


def test_a_stream_has_heads():
    module = holdfast.GRU(I, H, num_heads=N)
    x = torch.randn(5, 2, I)
    stream = holdfast.Stateful(module)
    torch.testing.assert_close(torch.stack([stream.step(step) for step in x]), module(x)[0])


@pytest.mark.parametrize("path", PATHS)
def test_second_derivatives(path, no_tf32):
    module = holdfast.GRU(I, 4, num_heads=2, dtype=torch.float64)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    if path == "eager":
        assert torch.autograd.gradgradcheck(lambda x: module(x)[0], (x,))
        return
    module, x = module.float(), x.detach().float().requires_grad_()
    with interpret():
        found = second(module, x)
    torch.testing.assert_close(found, second(module, x), rtol=1e-3, atol=1e-5)


def second(module, x):
    (first,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), [x, *module.parameters()])


@pytest.mark.parametrize("path", PATHS)
def test_torch_compile_and_export(path):
    torch._dynamo.reset()  # whether the kernels are interpreted is a constant of a graph
    module, x = holdfast.GRU(I, H, num_heads=N), torch.randn(4, 2, I)
    with on(path):
        expected = module(x)
        found = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(gradients(module, found), gradients(module, expected), rtol=1e-6, atol=1e-6)
        exported = torch.export.export(module, (x,), strict=False).module()
        torch.testing.assert_close(exported(x)[0], expected[0], rtol=0, atol=0)


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_onnx(dynamo, tmp_path):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    module, x = holdfast.LSTM(I, H, num_heads=N), torch.randn(4, 2, I)
    path = tmp_path / "heads.onnx"
    torch.onnx.export(module, (x,), path, input_names=["x"], dynamo=dynamo)
    (y, *_) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), module(x)[0].detach(), rtol=1e-5, atol=1e-6)


def test_an_infinite_weight_stays_in_its_block():
    module = holdfast.RNN(I, H, num_heads=N)
    with torch.no_grad():
        module.weight_hh_l0[0, 0] = float("inf")
    dense = block_diagonal(module.weight_hh_l0.detach(), N)
    assert torch.equal(dense.isfinite().logical_not().nonzero(), torch.tensor([[0, 0]]))
    assert torch.equal(diagonal_blocks(dense, N), module.weight_hh_l0)
