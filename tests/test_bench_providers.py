"""Providers compute the same thing, say why where they cannot, and a wrong result gets no time."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from holdfast.bench.method.case import Case
from holdfast.bench.method.judge import Judge
from holdfast.bench.method.numbers import Numbers, segment_starts
from holdfast.bench.providers.flashrnn import FlashRNN
from holdfast.bench.providers.holdfast import Holdfast, Untuned
from holdfast.bench.providers.loops import StepLoop
from holdfast.bench.providers.provider import Unavailable
from holdfast.bench.providers.torch_nn import TorchNN
from holdfast.bench.providers.variants import HostSide, LoopAlone, Packed, Twin
from holdfast.bench.suites.entries import Entry, Options
from holdfast.bench.suites.features import same_tokens
from holdfast.bench.suites.session import PEER_FACTOR, Session
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.tolerance import Errors, worst

CPU = torch.device("cpu")
CELLS = ("rnn_tanh", "gru", "lstm")
PHASES = ("forward", "training")


def judged(provider, case: Case, phase: str, seed: int = 0):
    numbers = Numbers(case, CPU, seed=seed, copies=2)
    prepared = provider.prepare(numbers, phase)
    prepared.call(1)
    prepared.call(0)
    return Judge(prepared.numbers or numbers)(prepared.results(), prepared.dtype, factor=1)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("wrong", [float("nan"), 1e-3])
def test_the_worst_is_found_wherever_it_stands(place, wrong):
    """NaN compares as neither more nor less: a plain maximum would pass over it."""
    errors = [Errors(1e-9, 1e-8, 0.0)] * 3
    errors[place] = Errors(wrong, 1e-8, 0.0)
    assert worst(errors) is errors[place]
    assert not worst(errors).ok
    assert worst([Errors(0.0, 0.0, 0.0), *errors]) is errors[place]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("provider", [Holdfast(), TorchNN(), TorchNN(torch.bfloat16), StepLoop()], ids=lambda p: p.name)
@pytest.mark.parametrize("cell", CELLS)
def test_all_agree_on_a_dense_batch(cell, provider, phase):
    assert judged(provider, Case(cell, torch.float32, 13, 3, 9, input_size=5), phase).ok


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("provider", [TorchNN(packed=True), Packed(), StepLoop(), Holdfast()], ids=lambda p: p.name)
def test_all_agree_on_a_ragged_batch(provider, phase):
    assert judged(provider, Case("lstm", torch.float32, 13, 4, 9, sequences="ragged"), phase, seed=3).ok


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("provider", [StepLoop(), Holdfast()], ids=lambda p: p.name)
@pytest.mark.parametrize("cell", CELLS)
def test_all_agree_on_resets(cell, provider, phase):
    assert judged(provider, Case(cell, torch.float32, 13, 4, 17, sequences="resets"), phase, seed=5).ok


@pytest.mark.parametrize(("sequences", "steps"), [("resets", 40), ("rare resets", 50)])
def test_how_often_episodes_end(sequences, steps):
    resets = Numbers(Case("lstm", torch.float32, 8, 64, 320, sequences=sequences), CPU).resets
    assert abs(resets.sum() - resets.numel() / steps) < 5 * (resets.numel() / steps) ** 0.5


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("change", [{"heads": 3}, {"directions": 2}, {"layers": 2}], ids=str)
def test_all_agree_on_more_than_one(change, phase):
    case = replace(Case("gru", torch.float32, 12, 3, 5), **change)
    assert judged(Holdfast(), case, phase).ok
    assert judged(TorchNN(), case, phase).ok


@pytest.mark.parametrize("provider", [Holdfast(), LoopAlone(), Holdfast("cooperative")], ids=lambda p: p.name)
def test_the_kernels_agree_in_the_interpreter(provider):
    """H=21 runs in one program by itself, and in a team where it is asked for."""
    with interpret(seed=11):
        assert judged(provider, Case("gru", torch.float16, 21, 3, 3), "forward").ok


def test_a_regime_is_pinned():
    with interpret():
        prepared = Holdfast("cooperative").prepare(Numbers(Case("lstm", torch.float16, 21, 3, 3), CPU), "forward")
    assert (prepared.regime, prepared.origin) == ("cooperative", "pinned")


@pytest.mark.skipif(importlib.util.find_spec("flashrnn") is None, reason="FlashRNN is not installed")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("cell", CELLS)
def test_flashrnn_computes_the_same(cell, phase):
    """Its plain backend runs on a CPU: shapes, gate order and heads are as we hand them over."""
    assert judged(FlashRNN("vanilla"), Case(cell, torch.float32, 12, 3, 7, heads=2, input_size=5), phase).ok


@pytest.mark.parametrize(
    ("provider", "change", "why"),
    [
        (FlashRNN("cuda"), {"layers": 2}, "no layers"),
        (StepLoop(), {"directions": 2}, "one direction"),
        (TorchNN(), {"sequences": "resets"}, "no argument for resets"),
        (TorchNN(packed=True), {}, "only ragged"),
        (Holdfast("single_cta"), {}, "no_gpu"),
        (Untuned(), {}, "no tuning result"),
        (LoopAlone(), {}, "no kernel runs"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_who_cannot_run_says_why(provider, change, why):
    case = replace(Case("lstm", torch.float32, 12, 3, 5), **change)
    with pytest.raises(Unavailable, match=why):
        provider.prepare(Numbers(case, CPU), "forward")


def test_the_host_side_is_not_timed_unchecked(monkeypatch):
    """A machine with a GPU may lack greenlet, and with it the interpreter: the other rows of the suite stay good."""
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(Unavailable, match="needs greenlet"):
        HostSide().prepare(Numbers(Case("lstm", torch.bfloat16, 16, 1, 2), CPU), "forward")


def test_numbers_are_drawn_anew_and_never_zero():
    case = Case("lstm", torch.bfloat16, 16, 3, 5)
    one, other = (Numbers(case, CPU, seed=seed, copies=2) for seed in (0, 1))
    assert not torch.equal(one.xs[0], one.xs[1])
    assert not torch.equal(one.xs[0], other.xs[0])
    assert all(w.count_nonzero() > 0.9 * w.numel() for w in one.weights[0].values())


def test_segments_start_at_the_marked_steps_and_at_the_first():
    assert segment_starts(torch.tensor([False, False, True, False, True])) == [0, 2, 4]
    assert segment_starts(torch.tensor([True, False])) == [0]


def test_the_twin_of_a_ragged_batch_has_as_many_tokens():
    numbers = Numbers(Case("lstm", torch.float32, 8, 16, 40, sequences="ragged"), CPU)
    twin = same_tokens(numbers)
    assert abs(twin.length * twin.batch_size - numbers.real_steps) <= twin.batch_size / 2
    assert twin.sequences == "dense"


class OffBy:
    """A provider whose y is off by a multiple of what is allowed."""

    def __init__(self, name: str, is_peer: bool, factor: float) -> None:
        self.name, self.is_peer, self.factor = name, is_peer, factor

    def prepare(self, numbers, phase):
        prepared = TorchNN().prepare(numbers, phase)
        true_results = prepared.results
        allowed = Judge(numbers)(numbers.right, prepared.dtype, factor=1).allowed

        def results():
            found = true_results()
            return found | {"y": found["y"] + self.factor * allowed}

        prepared.results = results
        return prepared


class Broken:
    name = "broken"

    def __init__(self, is_peer: bool) -> None:
        self.is_peer = is_peer

    def prepare(self, numbers, phase):
        raise RuntimeError("no such kernel\nat line 3")


def rows_of(tmp_path, *providers):
    session = Session("test", Options(tmp_path, seconds=0.001))
    session.run([Entry(Case("rnn_tanh", torch.float32, 8, 2, 3), (TorchNN(), *providers), phases=("forward",))])
    table = session.results.table()
    return session, table[table["provider"].isin([p.name for p in providers])]


@pytest.mark.parametrize("is_peer", [False, True])
def test_a_wrong_result_gets_no_time(is_peer, tmp_path):
    session, rows = rows_of(tmp_path, OffBy("off", is_peer, 3 * PEER_FACTOR))
    assert rows["status"].tolist() == ["wrong"]
    assert rows["p50_us"].isna().all()
    assert rows["note"].iloc[0].startswith("y differs")
    assert session.ok is is_peer


def test_a_peer_may_err_more_than_we_may(tmp_path):
    session, rows = rows_of(tmp_path, OffBy("peer", True, 4), OffBy("ours", False, 4))
    assert rows.groupby("provider")["status"].first().to_dict() == {"ours": "wrong", "peer": "ok"}
    assert not session.ok


@pytest.mark.parametrize("is_peer", [False, True])
def test_who_fails_is_told_in_one_line_and_the_others_are_timed(is_peer, tmp_path):
    session, rows = rows_of(tmp_path, Broken(is_peer))
    assert rows[["status", "note"]].values.tolist() == [["failed", "RuntimeError: no such kernel"]]
    assert session.results.table()["p50_us"].notna().any()
    assert session.ok is is_peer


def test_nan_is_wrong(tmp_path):
    session, rows = rows_of(tmp_path, OffBy("nan", False, float("nan")))
    assert rows["status"].tolist() == ["wrong"]
    assert not session.ok


def test_ratios_are_the_baselines_time_over_the_rows(tmp_path):
    session, _ = rows_of(tmp_path, StepLoop())
    table = session.results.table()
    torchs = table[table["provider"] == "torch.nn"].set_index("repeat")["p50_us"]
    for _, row in table[table["p50_us"].notna()].iterrows():
        assert row["ratio"] == pytest.approx(torchs[row["repeat"]] / row["p50_us"])
        assert row["us_per_step"] == pytest.approx(row["p50_us"] / 3)


def test_time_that_is_up_leaves_out_the_rest(tmp_path):
    session = Session("test", Options(tmp_path, minutes=1e-9))
    session.run([Entry(Case("gru", torch.float32, 8, 2, 3), (TorchNN(),))] * 3)
    assert session.left_out == 3
    assert session.results.table().empty


def test_a_twin_is_compared_with_its_own_numbers(tmp_path):
    shorter = Twin("shorter", lambda numbers: replace(numbers.case, length=2))
    session, rows = rows_of(tmp_path, shorter)
    assert (rows["status"] == "ok").all()
    assert (rows["us_per_step"] * 2).tolist() == pytest.approx(rows["p50_us"].tolist())
    assert session.ok
