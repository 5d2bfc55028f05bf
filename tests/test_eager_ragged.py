"""How torch's op runs lengths and resets: nothing where nothing is cut, null steps, segments, and which is taken."""

import pytest
import torch
from torch import nn

import holdfast
from holdfast.cells.eager import null_steps, ragged

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

KINDS = {
    "rnn_tanh": (holdfast.RNN, {}),
    "rnn_relu": (holdfast.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, {}),
    "lstm": (holdfast.LSTM, {}),
    "lstm_proj": (holdfast.LSTM, {"proj_size": 3}),
}
GATED = [kind for kind in KINDS if kind != "rnn_tanh"]
INPUT, H, T, B = 3, 8, 9, 5


def module(kind, **options):
    cls, more = KINDS[kind]
    return cls(INPUT, H, **more, **options)


def state(m, batch=B):
    rows = m.num_layers * (2 if m.bidirectional else 1)
    h = torch.randn(rows, batch, m.proj_size or H)
    return (h, torch.randn(rows, batch, H)) if m.mode == "LSTM" else h


def flat(results):
    y, final = results
    return [y, *(final if isinstance(final, tuple) else (final,))]


def counted(monkeypatch):
    """The calls of each of the ways."""
    calls = []
    for name in ("run_fused", "run_null_steps", "run_segments"):
        run = getattr(ragged, name)
        monkeypatch.setattr(ragged, name, lambda *a, name=name, run=run: calls.append(name) or run(*a))
    return calls


def always(monkeypatch, limit):
    for name in ("MOST_STEPS_OF_A_KERNEL", "MOST_STEPS_OF_A_LOOP"):
        monkeypatch.setattr(ragged, name, limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
def test_where_nothing_is_cut_the_call_is_torchs_own(kind, options, monkeypatch):
    m = module(kind, **options)
    calls = counted(monkeypatch)
    x, hx = torch.randn(T, T, INPUT), state(m, T)
    nothing = torch.zeros(T, T, dtype=torch.bool)
    expected = flat(m(x, hx))
    for given in ({"lengths": [T] * T}, {"resets": nothing}, {"lengths": torch.full((T,), T), "resets": nothing}):
        assert all(torch.equal(p, q) for p, q in zip(flat(m(x, hx, **given)), expected, strict=True))
    assert calls == ["run_fused"] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("steps", [1, T])
def test_a_reset_before_the_first_step_is_another_initial_state(kind, bidirectional, steps, monkeypatch):
    """Backwards it comes after the last step, so it changes nothing."""
    m = module(kind, num_layers=2, bidirectional=bidirectional)
    calls = counted(monkeypatch)
    x, hx, new = torch.randn(steps, B, INPUT), state(m), state(m)
    resets = torch.zeros(steps, B, dtype=torch.bool)
    resets[0] = torch.tensor([True, False, True, True, False])
    forward = (torch.arange(len(flat((0, hx))[1])) % (2 if bidirectional else 1) == 0)[:, None, None]
    for reset_state in (None, new):
        to = tuple(torch.zeros_like(t) for t in flat((0, hx))[1:]) if reset_state is None else flat((0, new))[1:]
        start = [torch.where(resets[0][:, None] & forward, r, t) for r, t in zip(to, flat((0, hx))[1:], strict=True)]
        expected = flat(m(x, tuple(start) if len(start) > 1 else start[0]))
        found = flat(m(x, hx, resets=resets, reset_state=reset_state))
        assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))
    assert calls == ["run_fused"] * 2


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_null_steps_are_exact(kind, options, dtype, monkeypatch):
    """The error against segments in float64 is what torch's own op has against itself in another layout."""
    m = module(kind, dtype=torch.float64, **options)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    hx, lengths, resets = state(m.double()), [T, 4, 0, 1, 7], torch.rand(T, B) < 0.3
    hx = tuple(t.double() for t in hx) if isinstance(hx, tuple) else hx.double()

    def run(limit, dtype):
        always(monkeypatch, limit)
        own = m.to(dtype)
        given = [t.to(dtype).requires_grad_() for t in (x, *flat((0, hx))[1:])]
        start = tuple(given[1:]) if len(given) > 2 else given[1]
        results = flat(own(given[0], start, lengths=lengths, resets=resets))
        gradients = torch.autograd.grad(sum(t.sin().sum() for t in results), [*given, *own.parameters()])
        return [t.double() for t in (*results, *gradients)]

    expected = run(0.0, torch.float64)
    calls = counted(monkeypatch)
    found = run(float("inf"), dtype)
    assert calls == ["run_null_steps"]
    m.to(torch.float64)
    for p, q in zip(found, expected, strict=True):
        tolerance = 1e-12 if dtype is torch.float64 else 3e-6
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance * max(1.0, q.abs().max().item()))


