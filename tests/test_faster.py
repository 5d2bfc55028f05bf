"""Whether torch's own op runs where a kernel could: the two predictions, the choice, its reason, and what beats it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.autotune import faster, mode, select, store
from holdfast.autotune.candidates import choose
from holdfast.autotune.cudnn import Stack
from holdfast.autotune.faster import Asked, Timed, compare
from holdfast.autotune.fused import algorithm_of, predicted_loop
from holdfast.autotune.identity import fingerprint, key_of
from holdfast.autotune.pin import kernels_where_they_can, pinned
from holdfast.autotune.store import Entry, Store, Timing
from holdfast.bench.output import crossovers
from holdfast.cells.call import decision, speed
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import A100, B200, H100, L4

BF16, FP32 = torch.bfloat16, torch.float32
LSTM = Problem("lstm", BF16, 768, 16)


def compared(problem: Problem, length: int, limits=H100, timed: Timed | None = None, **asked):
    call = Asked(problem, length, problem.hidden_size, **asked)
    configs = tuple(choose(phase, limits) for phase in call.phases)
    assert all(isinstance(config, Config) for config in configs)
    return compare(call, configs, limits, timed)


# The models


def test_a_long_call_of_the_home_ground_runs_on_the_kernels():
    for limits in (H100, A100, B200):
        for cell in ("rnn_tanh", "gru", "lstm"):
            for trains in (False, True):
                keep = "save" if trains else "nothing"
                problem = replace(LSTM, cell=cell)
                assert not compared(problem, 1024, limits, trains=trains, keep=keep).fused_is_faster


@pytest.mark.parametrize("batch", [128, 256])
def test_a_wide_batch_in_float32_runs_on_torch(batch):
    """As TF32: a GEMM of the whole batch against tiles of rows one after another."""
    problem = Problem("lstm", FP32, 768, batch, precision="tf32")
    assert compared(problem, 1024).fused_is_faster


def test_a_short_call_runs_on_torch_for_the_hosts_time():
    for length in (1, 2, 4):
        assert compared(LSTM, length).fused_is_faster
    without_host = {name: replace(value, value=0.0) for name, value in vars(faster.HOST).items()}
    host, faster.HOST = faster.HOST, replace(faster.HOST, **without_host)
    compare.cache_clear()
    try:
        assert not compared(replace(LSTM, hidden_size=1024), 4).fused_is_faster
    finally:
        faster.HOST = host
        compare.cache_clear()


def test_both_predictions_grow_with_length_layers_and_the_backward_pass():
    base = compared(LSTM, 100)
    for more in (compared(LSTM, 200), compared(LSTM, 100, layers=2), compared(LSTM, 100, trains=True, keep="save")):
        assert more.kernels.us > base.kernels.us
        assert more.fused.us > base.fused.us
    assert compared(LSTM, 100, segments=True).fused.us > base.fused.us


def test_cudnns_algorithm_decides_what_its_step_takes():
    home = Stack("lstm", torch.float16, 768, 16, 1024, 768)
    assert algorithm_of(home, H100, backward=False) == "persist_static"
    assert algorithm_of(home, L4, backward=False) == "standard"
    # 2.01 ms in the figure that the model is made from, 0.11 us a step of it the input's GEMM.
    assert predicted_loop(home, H100, trains=False).us / 1024 == pytest.approx(1.85, abs=0.01)
    standard = predicted_loop(home._replace(dtype=BF16), H100, trains=False)
    assert standard.us > 2 * predicted_loop(home, H100, trains=False).us
    assert predicted_loop(home._replace(packed=True), H100, trains=False).us == standard.us
    wide = home._replace(dtype=FP32, batch_size=256)
    assert (
        predicted_loop(wide._replace(tf32=False), H100, trains=False).us > predicted_loop(wide, H100, trains=False).us
    )
    old = predicted_loop(home._replace(dtype=BF16), H100, trains=False, cudnn=91200)
    assert old.us > standard.us


def test_what_was_timed_beats_the_models():
    by_model = compared(LSTM, 1024)
    assert not by_model.fused_is_faster
    timed = compared(LSTM, 1024, timed=Timed(kernels=2.0, fused=1.0))
    assert timed.fused_is_faster
    assert timed.kernels.provenance == timed.fused.provenance == "measured"
    assert timed.kernels.us - timed.fused.us == pytest.approx(
        1024 + faster.HOST.kernels_forward_us.value - faster.HOST.fused_forward_us.value
    )


def entry_of(problem: Problem, kernels_us: float, torch_us: float) -> Entry:
    choice = choose(problem, H100)
    assert isinstance(choice, Config)

    def timing(config, us, registers, shared):
        return Timing(config, "nothing", "warm", False, us, us, us, 5, 512, 16, registers, shared, "2026-11-21")

    timings = (timing(choice, kernels_us, 100, 1000), timing(None, torch_us, 0, 0))
    return Entry(key_of(problem), fingerprint(problem, H100), choice, timings)


@pytest.mark.parametrize(("torch_us", "winner"), [(1000.0, "kernels"), (100.0, "eager")])
def test_an_entry_of_the_users_beats_the_models(torch_us, winner, tmp_path, monkeypatch):
    monkeypatch.setattr(select, "user_cache", lambda: tmp_path)
    monkeypatch.setattr(select, "limits_of", lambda device: H100)
    store.changed()
    device, asked = torch.device("cpu"), Asked(LSTM, 1024, 768)
    before = select.compare_for(asked, device)
    assert before.kernels.provenance == "assumed"
    Store(tmp_path).add(entry_of(LSTM, 500.0, torch_us))
    after = select.compare_for(asked, device)
    assert after.kernels.provenance == "measured"
    assert after.fused_is_faster == (winner == "eager")
    # In training the backward pass would have to be timed too.
    assert select.compare_for(asked._replace(trains=True, keep="save"), device).kernels.provenance == "assumed"
    with mode("off"):
        assert select.compare_for(asked, device) == before
    with mode("tune-on-miss"):  # what nobody has timed goes to the kernels, and so to the tuner
        assert select.compare_for(asked, device) == after
        assert select.compare_for(asked._replace(problem=replace(LSTM, cell="gru")), device) is None


# The choice. The interpreter stands for the GPU, and is told to be asked


@pytest.fixture
def asked(monkeypatch):
    """In the interpreter, with the question asked that is not asked there."""
    monkeypatch.setattr(speed, "interpreting", lambda: False)
    decision._decided.clear()
    speed._remembered.cache_clear()
    with interpret(seed=0):
        yield
    decision._decided.clear()


X = torch.randn(5, 2, 3)


def names(plan):
    return [reason.name for reason in plan.reasons]


def test_in_the_interpreter_nobody_asks():
    with interpret(seed=0), torch.no_grad():
        plan = holdfast.LSTM(3, 4).explain(X)
    assert plan.regime == "single_cta"
    assert plan.call is not None
    assert "on the kernels" in str(plan)
    assert "us (published) a step" in str(plan)


@pytest.mark.usefixtures("asked")
def test_a_tiny_call_runs_on_torch_and_says_why():
    module = holdfast.LSTM(3, 4)
    with torch.no_grad():
        plan = module.explain(X)
    assert (plan.regime, plan.op, names(plan)) == ("eager", "fused", ["slower_than_fused"])
    assert str(plan).count("(assumed)") == 1
    assert 'on torch\'s own op; holdfast.backend("triton")' in str(plan)
    reference = torch.nn.LSTM(3, 4)
    reference.load_state_dict(module.state_dict())
    assert torch.equal(module(X)[0], reference(X)[0])
    assert names(module.explain(X)) == ["slower_than_fused"]  # in training too


@pytest.mark.usefixtures("asked")
def test_the_kernel_can_be_forced():
    module = holdfast.GRU(3, 4)
    with torch.no_grad(), holdfast.backend("triton"):
        assert module.explain(X).regime == "single_cta"
    with torch.no_grad(), pinned(Config("single_cta", 16, 16, 16)):
        assert module.explain(X).origin == "pinned"
    with torch.no_grad(), kernels_where_they_can():
        assert module.explain(X).origin == "heuristic"
        wide = holdfast.GRU(3, 4).double()
        assert names(wide.explain(X.double())) == ["unsupported_dtype"]  # which "triton" would refuse
    with holdfast.backend("eager"):
        assert names(module.explain(X)) == ["backend_eager"]


@pytest.mark.usefixtures("asked")
def test_a_long_call_runs_on_the_kernels():
    with torch.no_grad():
        plan = holdfast.LSTM(3, 64).explain(torch.zeros(5000, 1, 3))
    assert plan.regime == "single_cta"
    assert plan.call is not None
    assert plan.call[0].us < plan.call[1].us


@pytest.mark.usefixtures("asked")
def test_plain_steps_are_never_the_faster_choice():
    with torch.no_grad():
        for module in (holdfast.GRU(3, 4, reset_after=False), holdfast.LSTM(3, 4, peepholes=True)):
            plan = module.explain(X)
            assert plan.regime == "single_cta"
            assert plan.call is None
        assert holdfast.LSTM(3, 4).explain(X, return_gates=True).regime == "single_cta"


@pytest.mark.usefixtures("asked")
def test_lengths_and_packed_batches_are_asked_too():
    module = holdfast.GRU(3, 4)
    packed = torch.nn.utils.rnn.pack_sequence([X[:2, 0], X[:1, 1]])
    with torch.no_grad():
        assert names(module.explain(packed)) == ["slower_than_fused"]
        assert module.explain(X, lengths=[5, 3]).regime == "single_cta"  # cutting it costs torch's op more


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_graph_is_asked_where_its_sizes_are_numbers(dynamic, monkeypatch):
    """Whole either way. What it decides holds for its own sizes, and symbolic ones are looked at by nobody."""
    asked = []
    real = select.compare_for
    monkeypatch.setattr(select, "compare_for", lambda call, device: asked.append(call.length) or real(call, device))
    module = holdfast.GRU(3, 4)
    x = torch.randn(5, 3, 3)
    with torch.no_grad():
        expected = module(x)[0]
        asked.clear()
        speed._remembered.cache_clear()
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="eager")
        torch.testing.assert_close(compiled(x)[0], expected, rtol=0, atol=1e-2)  # TF32 in the interpreter
        assert asked == ([] if dynamic else [5])
        if dynamic:
            longer = torch.randn(9, 4, 3)
            torch.testing.assert_close(compiled(longer)[0], module(longer)[0], rtol=0, atol=1e-2)
            assert asked == [9]  # by the plain call alone


def test_the_readmes_table_is_what_the_models_say():
    """After `fit_counts`, or another constant: python -m holdfast.bench.output.crossovers prints it anew."""
    text = (Path(holdfast.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert "\n".join(crossovers.table()) in text
