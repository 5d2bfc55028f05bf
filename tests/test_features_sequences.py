"""lengths and resets: padded equals packed, a reset equals a new call, whatever the layout, layers and directions."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import holdfast
from holdfast.cells.eager import ragged, run

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

MODULES = {
    "rnn": (holdfast.RNN, nn.RNN, {}),
    "rnn_relu": (holdfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, nn.GRU, {}),
    "lstm": (holdfast.LSTM, nn.LSTM, {}),
    "lstm_proj": (holdfast.LSTM, nn.LSTM, {"proj_size": 2}),
}
LAYERS = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}]
T, B, INPUT, HIDDEN = 7, 5, 3, 4
LENGTHS = [3, 7, 0, 1, 5]


@pytest.fixture(params=["null steps", "segments"], autouse=True)
def layout(request, monkeypatch):
    """Both ways in which torch's op runs lengths and resets; a cell that cannot be closed has one."""
    for limit in ("MOST_STEPS_OF_A_KERNEL", "MOST_STEPS_OF_A_LOOP"):
        monkeypatch.setattr(ragged, limit, {"null steps": float("inf"), "segments": 0.0}[request.param])


@pytest.fixture(params=MODULES)
def kind(request):
    return request.param


def pair(kind, **options):
    """A holdfast module and torch.nn's with the same weights, in float64."""
    ours, theirs, more = MODULES[kind]
    a = ours(INPUT, HIDDEN, dtype=torch.float64, **options, **more)
    b = theirs(INPUT, HIDDEN, dtype=torch.float64, **options, **more)
    b.load_state_dict(a.state_dict())
    return a, b


def inputs(module, batch=B, steps=T):
    x = torch.randn(batch, steps, INPUT, dtype=torch.float64)
    return (x if module.batch_first else x.transpose(0, 1)).requires_grad_()


def state(module, batch=B):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(rows, batch, module.proj_size or HIDDEN, dtype=torch.float64)
    return (h, torch.randn(rows, batch, HIDDEN, dtype=torch.float64)) if module.mode == "LSTM" else h


def tensors(result):
    y, final = result
    return [y, *(final if isinstance(final, tuple) else (final,))]


def pick(hx, rows):
    return tuple(h[:, rows] for h in hx) if isinstance(hx, tuple) else hx[:, rows]


def time_major(module, y):
    return y.transpose(0, 1) if module.batch_first else y


def close(results, expected):
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_lengths_equal_a_packed_sequence_of_torch(kind, options, with_hx):
    """And a row without any step has zeros for output and its initial state for a final one."""
    a, b = pair(kind, **options)
    x = inputs(a)
    hx = state(a) if with_hx else None
    rows = [row for row, n in enumerate(LENGTHS) if n]
    y, *finals = tensors(a(x, hx, lengths=LENGTHS))
    of_rows = x[rows] if a.batch_first else x[:, rows]
    packed = pack_padded_sequence(of_rows, [LENGTHS[r] for r in rows], a.batch_first, enforce_sorted=False)
    expected, *expected_finals = tensors(b(packed, pick(hx, rows) if with_hx else None))
    expected, _ = pad_packed_sequence(expected, a.batch_first)
    close([time_major(a, y)[:, rows]], [time_major(a, expected)])
    close([final[:, rows] for final in finals], expected_finals)
    empty = LENGTHS.index(0)
    assert not time_major(a, y)[:, empty].any()
    for k, final in enumerate(finals):
        initial = (hx if isinstance(hx, tuple) else (hx,))[k][:, empty] if with_hx else torch.zeros(())
        assert torch.equal(final[:, empty], initial.double().expand_as(final[:, empty]))

    gradients = torch.autograd.grad(sum(t.sin().sum() for t in (y, *finals)), [x, *a.parameters()])
    of_packed = torch.autograd.grad(sum(t.sin().sum() for t in (expected, *expected_finals)), [x, *b.parameters()])
    close(gradients, of_packed)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_resets_equal_a_call_for_each_segment(kind, options):
    """Of one row in both directions: the first segment of the walk starts from hx, all others from reset_state."""
    a, b = pair(kind, **options)
    x, hx, new = inputs(a, 1), state(a, 1), state(a, 1)
    cuts = [0, 2, 3, T]
    resets = torch.zeros(T, 1, dtype=torch.bool)
    resets[cuts[1:-1]] = True
    given = resets.t() if a.batch_first else resets
    y, *finals = tensors(a(x, hx, resets=given, reset_state=new))

    segments = list(pairwise(cuts))
    outputs, ends = [], []
    for k, (begin, end) in enumerate(segments):
        initial = []
        for h, r in zip(*([s] if not isinstance(s, tuple) else s for s in (hx, new)), strict=True):
            of_walk = [h if k == 0 else r, h if k == len(segments) - 1 else r]
            rows = [of_walk[row % 2 if a.bidirectional else 0][row] for row in range(len(h))]
            initial.append(torch.stack(rows))
        part = x[:, begin:end] if a.batch_first else x[begin:end]
        out, *end_states = tensors(b(part, tuple(initial) if len(initial) > 1 else initial[0]))
        outputs.append(time_major(a, out))
        ends.append(end_states)
    close([time_major(a, y)], [torch.cat(outputs)])
    for k, final in enumerate(finals):
        reverse = torch.arange(len(final)) % 2 == 1 if a.bidirectional else torch.zeros(len(final), dtype=torch.bool)
        close([final], [torch.where(reverse[:, None, None], ends[0][k], ends[-1][k])])