@pytest.mark.parametrize("most", [1, 20_000, 2**40], ids=["step by step", "in pieces", "whole"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_long_walk_is_trained_in_pieces(bidirectional, most, monkeypatch):
    """Of an LSTM; they are the whole but for rounding."""
    m, x = module("lstm", bidirectional=bidirectional), torch.randn(T, B, INPUT)
    hx, lengths, resets = state(m), [T, 4, 0, 1, 7], torch.zeros(T, B, dtype=torch.bool)
    resets[[3, 6, 6], [0, 0, 1]] = True
    walked = []
    op = null_steps.FUSED_OPS["lstm"]
    monkeypatch.setitem(null_steps.FUSED_OPS, "lstm", lambda *a: walked.append(len(a[0])) or op(*a))

    def run():
        given = [t.requires_grad_() for t in (x, *hx)]
        results = flat(m(x, hx, lengths=lengths, resets=resets))
        return [*results, *torch.autograd.grad(sum(t.sin().sum() for t in results), [*given, *m.parameters()])]

    always(monkeypatch, 0.0)
    expected = run()
    walked.clear()
    always(monkeypatch, float("inf"))
    monkeypatch.setattr(null_steps, "MOST_BYTES", most)
    for found, right in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=3e-6 * max(1.0, right.abs().max().item()))
    directions = 1 + bidirectional
    steps = sum(walked) // directions
    pieces = {1: steps, 20_000: 2, 2**40: 1}[most]
    assert steps > T
    assert len(walked) == pieces * directions
    with torch.no_grad():
        m(x, hx, lengths=lengths, resets=resets)
    assert walked[-directions:] == [steps] * directions, "nothing is kept for a way back"
    with torch.autocast("cpu", torch.bfloat16):
        m(x, hx, lengths=lengths, resets=resets)
    assert walked[-directions:] == [steps] * directions, "c would be rounded in between"


@pytest.mark.parametrize("kind", GATED)
def test_the_state_after_a_reset_is_zero_to_the_last_bit(kind, monkeypatch):
    """However large the weights, the biases and the state: the step after a reset sees nothing of before."""
    always(monkeypatch, float("inf"))
    m = module(kind)
    x, resets = torch.randn(T, B, INPUT), torch.zeros(T, B, dtype=torch.bool)
    resets[4] = True
    with torch.no_grad():
        m.weight_hh_l0.mul_(100)
        m.bias_ih_l0.mul_(100)
    other = x.clone()
    other[:4] = 50 * torch.randn(4, B, INPUT)
    assert all(
        torch.equal(p, q) for p, q in zip(m(x, resets=resets)[0][4:], m(other, resets=resets)[0][4:], strict=True)
    )


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_overflowed_stays_in_its_segment(kind, wrong, monkeypatch):
    """A NaN goes through every gate, so segments take that call; dropout between layers draws what it would have."""
    m = module(kind, num_layers=2, dropout=0.5)
    x, resets = torch.randn(T, B, INPUT), torch.zeros(T, B, dtype=torch.bool)
    resets[4] = True
    x[1, 2] = wrong
    calls = counted(monkeypatch)
    found = []
    for limit in (0.0, float("inf")):
        always(monkeypatch, limit)
        torch.manual_seed(1)
        found.append(flat(m(x, resets=resets)))
    assert calls == ["run_segments", "run_null_steps", "run_segments"] or not found[0][0].isnan().any()
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)
    assert found[1][0][4:].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_draws_one_mask(kind, monkeypatch):
    """Dense, with lengths or with resets, by null steps, by segments and step by step."""
    m = module(kind, num_layers=3, dropout=0.4, batch_first=True)
    x = torch.randn(B, T, INPUT)
    lengths = torch.tensor([T, T, T, T, 4])
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[4, 3:] = True
    found = []
    for limit in (0.0, float("inf")):
        always(monkeypatch, limit)
        ways = [{}, {"lengths": lengths}, {"resets": resets}, {"lengths": lengths, "resets": resets}]
        for given in (*ways, *({**way, "return_gates": True} for way in ways)):
            torch.manual_seed(3)
            found.append(m(x, **given)[0][:4])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_which_way_is_taken(monkeypatch):
    """An LSTM on a CPU is one kernel of oneDNN's; a GRU's steps cost what they are."""
    calls = counted(monkeypatch)
    x, few = torch.randn(T, B, INPUT), torch.zeros(T, B, dtype=torch.bool)
    few[3, 1] = True
    often = torch.rand(T, B) < 0.7
    for kind, resets in (("lstm", few), ("lstm", often), ("gru", often), ("rnn_tanh", few)):
        module(kind)(x, resets=resets)
    module("lstm")(x, resets=few, reset_state=(torch.ones(1, 1, H), torch.zeros(1, 1, H)))
    zeros = (torch.zeros(1, 1, H), torch.zeros(1, 1, H))
    module("lstm")(x, resets=few, reset_state=zeros)
    null, cut = "run_null_steps", "run_segments"
    assert calls == [null, null, cut, cut, cut, null]


