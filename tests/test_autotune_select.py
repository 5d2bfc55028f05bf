"""Which config runs: the order of sources, coarse classes, what is refused on load, and what explain says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.autotune import current_mode, mode, on_miss, store
from holdfast.autotune.candidates import choose
from holdfast.autotune.identity import fingerprint, key_of, problem_of
from holdfast.autotune.pin import pinned
from holdfast.autotune.select import UnusableEntryWarning, explained, faster_keep, select, select_for
from holdfast.autotune.store import Entry, Store, Timing
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import A100, H100

CPU = torch.device("cpu")
PROBLEM = Problem("lstm", torch.bfloat16, 768, 16)
HEURISTIC = choose(PROBLEM, H100)
USERS = Config("cooperative", 16, 8, 128, num_warps=8)
SHIPPED = Config("cooperative", 16, 16, 128, num_warps=8, exchange="barrier")


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch) -> dict[str, Store]:
    """Empty stores in place of the user's and the package's."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "user"))
    monkeypatch.setattr("holdfast.autotune.select.SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(on_miss, "_settled", set())
    monkeypatch.setattr(on_miss, "_agreed", {})
    store.changed()
    yield {"user cache": Store(tmp_path / "user"), "shipped": Store(tmp_path / "shipped")}
    store.changed()


def entry(
    config, problem=PROBLEM, limits=H100, *, keep="nothing", us=100.0, shared=74_000, length=None, **where
) -> Entry:
    timing = Timing(config, keep, "warm", False, us, us, us, 10, 512, 16, 168, shared, "2026-11-21")
    return Entry(key_of(problem, length), replace(fingerprint(problem, limits), **where), HEURISTIC, (timing,))


def test_pinned_then_user_then_shipped_then_heuristic(stores):
    assert (select_for(PROBLEM, H100).config, select_for(PROBLEM, H100).origin) == (HEURISTIC, "heuristic")
    stores["shipped"].add(entry(SHIPPED))
    assert (select_for(PROBLEM, H100).config, select_for(PROBLEM, H100).origin) == (SHIPPED, "shipped")
    stores["user cache"].add(entry(USERS))
    assert (select_for(PROBLEM, H100).config, select_for(PROBLEM, H100).origin) == (USERS, "user cache")
    with pinned(HEURISTIC):
        assert (select_for(PROBLEM, H100).config, select_for(PROBLEM, H100).origin) == (HEURISTIC, "pinned")
    with mode("off"):
        assert select_for(PROBLEM, H100).origin == "heuristic"
    stores["user cache"].clear()
    assert select_for(PROBLEM, H100).origin == "shipped"


def test_the_fastest_timing_of_what_is_kept(stores):
    stores["user cache"].add(entry(USERS, us=50.0))
    stores["user cache"].add(entry(SHIPPED, us=60.0))
    stores["user cache"].add(entry(SHIPPED, us=10.0, keep="save"))
    assert select_for(PROBLEM, H100).config == USERS
    assert select_for(PROBLEM, H100, keep="save").config == SHIPPED
    assert select_for(PROBLEM, H100, keep="recompute").origin == "heuristic"


def test_what_an_rnn_keeps_makes_no_difference(stores):
    rnn = replace(PROBLEM, cell="rnn_tanh", hidden_size=512)
    config = Config("cooperative", 16, 16, 128, num_warps=8)
    stores["user cache"].add(entry(config, rnn))
    assert {select_for(rnn, H100, keep=keep).config for keep in (None, "nothing", "save", "recompute")} == {config}


def test_a_new_length_or_batch_of_the_same_class_reads_no_file(stores, monkeypatch):
    stores["user cache"].add(entry(USERS))
    looked = []
    monkeypatch.setattr(Store, "load", lambda self, key, where: looked.append(key))
    with interpret():
        for batch in range(1, 17):
            for length in (32, 33, 1000, 10**6):
                select(replace(PROBLEM, batch_size=batch), CPU, length=length, keep="nothing")
        assert len(looked) == 1
        select(replace(PROBLEM, batch_size=17), CPU, length=100, keep="nothing")
        select(PROBLEM, CPU, length=1, keep="nothing")
    assert len(looked) == 3


def test_a_short_sequence_has_results_of_its_own(stores):
    stores["user cache"].add(entry(USERS, length=4))
    assert select_for(PROBLEM, H100, length=31).config == USERS
    assert select_for(PROBLEM, H100, length=32).origin == "heuristic"


def test_a_config_of_a_bigger_gpu_is_refused(stores):
    """With the right fingerprint, so that only the check on load stands between it and a team that waits for ever."""
    small = replace(H100, name="a slice of an H100", num_sms=60)
    problem = replace(PROBLEM, cell="rnn_tanh")
    stores["user cache"].add(entry(Config("cooperative", 16, 8, 128), problem, small, shared=200_000))
    plan = explained(select_for(problem, small), small)
    assert plan.origin == "heuristic"
    assert "needs 96 programs resident at once, a slice of an H100 holds 60" in plan.notes[0]
    stores["user cache"].add(entry(Config("cooperative", 16, 64, 128), problem, small, shared=300_000, us=1.0))
    assert "needs 300000 bytes of shared memory" in explained(select_for(problem, small), small).notes[0]


def test_nothing_runs_that_the_heuristic_has_no_kernel_for(stores):
    """Modules ask once for all batch sizes, so a result for one class cannot make a problem eligible."""
    problem = replace(PROBLEM, hidden_size=1500)
    stores["user cache"].add(entry(Config("cooperative", 16, 32, 128, num_warps=8), problem))
    assert select_for(problem, H100).regime == "eager"


def test_a_damaged_entry_is_a_miss_that_is_told_once(stores):
    path = stores["user cache"].add(entry(USERS))
    path.write_text(path.read_text()[:-50])
    with pytest.warns(UnusableEntryWarning, match=r"cut off.*holdfast tune --clear"):
        assert select_for(PROBLEM, H100).origin == "heuristic"
    assert "cut off" in explained(select_for(PROBLEM, H100), H100).notes[0]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"problem": replace(PROBLEM, batch_size=100)}, "batch (there 128, here 16)"),
        ({"problem": replace(PROBLEM, hidden_size=512)}, "hidden_size (there 512, here 768)"),
        ({"problem": replace(PROBLEM, features=("lengths",))}, "features (there ('lengths',), here ())"),
        ({"length": 8}, "length (there short, here long)"),
        ({"triton": "3.5.1"}, "triton (there 3.5.1, here "),
        ({"driver": "570.1"}, "driver (there 570.1, here "),
        ({"source": "0" * 12}, "source (there 000000000000, here "),
    ],
)
def test_explain_names_the_fields_in_which_the_nearest_entry_differs(other, said, stores):
    stores["user cache"].add(entry(USERS, replace(PROBLEM, cell="gru", hidden_size=64)))  # farther away
    stores["user cache"].add(entry(USERS, **other))
    plan = explained(select_for(PROBLEM, H100), H100)
    assert plan.origin == "heuristic"
    (note,) = plan.notes
    assert note.startswith("user cache: the nearest of 2 entries differs in ")
    assert said in note
    assert f"note: {note}" in str(plan)
    assert note.count(" (there ") == 1


