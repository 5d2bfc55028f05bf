"""torch.compile and torch.export of models on the kernel path: whole graphs that serve every length and batch size.

The kernels run in the interpreter. aot_eager leaves out only the code generation.
"""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

import holdfast
from holdfast.autotune.pin import pinned
from holdfast.kernels import layer as kernel_layer
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent._flat_weights"),
]

CELLS = {"rnn": (holdfast.RNN, nn.RNN), "gru": (holdfast.GRU, nn.GRU), "lstm": (holdfast.LSTM, nn.LSTM)}
INPUT, HIDDEN = 7, 5

IN_GENERAL = [pytest.param(cell, marks=[] if cell == "lstm" else [pytest.mark.thorough]) for cell in CELLS]
"""For what asks little of a cell: the quick run asks it of an LSTM, whose state is a pair."""


@pytest.fixture(autouse=True)
def interpreter():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    torch._dynamo.reset()
    with interpret(seed=0) as running, holdfast.backend("triton"):
        yield running
    torch.backends.cudnn.allow_tf32 = before


class Tagger(nn.Module):
    """Two layers in both directions and a head: what a user would compile."""

    def __init__(self, recurrent, **options):
        super().__init__()
        self.recurrent = recurrent(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True, **options)
        self.head = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x, hx=None):
        y, final = self.recurrent(x, hx)
        return self.head(y), final


def pair(cell, **options):
    ours, theirs = CELLS[cell]
    a, b = Tagger(ours, **options), Tagger(theirs, **options)
    b.load_state_dict(a.state_dict())
    return a, b


def loss_of(results):
    y, final = results
    return sum(t.square().sum() for t in (y, *(final if isinstance(final, tuple) else (final,))))


def steps(model, forward, sizes):
    """Parameters after a step of SGD on a batch [B, T, INPUT] of each size."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        x = torch.randn(*size, INPUT, generator=generator).requires_grad_()
        optimizer.zero_grad()
        loss_of(forward(x)).backward()
        optimizer.step()
    return [x.grad, *model.parameters()]


SIZES = [(2, 3), (3, 4), (5, 2), (3, 6)]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keep", [None, "recompute"])
@pytest.mark.parametrize("cell", CELLS)
def test_training_compiles_whole_and_at_most_twice(cell, keep, interpreter):
    """Once for the first size, once for all others; an optimizer step compiles nothing."""
    a, b = pair(cell)
    a.recurrent.keep = keep
    counter = CompileCounterWithBackend("aot_eager")
    ours = steps(a, torch.compile(a, fullgraph=True, backend=counter), SIZES)
    assert counter.frame_count == 2
    assert interpreter.launches == 4 * len(SIZES)
    for p, q in zip(ours, steps(b, b, SIZES), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", IN_GENERAL)
def test_sizes_marked_dynamic_compile_once(cell):
    a, _ = pair(cell)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(a, fullgraph=True, backend=counter)

    def forward(x):
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        return compiled(x)

    steps(a, forward, SIZES)
    assert counter.frame_count == 1


@pytest.mark.parametrize("cell", IN_GENERAL)
def test_inference_compiles_whole(cell):
    a, b = pair(cell)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(a, fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(2, 3, INPUT))
        first = counter.frame_count
        for size in SIZES:
            x = torch.randn(*size, INPUT)
            torch.testing.assert_close(compiled(x), b(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == first


@pytest.mark.parametrize("cell", IN_GENERAL)
def test_initial_states_and_autocast(cell):
    a, b = pair(cell)
    compiled = torch.compile(a, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, INPUT)
    h = torch.randn(4, 2, HIDDEN)
    hx = (h, torch.randn(4, 2, HIDDEN)) if cell == "lstm" else h
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = compiled(x, hx)
        loss_of((y, final)).backward()
    assert y.dtype is torch.bfloat16
    loss_of(b(x, hx)).backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert p.grad.dtype is torch.float32
        assert (p.grad - q.grad).norm() <= 0.05 * q.grad.norm()


def test_dropout_between_layers():
    """Between the two layers everything is dropped: the second sees zeros, and the first gets no gradient."""
    a, b = pair("gru", dropout=1.0)
    compiled = torch.compile(a, fullgraph=True, backend="aot_eager")
    for model, forward in ((a, compiled), (b, b)):
        forward(torch.ones(2, 3, INPUT))[0].square().sum().backward()
        assert not model.recurrent.weight_hh_l0.grad.any()
    torch.testing.assert_close(a.recurrent.weight_hh_l1.grad, b.recurrent.weight_hh_l1.grad)


def test_an_eager_reason_holds_in_a_compiled_graph():
    """float64 runs on torch's own op, in the compiled graph as outside of it."""
    a, b = (model.double() for model in pair("gru"))
    compiled = torch.compile(a, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, INPUT, dtype=torch.float64)
    with holdfast.backend("auto"):
        torch.testing.assert_close(compiled(x), b(x))