def test_no_gradient_crosses_a_reset(kind):
    a, _ = pair(kind)
    x = inputs(a)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    y, _ = a(x, resets=resets)
    (dx,) = torch.autograd.grad(y[4:].square().sum(), x)
    assert not dx[:3].any()
    assert dx[3:5].any()


@pytest.mark.parametrize("where", ["lengths", "resets"])
def test_what_changes_nothing(kind, where):
    """Full lengths, no reset, and resets past a row's end."""
    a, b = pair(kind, num_layers=2, bidirectional=True)
    x, hx = inputs(a), state(a)
    if where == "lengths":
        close(tensors(a(x, hx, lengths=[T] * B)), tensors(b(x, hx)))
        return
    close(tensors(a(x, hx, resets=torch.zeros(T, B, dtype=torch.bool))), tensors(b(x, hx)))
    past = torch.arange(T)[:, None] >= torch.tensor(LENGTHS)
    assert past.any()
    with_resets = a(x, hx, lengths=LENGTHS, resets=past, reset_state=state(a))
    close(tensors(with_resets), tensors(a(x, hx, lengths=LENGTHS)))


@pytest.mark.parametrize("peepholes", [False, True], ids=["fused", "recurrence"])
def test_padding_is_not_read(peepholes):
    """NaN and infinity past a row's end reach neither values nor gradients."""
    a = holdfast.LSTM(INPUT, HIDDEN, 2, bidirectional=True, peepholes=peepholes)
    past = (torch.arange(T)[:, None] >= torch.tensor(LENGTHS)).unsqueeze(-1)
    x = torch.randn(T, B, INPUT)
    found = []
    for padding in (0.0, torch.nan, torch.inf):
        padded = torch.where(past, padding, x).requires_grad_()
        y, (h, c) = a(padded, lengths=LENGTHS)
        loss = y.sum() + h.sum() + c.sum()
        found.append([y, h, c, *torch.autograd.grad(loss, [padded, *a.parameters()])])
    for other in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(found[0], other, strict=True))
    assert not found[0][3][past.squeeze(-1)].any()


def test_order_of_the_batch_does_not_matter(kind):
    a, _ = pair(kind, num_layers=2, bidirectional=True)
    x, hx, resets = inputs(a), state(a), torch.rand(T, B) < 0.3
    order = torch.randperm(B)
    lengths = torch.tensor(LENGTHS)
    y, *finals = tensors(a(x, hx, lengths=lengths, resets=resets))
    again = tensors(a(x[:, order], pick(hx, order), lengths=lengths[order], resets=resets[:, order]))
    close(again, [y[:, order], *(final[:, order] for final in finals)])