def test_several_differing_fields_are_all_named(stores):
    stores["user cache"].add(entry(USERS, replace(PROBLEM, batch_size=64), A100))
    (note,) = explained(select_for(PROBLEM, H100), H100).notes
    for field in ("batch", "gpu", "arch", "num_sms", "shared_per_block"):
        assert f"{field} (there " in note


def test_a_shipped_entry_may_come_from_another_driver_and_torch(stores):
    stores["shipped"].add(entry(SHIPPED, driver="1.0", torch="2.11.0", cuda="13.0"))
    assert select_for(PROBLEM, H100).origin == "shipped"
    stores["shipped"].clear()
    stores["shipped"].add(entry(SHIPPED, triton="3.5.1"))
    assert select_for(PROBLEM, H100).origin == "heuristic"


def test_a_module_runs_and_explains_what_was_tuned(stores):
    module = holdfast.GRU(5, 24)
    x = torch.randn(3, 2, 5)
    before = problem_of(key_of(Problem("gru", torch.float32, 24, 2)))
    with interpret(), torch.no_grad():
        problem = module.explain(x).problem
        tuned = Config("cooperative", 16, 16, 32)
        assert module.explain(x).config != tuned
        stores["user cache"].add(entry(tuned, replace(before, precision=problem.precision)))
        assert (module.explain(x).config, module.explain(x).origin) == (tuned, "user cache")
        y, _ = module(x.repeat(20, 1, 1))
    with holdfast.backend("eager"), torch.no_grad():
        torch.testing.assert_close(y, module(x.repeat(20, 1, 1))[0], rtol=1e-2, atol=1e-2)


def test_what_training_should_keep_is_the_faster_of_both_phases_together(stores):
    backward = replace(PROBLEM, phase="backward")
    config = Config("cooperative", 16, 16, 128, num_warps=8, exchange="barrier")
    for problem, keep, us in ((PROBLEM, "save", 120.0), (PROBLEM, "recompute", 100.0), (backward, "save", 200.0)):
        stores["user cache"].add(entry(config, problem, keep=keep, us=us))
        assert faster_keep(PROBLEM, H100) is None
    stores["user cache"].add(entry(config, backward, keep="recompute", us=230.0))
    assert faster_keep(PROBLEM, H100) == "save"
    stores["user cache"].add(entry(USERS, keep="recompute", us=80.0))
    assert faster_keep(PROBLEM, H100) == "recompute"
    with mode("off"):
        assert faster_keep(PROBLEM, H100) is None


