"""torch.compile and torch.export where no kernel runs: one op a call, any length and batch size, bitwise as eager."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import holdfast
from holdfast.cells.ops import eager as eager_op

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.*_flat_weights"),
]

INPUT, H = 3, 4
SIZES = [(2, 3), (5, 4), (3, 7), (4, 2), (6, 9)]
MODULES = {
    "rnn": lambda **o: holdfast.RNN(INPUT, H, nonlinearity="relu", **o),
    "gru": lambda **o: holdfast.GRU(INPUT, H, **o),
    "lstm": lambda **o: holdfast.LSTM(INPUT, H, **o),
    "lstm_proj": lambda **o: holdfast.LSTM(INPUT, H, proj_size=2, **o),
    "zoneout": lambda **o: holdfast.LSTM(INPUT, H, zoneout=0.2, peepholes=True, recurrent_dropout=0.3, **o),
    "own": lambda **o: holdfast.Recurrent("gru_reset_before", INPUT, H, **o),
}
BOTH = {"num_layers": 2, "bidirectional": True, "batch_first": True}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def tensors(value):
    """All tensors of nested results."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [t for each in values for t in tensors(each)]


def trained(module, forward, *arguments, **given):
    torch.manual_seed(1)
    results = tensors(forward(*arguments, **given))
    wanted = [t for t in (*tensors(arguments), *module.parameters()) if t.requires_grad]
    loss = sum(t.sin().sum() for t in results if t.requires_grad)
    return [*results, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def same(found, expected):
    assert len(found) == len(expected)
    for p, q in zip(found, expected, strict=True):
        assert (p is None and q is None) or (p.dtype == q.dtype and torch.equal(p, q))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("options", [{}, BOTH], ids=["one layer", "two layers"])
@pytest.mark.parametrize("kind", MODULES)
def test_training_is_bitwise_and_compiles_at_most_twice(kind, options):
    m = MODULES[kind](**options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(m, fullgraph=True, backend=counter)
    for B, T in SIZES:
        x = torch.randn((B, T, INPUT) if m.batch_first else (T, B, INPUT), requires_grad=True)
        same(trained(m, compiled, x), trained(m, m, x))
    assert counter.frame_count == 2
    targets = [node.target for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.holdfast.eager.default) == 2


# In the quick run one of each path: segments, null steps, plain steps.
OF_EACH_PATH = [
    pytest.param(kind, marks=[] if kind in ("rnn", "lstm", "own") else [pytest.mark.thorough]) for kind in MODULES
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("options", [{}, BOTH, {"bias": False}], ids=["one layer", "two layers", "no bias"])
@pytest.mark.parametrize("given", ["nothing", "hx", "lengths", "resets", "everything"])
@pytest.mark.parametrize("kind", [kind for kind in MODULES if kind != "zoneout"])
def test_a_single_step_is_plain_operations(kind, given, options):
    """For the compiler to fuse; equal to eager mode but for rounding, for any batch size."""
    m = MODULES[kind](dtype=torch.float64, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(m, fullgraph=True, backend=counter)
    for B in (3, 5, 7):
        x = torch.randn((B, 1, INPUT) if m.batch_first else (1, B, INPUT), dtype=torch.float64, requires_grad=True)
        rows = m.num_layers * (1 + m.bidirectional)
        h, c = (torch.randn(rows, B, n, dtype=torch.float64) for n in (m.proj_size or H, H))
        hx = (h, c) if m.n_states == 2 else h
        cuts = {"lengths": torch.randint(0, 2, (B,)), "resets": (torch.rand(B) < 0.5).view(x.shape[:2])}
        more = {k: v for k, v in cuts.items() if given in (k, "everything")}
        more |= {"reset_state": hx} if given == "everything" else {}
        arguments = (x, hx) if given in ("hx", "everything") else (x,)
        for p, q in zip(trained(m, compiled, *arguments, **more), trained(m, m, *arguments, **more), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    assert counter.frame_count == 2
    assert not any("holdfast" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


@pytest.mark.parametrize("why", ["random numbers", "gates", "bfloat16", "autocast"])
def test_a_single_step_that_stays_an_op(why):
    m = holdfast.LSTM(INPUT, H, num_layers=2, dropout=0.5 if why == "random numbers" else 0.0)
    m.to(torch.bfloat16 if why == "bfloat16" else torch.float32)
    counter = CompileCounterWithBackend("aot_eager")

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
            return m(x, return_gates="differentiable" if why == "gates" else False)

    x = torch.randn(1, 3, INPUT, dtype=next(m.parameters()).dtype)
    same(trained(m, torch.compile(forward, fullgraph=True, backend=counter), x), trained(m, forward, x))
    targets = [node.target for graph in counter.graphs for node in graph.graph.nodes]
    assert torch.ops.holdfast.eager.default in targets


@pytest.mark.parametrize("kind", OF_EACH_PATH)
def test_every_argument(kind):
    m = MODULES[kind](**BOTH, dropout=0.3)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(m, fullgraph=True, backend=counter)
    for B, T in SIZES:
        x = torch.randn(B, T, INPUT, requires_grad=True)
        rows = 4
        h = torch.randn(rows, B, m.proj_size or H, requires_grad=True)
        hx = (h, torch.randn(rows, B, H)) if m.n_states == 2 else h
        given = {"lengths": torch.randint(0, T + 1, (B,)), "resets": torch.rand(B, T) < 0.3, "reset_state": hx}
        same(trained(m, compiled, x, hx, **given), trained(m, m, x, hx, **given))
    assert counter.frame_count == 2


def test_gates_and_inference():
    m = holdfast.LSTM(INPUT, H, **BOTH)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for B, T in SIZES:
            x = torch.randn(B, T, INPUT)
            y, final, gates = compiled(x, return_gates=True)
            expected, expected_final, expected_gates = m(x, return_gates=True)
            torch.testing.assert_close((y, final), (expected, expected_final))  # plain steps: a product may round else
            for layer, of_layer in zip(gates, expected_gates, strict=True):
                assert list(layer) == list(of_layer)
                torch.testing.assert_close(layer, of_layer)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("given", [{}, {"lengths": torch.tensor([3, 1])}], ids=["dense", "lengths"])
def test_autocast(kind, given):
    """Inside of the graph, where it is no more when the op runs."""
    m = MODULES[kind]()

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return m(x, **given)

    x = torch.randn(3, 2, INPUT, requires_grad=True)
    same(trained(m, torch.compile(forward, fullgraph=True, backend="aot_eager"), x), trained(m, forward, x))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("with_hx", [False, True])
def test_a_packed_sequence(kind, with_hx):
    """As an argument. pack_padded_sequence itself breaks the graph, which torch means it to."""
    m = MODULES[kind](num_layers=2, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(m, fullgraph=True, backend=counter)
    for lengths in ([1, 4, 2], [2, 1, 2, 1, 2], [3, 60]):  # beyond 48 steps it trains with lengths
        B = len(lengths)
        packed = pack_padded_sequence(torch.randn(max(lengths), B, INPUT), lengths, enforce_sorted=False)
        x = packed.data.requires_grad_()
        h = torch.randn(4, B, H)
        hx = None if not with_hx else (h, h) if kind == "lstm" else h
        found = []
        for forward in (compiled, m):
            y, final = forward(packed, hx)
            found.append([y.data, *tensors([final]), *torch.autograd.grad(y.data.sin().sum(), [x, *m.parameters()])])
        same(*found)
    assert counter.frame_count == 2
    if with_hx and kind != "lstm":
        with pytest.raises(RuntimeError, match=r"Expected hidden size \(4, 2, 4\), got \[4, 1, 4\]"):
            compiled(PackedSequence(packed.data, packed.batch_sizes), h[:, :1])


def test_weights_that_were_replaced():
    m, x = holdfast.GRU(INPUT, H), torch.randn(3, 2, INPUT).double()
    for name, weight in list(m.named_parameters()):
        setattr(m, name, torch.nn.Parameter(weight.double()))
    found = torch.compile(m, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, m(x), rtol=0, atol=0)


def test_packing_inside_of_what_is_compiled():
    """Without pad_packed_sequence, which torch 2.11 traces and then fails in."""
    m = holdfast.GRU(INPUT, H)

    def forward(x, lengths):
        y, h = m(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return y.data, h

    compiled = torch.compile(forward, backend="aot_eager")
    x, lengths = torch.randn(5, 3, INPUT, requires_grad=True), torch.tensor([2, 5, 1])
    same(trained(m, compiled, x, lengths), trained(m, forward, x, lengths))


def test_a_parameter_that_changes_before_the_backward_pass_is_noticed():
    """As in eager mode: the op reads the program's parameters, not copies."""
    m = holdfast.LSTM(INPUT, H)
    y, _ = torch.compile(m, fullgraph=True, backend="aot_eager")(torch.randn(5, 2, INPUT))
    with torch.no_grad():
        m.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_length_a_call_as_it_was_reported():
    """A graph for every T, until torch.compile gave up."""
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(holdfast.GRU(4, 8), backend=counter, fullgraph=True, dynamic=True)
    for T in range(3, 15):
        compiled(torch.randn(T, 2, 4))
    assert counter.frame_count <= 2


def test_inductor_may_write_over_what_it_gave():
    """Results and inputs of the op are buffers that generated code uses again."""
    m = holdfast.GRU(INPUT, H)

    def forward(x):
        y, h = m((x * 2).relu())
        return (y + 1).relu() * 3, h

    x = torch.randn(5, 2, INPUT, requires_grad=True)
    compiled = torch.compile(forward, fullgraph=True)
    for p, q in zip(trained(m, compiled, x), trained(m, forward, x), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(("cell", "kind"), [(holdfast.GRU, eager_op._Graph), (holdfast.LSTM, eager_op.OneDNNLayers)])
def test_the_graph_lives_as_long_as_a_backward_pass_may_come(monkeypatch, cell, kind):
    alive = weakref.WeakSet()

    class Seen(kind):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)

    monkeypatch.setattr(eager_op, kind.__name__, Seen)
    m = cell(INPUT, H)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, INPUT)
    y, final = compiled(x)
    assert len(alive) == 1
    y.sum().backward()
    gc.collect()
    assert not alive
    y, final = compiled(x)
    del y, final
    gc.collect()
    assert not alive


def test_a_second_backward_pass_draws_the_same_masks():
    m = holdfast.GRU(INPUT, H, 2, dropout=0.5)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, INPUT, requires_grad=True)
    y, _ = compiled(x)
    first = torch.autograd.grad(y.sin().sum(), x, retain_graph=True)
    state = torch.get_rng_state()
    same(torch.autograd.grad(y.sin().sum(), x), first)
    assert torch.equal(torch.get_rng_state(), state)


def exported(m, strict, *more, shapes=()):
    sizes = {0: Dim("B", min=2), 1: Dim("T", min=2)}
    x = torch.randn(3, 4, INPUT)
    return torch.export.export(m, (x, *more), dynamic_shapes=(sizes, *shapes) if more else (sizes,), strict=strict)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("kind", MODULES)
def test_export_with_dynamic_sizes(kind, strict):
    m = MODULES[kind](**BOTH).eval()
    program = exported(nn.Sequential(m, nn.Identity()) if kind == "gru" else m, strict)
    calls = [node for node in program.graph.nodes if node.target is torch.ops.holdfast.eager.default]
    assert len(calls) == 1
    again = program.module()
    for B, T in SIZES:
        x = torch.randn(B, T, INPUT)
        same(tensors(again(x)), tensors(m(x)))


def test_an_exported_program_trains_and_is_loaded_elsewhere(tmp_path):
    m = holdfast.LSTM(INPUT, H, **BOTH)
    program = exported(m, False)
    again = program.module()
    x = torch.randn(5, 6, INPUT, requires_grad=True)
    y, _ = again(x)
    expected, _ = m(x)
    same(torch.autograd.grad(y.sin().sum(), x), torch.autograd.grad(expected.sin().sum(), x))
    torch.export.save(program, tmp_path / "m.pt2")
    torch.save((x.detach(), expected.detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, holdfast\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "assert torch.equal(torch.export.load(sys.argv[1]).module()(x)[0], expected)\n"
    )
    files = (str(tmp_path / "m.pt2"), str(tmp_path / "expected.pt"))
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_second_derivatives_of_an_exported_program():
    m = holdfast.GRU(INPUT, H, batch_first=True).double()
    x = torch.randn(3, 4, INPUT, dtype=torch.float64)
    again = torch.export.export(m, (x,)).module()
    assert torch.autograd.gradgradcheck(lambda x: again(x)[0], (x.requires_grad_(),))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
def test_opcheck(kind, needs):
    m = MODULES[kind](num_layers=2, bidirectional=True)
    x = torch.randn(4, 2, INPUT, requires_grad=needs)
    weights = [p.detach().requires_grad_(needs) for p in m.parameters()]
    told = eager_op.Told(m.cell, H, m.proj_size, 2, 2, True, 0.0, True, 0.0, [0.0] * m.n_states, "", False)
    given = eager_op.Given(lengths=torch.tensor([4, 2]), resets=torch.rand(4, 2) < 0.3)
    torch.library.opcheck(torch.ops.holdfast.eager.default, (x, weights, *told, *given))


SCHEMA = (
    "holdfast::eager(Tensor x, Tensor[] weights, str cell, SymInt hidden_size, SymInt proj_size, "
    "SymInt num_layers, SymInt directions, bool bias, float dropout, bool training, float recurrent_dropout, "
    "float[] zoneout, str autocast, bool return_gates, Tensor[]? hx=None, Tensor[]? reset_hx=None, "
    "Tensor? lengths=None, Tensor? resets=None, Tensor? batch_sizes=None) -> Tensor[]"
)


def test_the_schema_is_that_of_saved_programs():
    assert str(torch.ops.holdfast.eager.default._schema) == SCHEMA