def test_neither_walks_time_in_python(kind, monkeypatch):
    """torch's cells are cut into segments for one packed batch; the plain recurrence is for other cells."""
    a, _ = pair(kind, num_layers=2)
    monkeypatch.setattr(run, "run_recurrence", None)
    a(inputs(a), lengths=LENGTHS, resets=torch.rand(T, B) < 0.3)
    with pytest.raises(TypeError, match="NoneType"):
        holdfast.LSTM(INPUT, HIDDEN, peepholes=True)(torch.randn(T, B, INPUT), lengths=LENGTHS)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_chunks_equal_the_whole(kind, options):
    """Truncated BPTT: the state of one chunk is the next one's hx, while resets lead to the initial state."""
    if options.get("bidirectional"):
        options = {"num_layers": 2}
    a, _ = pair(kind, **options)
    x, resets = inputs(a), torch.rand(T, B) < 0.3
    time = 1 if a.batch_first else 0
    marks = resets.t() if a.batch_first else resets
    whole = tensors(a(x, resets=marks))
    hx, outputs = None, []
    for part, marked in zip(x.split([2, 1, 4], time), marks.split([2, 1, 4], time), strict=True):
        y, hx = a(part, hx, resets=marked)
        outputs.append(y)
    close([torch.cat(outputs, time), *tensors((None, hx))[1:]], whole)
    close(
        torch.autograd.grad(torch.cat(outputs, time).sin().sum(), [x, *a.parameters()]),
        torch.autograd.grad(whole[0].sin().sum(), [x, *a.parameters()]),
    )


def test_hx_is_only_what_a_row_starts_with(kind):
    a, b = pair(kind)
    x, hx = inputs(a), state(a)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[0] = True
    close(tensors(a(x, hx, resets=resets)), tensors(b(x)))
    close(tensors(a(x, resets=resets, reset_state=pick(hx, slice(0, 1)))), tensors(b(x, pick(hx, [0] * B))))


def test_learnt_initial_state_is_what_none_stands_for(kind):
    a, b = pair(kind)
    c = MODULES[kind][0](INPUT, HIDDEN, dtype=torch.float64, learn_initial_state=True, **MODULES[kind][2])
    c.load_state_dict(b.state_dict(), strict=False)
    x, resets = inputs(a), torch.rand(T, B) < 0.3
    close(tensors(c(x)), tensors(b(x)))
    with torch.no_grad():
        for parameter in (c.initial_h, *([c.initial_c] if a.mode == "LSTM" else [])):
            parameter.normal_()
    learnt = (c.initial_h, c.initial_c) if a.mode == "LSTM" else c.initial_h
    everywhere = pick(learnt, [0] * B)
    close(tensors(c(x)), tensors(b(x, everywhere)))
    y, *finals = tensors(c(x, resets=resets, lengths=LENGTHS))
    close([y, *finals], tensors(a(x, everywhere, lengths=LENGTHS, resets=resets, reset_state=everywhere)))
    assert all(g.any() for g in torch.autograd.grad(y.sum(), [c.initial_h, c.weight_hh_l0]))


def test_everything_is_dropped_between_layers(kind):
    a, b = pair(kind, num_layers=2, dropout=1.0)
    x = inputs(a)
    close(tensors(a(x, lengths=[T] * B)), tensors(b(x)))


@pytest.mark.parametrize("lengths", [[0] * B, []], ids=["no steps", "no rows"])
def test_nothing_to_compute(kind, lengths):
    a, _ = pair(kind, num_layers=2, bidirectional=True)
    x, hx = inputs(a, len(lengths)), state(a, len(lengths))
    y, *finals = tensors(a(x, hx, lengths=lengths, resets=torch.ones(T, len(lengths), dtype=torch.bool)))
    assert not y.any()
    close(finals, hx if isinstance(hx, tuple) else [hx])
    (y.sum() + sum(final.sum() for final in finals)).backward()
    assert not x.grad.any()


@pytest.mark.parametrize("peepholes", [False, True], ids=["fused", "recurrence"])
def test_autocast_gives_its_dtype(peepholes):
    a = holdfast.LSTM(INPUT, HIDDEN, 2, peepholes=peepholes, zoneout=0.1 * peepholes)
    x = torch.randn(T, B, INPUT)
    exact = a.eval()(x, lengths=LENGTHS)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, (h, c) = a(x, lengths=LENGTHS)
        y.sum().backward()
    assert {t.dtype for t in (y, h, c)} == {torch.bfloat16}
    assert a.weight_hh_l0.grad.dtype is torch.float32
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)