@pytest.mark.parametrize("faster", ["save", "recompute"])
def test_a_module_keeps_what_was_measured_faster(stores, faster):
    module, x = holdfast.LSTM(5, 24), torch.randn(3, 2, 5)
    with interpret():
        problem = module.explain(x).problem
        tuned = Config("cooperative", 16, 16, 32, exchange="barrier")
        for keep in ("save", "recompute"):
            for phase in ("forward", "backward"):
                us = 50.0 if keep == faster else 60.0
                stores["user cache"].add(entry(tuned, replace(problem, phase=phase), keep=keep, us=us, length=3))
        assert module.explain(x).keep == faster
        module.keep = "save"
        assert module.explain(x).keep == "save"


def test_modes():
    assert current_mode() == "use"
    with mode("tune-on-miss"):
        with mode("off"):
            assert current_mode() == "off"
        assert current_mode() == "tune-on-miss"
    assert current_mode() == "use"
    with pytest.raises(ValueError, match=r"autotune\.mode should be one of 'off', 'use', 'tune-on-miss', got 'on'"):
        mode("on")


def test_use_and_off_never_tune(monkeypatch):
    monkeypatch.setattr(on_miss, "_own", lambda *_: pytest.fail("tuned"))
    with interpret():
        for name in ("use", "off"):
            with mode(name):
                assert select(PROBLEM, CPU, may_tune=True).origin == "heuristic"
        with mode("tune-on-miss"):
            assert select(PROBLEM, CPU).origin == "heuristic"  # asked, not run


def test_a_miss_is_tuned_once_for_its_class(monkeypatch, stores):
    tuned = []

    def tune(key, device):
        tuned.append(key)
        stores["user cache"].add(entry(USERS))
        return ""

    monkeypatch.setattr(on_miss, "_tune", tune)
    with interpret(), mode("tune-on-miss"):
        for batch, length in ((16, 50), (3, 60), (16, 1000)):
            plan = select(replace(PROBLEM, batch_size=batch), CPU, length=length, may_tune=True)
            assert (plan.config, plan.origin) == (USERS, "user cache")
    assert tuned == [key_of(PROBLEM)]


def test_nothing_is_tuned_while_a_graph_is_captured(monkeypatch):
    tuned = []
    monkeypatch.setattr(on_miss, "_tune", lambda key, device: tuned.append(key) or "")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    on_miss.settle(key_of(PROBLEM), torch.device("cuda"), lambda: None)
    assert tuned == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    on_miss.settle(key_of(PROBLEM), torch.device("cuda"), lambda: None)
    assert tuned == [key_of(PROBLEM)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune on")
def test_a_miss_without_a_gpu_says_why_and_runs_the_heuristics_config():
    warns = pytest.warns(UserWarning, match="runs untuned: no kernel can be timed on cpu")
    with interpret(), mode("tune-on-miss"), warns:
        plan = select(PROBLEM, CPU, may_tune=True)
    assert plan.config == HEURISTIC


RANK = """
import os, sys, warnings
import torch, torch.distributed as dist
from datetime import timedelta
from holdfast.autotune import mode, on_miss
from holdfast.autotune.select import select
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.problem import Problem
rank, folder = int(sys.argv[1]), sys.argv[2]
os.environ["HOLDFAST_CACHE"] = f"{folder}/{rank}"
warnings.simplefilter("ignore")
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
cpu = torch.device("cpu")
shared = Problem("lstm", torch.bfloat16, 768, 16)
untuned = Problem("gru", torch.bfloat16, 256, 16)
order = [shared, untuned] if rank == 0 else [untuned, shared]  # no collective: any order will do
with interpret(), mode("tune-on-miss"):
    for problem in order:
        plan = select(problem, cpu, may_tune=True)
        print(problem.cell, plan.config, plan.origin, sep=" | ", flush=True)
    if rank == 1:
        # Rank 0 never meets this layer: the wait ends, and the heuristic decides.
        on_miss.agree.__defaults__ = (timedelta(seconds=0.5),)
        print("alone", select(Problem("gru", torch.bfloat16, 128, 16), cpu, may_tune=True).origin, flush=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there rank 0 would tune for a minute")
def test_all_ranks_use_what_rank_0_has(tmp_path):
    Store(tmp_path / "0").add(entry(USERS))
    Store(tmp_path / "1").add(entry(SHIPPED, us=1.0))
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=1200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    lines = [sorted(line for line in out.splitlines() if "|" in line) for out, _ in printed]
    assert lines[0] == lines[1]
    assert lines[0][1] == f"lstm | {USERS} | rank 0"
    assert lines[0][0].endswith("| heuristic")
    assert "alone heuristic" in printed[1][0]


def test_importing_autotune_costs_nothing():
    heavy = "{'triton', 'filelock', 'platformdirs', 'pandas'} & set(sys.modules)"
    code = f"import sys, holdfast; holdfast.autotune.mode('use'); print({heavy})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1200)
    assert printed.stdout.strip() == "set()"
    assert Path(holdfast.autotune.__file__).name == "__init__.py"


def test_the_folders_readme_has_every_file():
    folder = Path(holdfast.autotune.__file__).parent
    named = re.findall(r"\| `(\w+\.py)` \|", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(path.name for path in folder.glob("*.py"))