def test_activation_checkpointing_in_a_compiled_graph(interpreter):
    a, b = pair("gru")

    def loss(model, x):
        return checkpoint(lambda x: model(x)[0].tanh(), x, use_reentrant=False).square().sum()

    x = torch.randn(2, 3, INPUT)
    torch.compile(lambda x: loss(a, x), fullgraph=True, backend="aot_eager")(x).backward()
    loss(b, x).backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    assert interpreter.launches > 4  # two layers, forwards, again, and backwards


def test_transforms_inside_a_compiled_graph():
    a, _ = pair("gru")
    x = torch.randn(4, 2, 3, INPUT)

    def both(x):
        return torch.func.vmap(lambda x: a(x)[0])(x)

    with holdfast.backend("auto"), torch.no_grad():
        compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), torch.stack([a(one)[0] for one in x]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_inductor(cell):
    a, b = pair(cell)
    ours = steps(a, torch.compile(a, fullgraph=True), SIZES)
    for p, q in zip(ours, steps(b, b, SIZES), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("cell", CELLS)
def test_export_with_dynamic_sizes(cell, strict):
    a, b = pair(cell)
    with torch.no_grad():
        program = exported(a, strict)
        targets = [node.target for node in program.graph.nodes]
        assert targets.count(torch.ops.holdfast.layer.default) == 2
        module = program.module()
        for size in SIZES:
            x = torch.randn(*size, INPUT)
            torch.testing.assert_close(module(x), b(x), rtol=1e-4, atol=1e-5)


def exported(model, strict=False):
    sizes = {0: Dim("B", min=2), 1: Dim("T", min=2)}
    return torch.export.export(model, (torch.randn(3, 4, INPUT),), dynamic_shapes=(sizes,), strict=strict)


def test_an_exported_program_is_saved_and_loaded_elsewhere(tmp_path):
    a, _ = pair("lstm")
    path = tmp_path / "tagger.pt2"
    x = torch.randn(2, 5, INPUT)
    with torch.no_grad():
        torch.export.save(exported(a), path)
        torch.save((x, a(x)[0]), tmp_path / "expected.pt")
    code = (
        "import sys, torch, holdfast\n"
        "from holdfast.kernels.interpreter import interpret\n"
        "torch.backends.cudnn.allow_tf32 = False\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "with interpret(), torch.no_grad():\n"
        "    torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(x)[0], expected)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "expected.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_training_graph_is_exported():
    a, b = pair("gru")
    module = exported(a).module()
    x = torch.randn(2, 3, INPUT)
    assert torch.is_grad_enabled()
    a.zero_grad()
    loss_of(module(x)).backward()
    loss_of(b(x)).backward()
    found = dict(module.named_parameters())
    for name, q in b.named_parameters():
        torch.testing.assert_close(found[name].grad, q.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_aot_inductor(tmp_path):
    """The compiled library calls the op through Python: it needs a process that has imported holdfast."""
    a, b = pair("lstm")
    with torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(exported(a), package_path=str(tmp_path / "tagger.pt2"))
        module = torch._inductor.aoti_load_package(package)
        for size in SIZES:
            x = torch.randn(*size, INPUT)
            torch.testing.assert_close(module(x), b(x), rtol=1e-4, atol=1e-5)


def test_a_pinned_config_reaches_the_backward_pass(monkeypatch):
    """Of a compiled graph, after the block that pinned it has ended; not that of another call."""
    seen = []
    launch = kernel_layer.launch

    def recorded(problem, config, *rest):
        seen.append((problem.phase, config.num_warps))
        launch(problem, config, *rest)

    monkeypatch.setattr(kernel_layer, "launch", recorded)
    model, x = holdfast.GRU(4, 8), torch.randn(3, 2, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    usual, other = Config("single_cta", 16, 16, 16), Config("single_cta", 16, 16, 16, num_warps=8)
    results = []
    for config in (usual, other):
        with pinned(config):
            results.append(compiled(x)[0])
    for y in results:
        y.sum().backward()
    assert seen == [("forward", 4), ("forward", 8), ("backward", 4), ("backward", 8)]