def test_an_overflow_is_seen_without_a_gradient():
    """A state that is infinite before a reset: 0 * inf."""
    m = module("lstm")
    x, resets = torch.randn(T, B, INPUT), torch.zeros(T, B, dtype=torch.bool)
    resets[2, 0] = True
    hx = (torch.zeros(1, B, H), torch.full((1, B, H), torch.inf))
    with torch.no_grad():
        y, (_, c) = m(x, hx, resets=resets)
        expected = nn.LSTM.forward(holdfast.to_torch(m), x[2:, :1])[0]
    torch.testing.assert_close(y[2:, :1], expected)
    assert c[0, 0].isfinite().all()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("form", [torch.float32, torch.int64, torch.uint8])
def test_resets_as_other_packages_keep_them(batch_first, form):
    """Float (sb3's episode_starts), integers, and with a last axis of one (torchrl's is_init)."""
    m = holdfast.GRU(INPUT, H, batch_first=batch_first)
    x, resets = torch.randn(T, B, INPUT), torch.rand(T, B) < 0.4
    if batch_first:
        x, resets = x.transpose(0, 1), resets.t()
    expected = flat(m(x, resets=resets))
    for given in (resets.to(form), resets.unsqueeze(-1), resets.to(form).unsqueeze(-1)):
        assert all(torch.equal(p, q) for p, q in zip(flat(m(x, resets=given)), expected, strict=True))
    one = flat(m(x[0], resets=resets[0] if batch_first else resets[: x.shape[1], 0]))
    again = flat(m(x[0], resets=(resets[0] if batch_first else resets[: x.shape[1], 0]).to(form).unsqueeze(-1)))
    assert all(torch.equal(p, q) for p, q in zip(one, again, strict=True))


def test_a_length_of_unbatched_input_is_a_number():
    m = holdfast.GRU(INPUT, H)
    x = torch.randn(T, INPUT)
    for given in (3, torch.tensor(3), [3]):
        assert torch.equal(m(x, lengths=given)[1], m(x[:3])[1])
    with pytest.raises(ValueError, match="lengths should be an integer tensor or a list of ints, got int"):
        m(torch.randn(T, B, INPUT), lengths=3)
    with pytest.raises(ValueError, match=r"lengths should lie in \[0, 9\]"):
        m(x, lengths=T + 1)


