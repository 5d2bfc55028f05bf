"""Tuning one problem, all but the GPU: what is tried, in which order, what is kept, and what a child process may do."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch

from holdfast.autotune import measure, tune
from holdfast.autotune.candidates import choose
from holdfast.autotune.compile_many import Outcome, Request, compile_many
from holdfast.autotune.identity import fingerprint, keeps, key_of
from holdfast.autotune.measure import Job, MeasurementRefusedError, Quantiles, Result, quantiles, require_gpu
from holdfast.autotune.offline import CompiledReport
from holdfast.autotune.processes import Child, Children, Workers
from holdfast.autotune.report import rank_correlation
from holdfast.autotune.store import Store
from holdfast.autotune.tune import Setup
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.problem import FEATURES, Problem
from holdfast.kernels.resources import H100

GPU = torch.device("cuda", 0)
LSTM = Problem("lstm", torch.bfloat16, 768, 16)
SMALL = Problem("gru", torch.bfloat16, 20, 3)


def report(registers=128, shared=60_000, spill=0) -> CompiledReport:
    return CompiledReport("sm_90", registers, spill, spill, None, shared, 48, "HGMMA", 4, 0.0, "", ())


@dataclass
class FakeGpu:
    """In place of compiler, child process and GPU: a time for every config, drawn once, and some failures."""

    spilling: frozenset[Config] = frozenset()
    failing: frozenset[Config] = frozenset()
    torch_us: float = 2000.0

    def __post_init__(self) -> None:
        self.times: dict[Config, float] = {}
        self.ran: list[Job] = []
        self.torchs: list[Job] = []

    def compile(self, requests, advance=None, *, compilers=None, deadline=None) -> dict[Request, Outcome]:
        requests = list(requests)
        spill = {r: 8 if r.config in self.spilling else 0 for r in requests}
        return {r: Outcome(report(spill=spill[r]), 0, 10_000) for r in requests}

    def run(self, job: Job) -> Result:
        if job.config is None:
            self.torchs.append(job)
            return Result("timed", "", Quantiles(*[self.torch_us] * 3, 50), Quantiles(*[self.torch_us] * 3, 50))
        self.ran.append(job)
        if job.config in self.failing:
            return Result("killed", "no result within 60 s")
        us = self.times.setdefault(job.config, random.uniform(500, 1500))
        if job.best_us is not None and us > 1.3 * job.best_us:
            return Result("stopped", "", Quantiles(us, us, us, 3, True))
        return Result("timed", "", Quantiles(us, us, us, 20), Quantiles(us, 1.1 * us, 1.1 * us, 20))


@pytest.fixture
def gpu(monkeypatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setattr(tune, "compile_many", fake.compile)
    monkeypatch.setattr(tune, "require_gpu", lambda device: None)
    return fake


def run(store: Store, gpu: FakeGpu, problem=LSTM, **options):
    setup = Setup(H100, GPU, store, options.pop("candidates", 8))
    return tune.tune(problem, setup, workers=Workers(object(), gpu), **options)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def load(store: Store, problem=LSTM):
    return store.load(key_of(problem), fingerprint(problem, H100))


def test_the_fastest_wins_and_everything_is_kept(store, gpu):
    tuned = run(store, gpu)
    best = min(gpu.times, key=gpu.times.__getitem__)
    entry = load(store)
    assert entry == tuned.entry
    assert entry.best("nothing").config == best
    assert gpu.ran[0].config == choose(LSTM, H100) == entry.heuristic
    assert entry.tried("nothing") == set(gpu.times)
    assert len(gpu.times) == 8
    assert {job.keep for job in gpu.ran} == {"nothing", "save", "recompute"}
    finalists = sorted((c for c in gpu.times if c in entry.latest("nothing")), key=gpu.times.__getitem__)[
        : tune.FINALISTS
    ]
    assert {job.config for job in gpu.ran if job.keep == "save"} == set(finalists)
    assert tuned.table["status"].isin(["timed", "stopped"]).all()


def test_torchs_own_op_is_one_more_candidate(store, gpu):
    gpu.torch_us = 100.0
    entry = run(store, gpu).entry
    assert [job.keep for job in gpu.torchs] == ["nothing", "save"]
    assert entry.winner("nothing") == entry.winner("save") == entry.winner("recompute") == "eager"
    assert entry.best("nothing").config is not None
    assert load(store).fused("recompute").p50_us == 100.0
    assert None not in entry.tried("nothing")
    gpu.torchs.clear()
    run(store, gpu)
    assert not gpu.torchs  # it has been timed


def test_torchs_own_op_is_timed_where_it_computes_the_same(store, gpu):
    found = run(store, gpu, replace(LSTM, cell="gru")).entry
    assert found.winner("nothing") == str(found.best("nothing").config)
    run(store, gpu, replace(LSTM, features=("lengths",)))
    run(store, gpu, replace(LSTM, cell="lstm_peephole"))
    assert {(job.problem.cell, job.problem.features) for job in gpu.torchs} == {("gru", ())}


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_torchs_candidate_computes_what_the_kernels_do(cell, phase):
    """Both directions, in the interpreter: what is compared before anything is timed."""
    problem = Problem(cell, torch.float32, 20, 3, 2, phase=phase)
    reference = choose(problem, H100)
    for keep in keeps(problem)[:2]:
        if keep != "recompute":
            assert measure.run(Job(problem, None, keep, reference, 3, "cpu")) == Result(
                "right", "3 steps in the interpreter, untimed"
            )


def test_a_later_run_goes_on_where_the_first_ended(store, gpu):
    run(store, gpu)
    first = set(gpu.times)
    gpu.ran.clear()
    run(store, gpu)
    again = {job.config for job in gpu.ran if job.keep == "nothing"}
    assert not first & again
    assert load(store).tried("nothing") == first | again


def test_what_spills_or_stalls_is_never_tried_again(store, gpu):
    ranked = [r.config for r in tune.search(LSTM, H100)[0]]
    gpu.spilling, gpu.failing = frozenset(ranked[1:3]), frozenset(ranked[3:4])
    tuned = run(store, gpu)
    assert not gpu.spilling & {job.config for job in gpu.ran}
    why = {r.config: r.why for r in load(store).rejected if r.keep == "nothing"}
    assert {why[c] for c in gpu.spilling} == {"spills inside the time loop, 8 bytes a thread in all"}
    assert [why[c] for c in gpu.failing] == ["killed: no result within 60 s"]
    assert set(tuned.table["status"]) >= {"rejected", "killed"}
    gpu.ran.clear()
    run(store, gpu)
    assert not (gpu.spilling | gpu.failing) & {job.config for job in gpu.ran}


def test_a_run_that_is_cut_off_keeps_what_it_has(store, gpu, monkeypatch):
    def third_is_the_last(job: Job) -> Result:
        if len(gpu.ran) == 3:
            raise KeyboardInterrupt
        return FakeGpu.run(gpu, job)

    monkeypatch.setattr(gpu, "run", third_is_the_last)
    with pytest.raises(KeyboardInterrupt):
        run(store, gpu)
    assert load(store).tried("nothing") == {job.config for job in gpu.ran}


def test_the_budget_ends_the_timing(store, gpu, monkeypatch):
    now = [0.0]

    def slow(job: Job) -> Result:
        now[0] += 0.05
        return FakeGpu.run(gpu, job)

    monkeypatch.setattr(gpu, "run", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tuned = run(store, gpu, budget_s=0.12, candidates=64)
    assert now[0] <= 0.12 + 0.05  # what runs when the time is up is finished
    assert 0 < len(gpu.ran) < 10
    assert (tuned.table["status"] == "not timed").any()
    assert (tuned.table.loc[tuned.table["status"] == "not timed", "why"] == "the time was up").all()


def test_a_problem_that_fits_nowhere_says_what_stands_against_it(store, gpu):
    tuned = run(store, gpu, replace(LSTM, hidden_size=5000))
    assert tuned.table.empty
    assert "no config fits NVIDIA H100" in tuned.note
    assert "may_be_co_resident" in tuned.note or "may_fit_shared" in tuned.note


def test_without_a_gpu_nothing_is_compiled_and_nothing_written(store, monkeypatch):
    monkeypatch.setattr(tune, "compile_many", lambda *_, **__: pytest.fail("compiled"))
    for device in (torch.device("cpu"), *([] if torch.cuda.is_available() else [GPU])):
        with pytest.raises(MeasurementRefusedError, match="--rehearse"):
            tune.tune(LSTM, Setup(H100, device, store))
        with pytest.raises(MeasurementRefusedError, match=f"no kernel can be timed on {device}"):
            require_gpu(device)
    assert not list(store.root.rglob("*"))


@pytest.fixture(scope="module")
def workers(compilers):
    """Processes that take seconds to start, for all rehearsals."""
    with Child(timeout_s=600) as child:
        yield Workers(compilers, child)


@pytest.mark.parametrize("phase", ["forward", pytest.param("backward", marks=pytest.mark.thorough)])
def test_a_rehearsal_compiles_and_runs_but_times_nothing(phase, store, workers):
    problem = replace(SMALL, phase=phase)
    tuned = tune.tune(problem, Setup(H100, None, store, candidates=2), budget_s=1200, workers=workers)
    assert set(tuned.table["status"]) == {"right"}, tuned.table.to_string()
    assert tuned.table[["warm_us", "cold_us", "p20_us", "p80_us"]].isna().all(axis=None)
    assert (tuned.table["registers"] > 0).all()
    assert load(store, problem).timings == ()
    assert rank_correlation(tuned.table) is None


class JobThatKillsItsProcess(Job):
    def __reduce__(self):
        return os._exit, (7,)


def test_a_child_that_hangs_or_dies_costs_one_job(workers):
    job = Job(SMALL, Config("single_cta", 16, 32, 32), "nothing", Config("single_cta", 16, 32, 32), 3, "cpu")
    child = workers.child
    hung = child.run(replace(job, config=Config("cooperative", 16, 16, 32)), timeout_s=0.0)
    assert (hung.status, hung.why) == ("killed", "no result within 0 s")
    fields = (job.problem, job.config, job.keep, job.reference, job.length, job.device)
    died = child.run(JobThatKillsItsProcess(*fields))
    assert (died.status, died.why) == ("failed", "its process died with status 7")
    assert child.run(job).status == "right"


def test_an_error_of_a_candidate_is_its_result():
    right = Config("single_cta", 16, 32, 32)
    bad = measure.run(Job(SMALL, replace(right, BLOCK_B=3), "nothing", right, 3, "cpu"))
    assert bad.status == "failed"


@pytest.mark.parametrize(
    "features",
    [
        pytest.param(("lengths",), marks=pytest.mark.thorough),
        ("lengths", "packed"),
        pytest.param(("reset_state", "resets"), marks=pytest.mark.thorough),
        FEATURES[2:],
    ],
)
def test_a_candidate_with_features_computes_what_the_heuristics_config_does(features):
    phase, cell = random.choice(["forward", "backward"]), random.choice(list(CELLS))
    problem = Problem(cell, torch.float32, 20, 3, random.choice([1, 2]), "tf32", phase, features)
    choice = choose(problem, H100)
    other = random.choice([r.config for r in tune.search(problem, H100)[0] if r.config != choice])
    for keep in keeps(problem):
        result = measure.run(Job(problem, other, keep, choice, 5, "cpu"))
        assert result.status == "right", (problem, other, keep, result.why)


def test_children_run_every_job_that_can_begin_in_time(monkeypatch, workers):
    config = Config("single_cta", 16, 32, 32)
    jobs = [Job(replace(SMALL, batch_size=b), config, "nothing", config, 2, "cpu", untimed=True) for b in (1, 2, 3)]
    done = []
    with Children(2) as children:
        children._children[0] = workers.child  # that runs already
        children.run_all(jobs, time.monotonic() + 1000, done.append)
        assert done == [1, 2, 3]
        monkeypatch.setattr(Child, "run", lambda *_: pytest.fail("began after the deadline"))
        children.run_all(jobs, time.monotonic())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_wrong_result_is_told_from_rounding(dtype):
    problem = replace(LSTM, dtype=dtype)
    exact = torch.randn(50, 40, dtype=torch.float64) / 3
    reference, other = exact.to(dtype), (exact * (1 + torch.finfo(dtype).eps * torch.randn(50, 40))).to(dtype)
    assert measure.difference([other], [reference], problem) is None
    assert "differs by" in measure.difference([reference.roll(1, 0)], [reference], problem)
    spoilt = reference.clone()
    spoilt[3, 4] = float("nan")
    assert "not finite" in measure.difference([spoilt], [reference], problem)
    assert measure.difference([spoilt], [spoilt], problem) is None


def test_quantiles_are_times_that_were_measured():
    times = [random.uniform(1, 9) for _ in range(random.randint(1, 50))]
    found = quantiles(times)
    assert {found.p20, found.p50, found.p80} <= set(times)
    assert min(times) <= found.p20 <= found.p50 <= found.p80 <= max(times)
    assert found.repeats == len(times)


def test_rank_correlation():
    measured = pd.Series([random.uniform(1, 9) for _ in range(10)])
    assert rank_correlation(pd.DataFrame({"estimate_us": measured**3, "warm_us": measured})) == pytest.approx(1.0)
    assert rank_correlation(pd.DataFrame({"estimate_us": 1 / measured, "warm_us": measured})) == pytest.approx(-1.0)
    few = pd.DataFrame({"estimate_us": [1.0, 2.0, 3.0], "warm_us": [1.0, None, 2.0]})
    assert rank_correlation(few) is None
    assert rank_correlation(pd.DataFrame({"estimate_us": [1.0, 1.0, 1.0], "warm_us": [1.0, 2.0, 3.0]})) is None


def test_what_was_not_begun_by_the_deadline_is_not_compiled(workers):
    configs = [Config("single_cta", rows, 16, 16, warps) for rows in (16, 32, 64) for warps in (4, 8)]
    requests = [Request(replace(SMALL, hidden_size=16), config, "sm_90", device=H100) for config in configs]
    outcomes = compile_many(requests, deadline=time.monotonic(), compilers=workers.compilers)
    assert len(outcomes) == len(requests)
    late = [o for o in outcomes.values() if "the time was up" in o.error]
    assert late
    assert all(o.report is not None for o in outcomes.values() if o not in late)


class Flaky:
    """Results that are wrong in some runs: one bit of one number."""

    def __init__(self, results, chance: float, seed: int = 0) -> None:
        self.results, self.chance, self.random, self.runs = results, chance, random.Random(seed), 0

    def __call__(self):
        found = [tensor.clone() for tensor in self.results]
        self.runs += 1
        if self.random.random() < self.chance:
            self.random.choice(found).view(torch.int16).view(-1)[-1] ^= 1
        return found


def test_a_tile_that_is_wrong_in_some_runs_is_found():
    """11% of runs, as a peer shipped one: 64 runs find it with a chance of 99.9%."""
    results = [torch.randn(3, 4), torch.randn(5).bfloat16()]
    found = [measure.unsteady(Flaky(results, 0.11, seed), measure.RUNS) for seed in range(200)]
    assert sum(why is None for why in found) <= 2
    assert all("1 numbers of result" in why for why in found if why)
    steady = Flaky(results, 0.0)
    assert measure.unsteady(steady, measure.RUNS) is None
    assert steady.runs == measure.RUNS


def test_bits_are_compared_and_not_numbers():
    nan = [torch.tensor([float("nan"), 0.0])]
    assert measure.changed(nan, [nan[0].clone()]) is None
    assert "1 numbers" in measure.changed([torch.tensor([0.0])], [torch.tensor([-0.0])])


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_flaky_kernel_gets_no_time(phase, monkeypatch):
    """Right in its first run, another bit in the next; in the interpreter, so the kernel is the real one otherwise."""
    problem = Problem("rnn_tanh", torch.float32, 8, 2, phase=phase)
    config = choose(problem, H100)
    real = measure._call

    def flaky(layer):
        call, runs = real(layer), []

        def run():
            runs.append(True)
            return Flaky(call(), float(len(runs) == 2))()

        return run if layer.config == config else call

    reference = replace(config, num_warps=8)
    assert measure.run(Job(problem, config, "save", reference, 3, "cpu")).status == "right"
    monkeypatch.setattr(measure, "_call", flaky)
    measure._results.cache_clear()
    result = measure.run(Job(problem, config, "save", reference, 3, "cpu"))
    assert result.status == "wrong"
    assert "in run 2 of 2, 1 numbers of result" in result.why
    measure._results.cache_clear()


def test_a_flaky_candidate_is_not_kept(store, gpu):
    """What measuring calls wrong is rejected, and a later run does not try it again."""
    best = choose(LSTM, H100)
    run_as_ever = gpu.run

    def run_job(job):
        if job.config == best:
            return Result("wrong", "in run 9 of 64, 1 numbers of result 0 are not those of the first run")
        return run_as_ever(job)

    gpu.run = run_job
    entry = run(store, gpu).entry
    assert best not in [timing.config for timing in entry.timings]
    assert any(rejected.config == best and "in run 9 of 64" in rejected.why for rejected in entry.rejected)
    assert entry.best("nothing").config != best
