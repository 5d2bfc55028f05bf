"""Tuning on a real GPU: times are times, the tuned config runs and is right, a slow child costs its time-out."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

import holdfast
from holdfast.autotune import mode, on_miss, store
from holdfast.autotune.candidates import choose
from holdfast.autotune.identity import key_of
from holdfast.autotune.measure import Job, time_call
from holdfast.autotune.processes import Child
from holdfast.autotune.select import select
from holdfast.autotune.store import Store
from holdfast.autotune.tune import Setup, tune
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import from_device

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
LSTM = Problem("lstm", torch.bfloat16, 256, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(on_miss, "_settled", set())
    store.changed()
    return Store(tmp_path)


def test_more_work_takes_longer_and_a_loser_is_given_up():
    a, b = torch.randn(2, 2048, 2048, device=GPU), torch.randn(2, 8192, 2048, device=GPU)
    small = time_call(lambda: torch.mm(a[0], a[1]), GPU, "warm")
    large = time_call(lambda: torch.mm(b[0], b[1].t()), GPU, "warm")
    assert 0 < small.p20 <= small.p50 <= small.p80
    assert large.p50 > 4 * small.p50
    assert time_call(lambda: torch.mm(b[0], b[1].t()), GPU, "warm", best_us=small.p50).stopped
    assert time_call(lambda: torch.mm(a[0], a[1]), GPU, "cold").repeats >= 5


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_tuned_layer_runs_its_config(phase, cache):
    problem = replace(LSTM, phase=phase)
    limits = from_device(GPU)
    tuned = tune(problem, Setup(limits, GPU, cache, candidates=4), budget_s=100)
    timed = tuned.table[tuned.table["status"] == "timed"]
    assert not timed.empty, tuned.table.to_string()
    assert (timed["p20_us"] <= timed["warm_us"]).all()
    assert (timed["warm_us"] <= timed["p80_us"]).all()
    plan = select(problem, GPU)
    assert plan.origin == "user cache"
    assert tuned.entry.best("nothing" if phase == "forward" else "save").config == plan.config
    module = holdfast.LSTM(256, 256, device=GPU, dtype=torch.bfloat16)
    x = torch.randn(64, 16, 256, device=GPU, dtype=torch.bfloat16)
    with holdfast.backend("triton"):
        y, _ = module(x)
    with holdfast.backend("eager"):
        torch.testing.assert_close(y, module(x)[0], rtol=0.05, atol=0.05)


def test_a_child_that_is_too_slow_is_killed_and_replaced():
    choice = choose(LSTM, from_device(GPU))
    job = Job(LSTM, choice, "nothing", choice, 512, "cuda:0")
    with Child() as child:
        start = time.monotonic()
        assert child.run(job, timeout_s=0.01).status == "killed"
        assert time.monotonic() - start < 60
        assert child.run(job).status == "timed"


def test_a_miss_is_tuned_when_the_layer_runs_but_not_in_a_graph(monkeypatch, cache):
    monkeypatch.setattr(on_miss, "BUDGET_S", 30.0)
    module = holdfast.GRU(32, 64, device=GPU, dtype=torch.bfloat16)
    x = torch.randn(40, 3, 32, device=GPU, dtype=torch.bfloat16)
    with torch.no_grad(), holdfast.backend("triton"):
        module(x)
        torch.cuda.synchronize()
        with mode("tune-on-miss"):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                module(x)
            assert not list(cache.entries())
            module(x)
    (_, entry), *others = cache.entries()
    assert not others
    assert entry.key == key_of(Problem("gru", torch.bfloat16, 64, 3))
    assert entry.timings