@pytest.mark.parametrize("states", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_one_dtype_whatever_the_arguments(kind, states, monkeypatch):
    m = module(kind)
    x, lengths, resets = torch.randn(T, B, INPUT), [T, 3, 0, 2, 9], torch.rand(T, B) < 0.3
    hx = None if states is None else state(m)
    if hx is not None:
        hx = tuple(t.to(states) for t in hx) if isinstance(hx, tuple) else hx.to(states)
    with torch.autocast("cpu", torch.bfloat16):
        expected = [t.dtype for t in flat(m(x, hx))]
        for limit in (0.0, float("inf")):
            always(monkeypatch, limit)
            for given in ({"lengths": lengths}, {"resets": resets}, {"return_gates": True}):
                assert [t.dtype for t in flat(m(x, hx, **given)[:2])] == expected


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_packed_batch_trains_as_one_with_lengths(kind, enforce_sorted):
    """Not on torch's packed op, whose backward pass is quadratic in T on a CPU; inference stays bitwise torch.nn's."""
    steps = 60
    m = module(kind, num_layers=2, bidirectional=True, dtype=torch.float64)
    theirs = holdfast.to_torch(module(kind, num_layers=2, bidirectional=True, dtype=torch.float64))
    theirs.load_state_dict(m.state_dict())
    lengths = torch.tensor([60, 41, 41, 7, 1] if enforce_sorted else [7, 60, 1, 41, 41])
    x = torch.randn(steps, B, INPUT, dtype=torch.float64, requires_grad=True)
    hx = state(m)
    hx = tuple(t.double() for t in hx) if isinstance(hx, tuple) else hx.double()
    found = []
    for each in (m, theirs):
        y, final = each(nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), hx)
        results = [y.data, *flat((0, final))[1:]]
        found.append([*results, *torch.autograd.grad(sum(t.sin().sum() for t in results), [x, *each.parameters()])])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
        assert torch.equal(m(packed, hx)[0].data, theirs(packed, hx)[0].data)


EXPLAINED = {
    "no lengths": ("lstm", {}, ""),
    "full lengths": ("lstm", {"lengths": [T] * B}, "one dense call"),
    "ends": ("lstm", {"lengths": [T, 4, 0, 1, 7]}, "hold steps"),
    "ends of a GRU": ("gru", {"lengths": [T, T, T, T, 8]}, "null steps"),
    "short rows of a GRU": ("gru", {"lengths": [T, 4, 0, 1, 7]}, "packing"),
    "ends without a gate": ("rnn_tanh", {"lengths": [T, T, T, T, 8]}, "one dense call, read at each row's end"),
    "a reset": ("lstm", {"resets": 4}, "null steps"),
    "a reset before the first step": ("gru", {"resets": 0}, "one dense call"),
    "both": ("lstm", {"resets": 4, "lengths": [T, 4, 0, 1, 7]}, "null and hold steps"),
    "a reset without a gate": ("rnn_tanh", {"resets": 4}, "packed segments"),
}


@pytest.mark.parametrize("what", EXPLAINED)
def test_explain_names_the_layout_that_is_run(what, monkeypatch):
    kind, given, name = EXPLAINED[what]
    given = dict(given)
    if "resets" in given:
        given["resets"] = (torch.arange(T) == given["resets"])[:, None].expand(T, B)
    m, x = module(kind), torch.randn(T, B, INPUT)
    plan = m.explain(x, **given)
    assert (plan.op, plan.layout) == ("fused", name)
    assert (f"laid out as {name}" in str(plan)) is bool(name)
    calls = counted(monkeypatch)
    m(x, **given)
    ways = {"one dense call": "run_fused", "packing": "run_segments", "packed segments": "run_segments"}
    assert calls == ([ways.get(name, "run_null_steps")] if name else [])


@pytest.mark.parametrize(("steps", "layout"), [(9, "packing"), (60, "hold steps")])
def test_explain_names_the_layout_of_packed_rows(steps, layout):
    """From 48 steps on training leaves torch's packed op."""
    packed = nn.utils.rnn.pack_sequence([torch.randn(steps, INPUT), torch.randn(3, INPUT)])
    assert module("lstm").explain(packed).layout == layout
