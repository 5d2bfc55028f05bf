"""Training modules through the compiled kernels; what only a GPU can show. CUDA graphs are in test_gpu_graph.py."""

import copy
import threading

import pytest
import torch
from torch import nn

import holdfast
from holdfast.autotune.pin import pinned
from holdfast.autotune.select import select
from holdfast.kernels import layer as kernel_layer
from holdfast.kernels.problem import Problem
from holdfast.kernels.tolerance import compare_all, worst

pytestmark = pytest.mark.gpu

CELLS = {"rnn": (holdfast.RNN, nn.RNN), "gru": (holdfast.GRU, nn.GRU), "lstm": (holdfast.LSTM, nn.LSTM)}


@pytest.fixture(autouse=True)
def _kernels():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    with holdfast.backend("triton"):
        yield
    torch.backends.cudnn.allow_tf32 = before


def pair(cell, dtype, hidden, **options):
    ours, theirs = CELLS[cell]
    a = ours(24, hidden, **options).to("cuda", dtype)
    b = theirs(24, hidden, **options).to("cuda", dtype)
    b.load_state_dict(a.state_dict())
    return a, b


def gradients(forward, module, x, dy):
    """Of y, x and every parameter of `module`, which `forward` runs, in the module's dtype."""
    dtype = next(module.parameters()).dtype
    x = x.to(dtype, copy=True).requires_grad_()
    y, _ = forward(x)
    y.backward(dy.to(dtype))
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("keep", ["save", "recompute"])
@pytest.mark.parametrize("hidden", [48, 320])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_as_torch_in_float64(cell, dtype, hidden, keep):
    a, b = pair(cell, dtype, hidden, num_layers=2)
    a.keep = keep
    x, dy = torch.randn(33, 5, 24, device="cuda", dtype=dtype), torch.randn(33, 5, hidden, device="cuda", dtype=dtype)
    if a.explain(x).backward is None:
        pytest.skip("no kernel of this size on this GPU")
    found, torchs, exact = (gradients(m, m, x, dy) for m in (a, b, copy.deepcopy(b).double()))
    errors = worst(compare_all(found, torchs, exact, dtype))
    assert errors.ok, errors


def test_a_pinned_config_holds_on_autograds_own_thread(monkeypatch):
    """The `with` block was entered on this thread, and has ended, when autograd's thread launches the backward loop."""
    a, _ = pair("gru", torch.bfloat16, 64)
    x = torch.randn(5, 3, 24, device="cuda", dtype=torch.bfloat16)
    chosen = select(Problem("gru", torch.bfloat16, 64, 3, phase="backward"), x.device).config
    other = next(c for c in (4, 8) if c != chosen.num_warps)
    config = type(chosen)(**{**chosen.asdict(), "num_warps": other})
    seen = []
    launch = kernel_layer.launch

    def recorded(problem, config, *rest):
        seen.append((problem.phase, config, threading.get_ident()))
        launch(problem, config, *rest)

    monkeypatch.setattr(kernel_layer, "launch", recorded)
    with pinned(config):
        y, _ = a(x)
    y.sum().backward()
    assert [(phase, used) for phase, used, _ in seen] == [("forward", config), ("backward", config)]
    assert seen[0][2] != seen[1][2]


@pytest.mark.parametrize("cell", CELLS)
def test_compiled_by_inductor(cell):
    torch._dynamo.reset()
    a, b = pair(cell, torch.float32, 48, bidirectional=True)
    compiled = torch.compile(a, fullgraph=True)
    for length, batch in ((7, 3), (9, 4), (33, 2)):
        a.zero_grad()
        b.zero_grad()
        x, dy = torch.randn(length, batch, 24, device="cuda"), torch.randn(length, batch, 96, device="cuda")
        found, expected = gradients(compiled, a, x, dy), gradients(b, b, x, dy)
        for p, q in zip(found, expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