def test_under_vmap_and_functional_call():
    """Two models at once on ragged batches, each with lengths of its own."""
    models = [holdfast.GRU(INPUT, HIDDEN, bidirectional=True) for _ in range(2)]
    x, lengths = torch.randn(2, T, B, INPUT), torch.tensor([LENGTHS, LENGTHS[::-1]])
    stacked = {name: torch.stack([m.state_dict()[name] for m in models]) for name in models[0].state_dict()}
    y, h = vmap(lambda p, x, n: functional_call(models[0], p, (x,), {"lengths": n}))(stacked, x, lengths)
    for k, model in enumerate(models):
        torch.testing.assert_close((y[k], h[k]), model(x[k], lengths=lengths[k]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_under_func_grad_per_sample_gradients_and_jvp():
    module = holdfast.LSTM(INPUT, HIDDEN, bidirectional=True)
    x, lengths, resets = torch.randn(B, T, INPUT), torch.tensor(LENGTHS), torch.rand(T) < 0.3
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights, x, n):
        y, _ = functional_call(module, weights, (x,), {"lengths": n, "resets": resets})
        return y.sin().sum()

    of_samples = vmap(grad(loss), (None, 0, 0))(weights, x, lengths)
    of_one = grad(loss)(weights, x[0], LENGTHS[:1])
    for b in range(B):
        y, _ = module(x[b], lengths=LENGTHS[b : b + 1], resets=resets)
        expected = torch.autograd.grad(y.sin().sum(), list(module.parameters()))
        for name, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(of_samples[name][b], gradient)
            if b == 0:
                torch.testing.assert_close(of_one[name], gradient)
    _, tangent = jvp(lambda x: loss(weights, x, LENGTHS[:1]), (x[0],), (torch.ones_like(x[0]),))
    torch.testing.assert_close(tangent, grad(loss, argnums=1)(weights, x[0], LENGTHS[:1]).sum())


def test_double_backward(kind):
    a = MODULES[kind][0](2, 3, 2, bidirectional=True, dtype=torch.float64, **MODULES[kind][2])
    x, resets = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True), torch.rand(3, 2) < 0.4
    assert gradgradcheck(lambda x: a(x, lengths=[3, 2], resets=resets)[0], (x,))


@pytest.mark.parametrize("options", [{}, {"peepholes": True, "zoneout": (0.1, 0.2), "recurrent_dropout": 0.3}], ids=str)
def test_compiles_whole(options):
    torch._dynamo.reset()
    a = holdfast.LSTM(INPUT, HIDDEN, bidirectional=True, learn_initial_state=True, **options).eval()
    x, resets, lengths = torch.randn(3, B, INPUT, requires_grad=True), torch.rand(3, B) < 0.3, torch.tensor(LENGTHS) % 4
    compiled = torch.compile(a, fullgraph=True, backend="aot_eager")
    found = []
    for forward in (a, compiled):
        y, final = forward(x, lengths=lengths, resets=resets)
        found.append([y, *final, *torch.autograd.grad(y.sin().sum(), [x, *a.parameters()])])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_does_not_bake_the_lengths_in():
    a = holdfast.GRU(INPUT, HIDDEN)
    x = torch.randn(T, B, INPUT)

    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = a

        def forward(self, x, lengths):
            return self.gru(x, lengths=lengths)

    traced = torch.jit.trace(Ragged(), (x, torch.tensor(LENGTHS)))
    other = torch.tensor(LENGTHS[::-1])
    torch.testing.assert_close(traced(x, other), a(x, lengths=other))


def test_fx_keeps_the_arguments():
    a = holdfast.LSTM(INPUT, HIDDEN)

    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = a

        def forward(self, x, lengths, resets):
            return self.lstm(x, lengths=lengths, resets=resets)

    graph = torch.fx.symbolic_trace(Ragged())
    x, resets = torch.randn(T, B, INPUT), torch.rand(T, B) < 0.3
    assert [node.op for node in graph.graph.nodes].count("call_module") == 1
    torch.testing.assert_close(graph(x, torch.tensor(LENGTHS), resets), a(x, lengths=LENGTHS, resets=resets))
