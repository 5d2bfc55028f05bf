"""The store of tuning results: nothing is lost, nothing half-written is read, and what cannot be used says why."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from holdfast.autotune.identity import batch_class, fingerprint, key_of, length_class, problem_of
from holdfast.autotune.store import Entry, EntryError, Rejected, Store, Timing, from_json, read, to_json
from holdfast.kernels.config import Config
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import A100, H100

PROBLEM = Problem("lstm", torch.bfloat16, 768, 16)
CONFIG = Config("cooperative", 16, 16, 256)


def timing(p50: float, config: Config = CONFIG, **changes) -> Timing:
    made = Timing(config, "nothing", "warm", False, 0.9 * p50, p50, 1.1 * p50, 10, 512, 16, 168, 106_000, "2026-11-21")
    return replace(made, **changes)


def entry(*timings: Timing, problem: Problem = PROBLEM, limits=H100, **fields) -> Entry:
    return Entry(key_of(problem), fingerprint(problem, limits), CONFIG, timings, **fields)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def written(store: Store, *timings: Timing) -> Path:
    return store.add(entry(*(timings or (timing(100.0),))))


def load(store: Store) -> Entry | None:
    return store.load(key_of(PROBLEM), fingerprint(PROBLEM, H100))


def test_what_is_written_is_read(store):
    rejected = Rejected(replace(CONFIG, BLOCK_B=32), "save", "spills 8 bytes")
    before = entry(timing(random.uniform(1, 1000)), timing(7.0, l2="cold"), rejected=(rejected,))
    assert read(store.add(before)) == before == load(store)


def test_the_fastest_complete_warm_timing_wins_and_a_newer_one_replaces_an_older():
    wide = replace(CONFIG, BLOCK_B=32)
    other = replace(CONFIG, BLOCK_B=64)
    found = entry(
        timing(100.0),
        timing(50.0, wide, when="2026-11-20"),
        timing(120.0, wide, when="2026-11-22"),
        timing(10.0, other, stopped=True),
        timing(10.0, other, l2="cold"),
        timing(10.0, other, keep="save"),
    )
    assert found.best("nothing").config == CONFIG
    assert found.best("save").config == other
    assert found.best("recompute") is None
    assert found.tried("nothing") == {CONFIG, wide, other}


def test_a_later_run_adds_to_an_earlier(store):
    wide = replace(CONFIG, BLOCK_B=32)
    written(store, timing(100.0))
    written(store, timing(100.0), timing(90.0, wide))
    assert [t.p50_us for t in load(store).timings] == [100.0, 90.0]


def test_another_gpu_or_problem_is_another_file(store):
    paths = {store.add(entry(timing(1.0), limits=limits)) for limits in (H100, A100, replace(H100, num_sms=66))}
    paths |= {store.add(entry(timing(1.0), problem=replace(PROBLEM, hidden_size=h))) for h in (767, 769)}
    assert len(paths) == 5
    assert len(list(store.entries())) == 5


def edit_schema(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 0'))


def edit_time(path: Path) -> None:
    content = json.loads(path.read_text())
    content["timings"][0]["p50_us"] = 1.0
    path.write_text(json.dumps(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: random.randrange(1, path.stat().st_size - 2)])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x81" * 20)


def not_an_entry(path: Path) -> None:
    path.write_text('["something", "else"]')


def foreign(path: Path) -> None:
    """Another machine's entry under this one's name."""
    path.write_text(to_json(entry(timing(1.0), limits=replace(H100, num_sms=66))))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (edit_schema, "schema 0, this version reads 2"),
        (edit_time, "edited since it was written"),
        (truncate, "cut off|not an entry"),
        (empty, "cut off"),
        (binary, "cannot be read"),
        (not_an_entry, "not an entry"),
        (foreign, "another problem or comes from another machine"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_is_set_aside(damage, why, store):
    path = written(store)
    damage(path)
    damaged = path.read_bytes()
    with pytest.raises(EntryError, match=why) as error:
        load(store)
    assert str(path) in str(error.value)
    written(store, timing(5.0))
    assert [t.p50_us for t in load(store).timings] == [5.0]
    assert path.with_suffix(".unusable").read_bytes() == damaged


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"regime": "cooperative", "BLOCK_B": 12, "BLOCK_H": 16, "BLOCK_K": 64}},
        {"config": {"regime": "cooperative", "BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 64, "SPLIT_K": 3}},
        {"config": {"regime": "magic", "BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 64}},
        {"config": {"regime": "cooperative", "BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 64, "clusters": 2}},
        {"p50_us": float("nan")},
        {"p50_us": -1.0},
        {"p80_us": 1.0, "p50_us": 2.0},
        {"repeats": 0},
        {"keep": "everything"},
        {"colour": "red"},
    ],
)
def test_values_that_no_run_could_have_written_are_refused(change):
    """With a digest that matches: an entry of another version, or of another program."""
    content = json.loads(to_json(entry(timing(100.0))))
    content["timings"][0] |= change
    del content["digest"]
    from holdfast.autotune.store import _digest

    with pytest.raises(EntryError, match="another version"):
        from_json(json.dumps(content | {"digest": _digest(content)}), "entry")


def test_sixteen_processes_at_once_lose_nothing(store):
    # Forked: sixteen imports of torch would take half a minute.
    start = time.monotonic() + 1.0
    children = []
    for index in range(16):
        child = os.fork()
        if child == 0:
            try:
                time.sleep(max(0.0, start - time.monotonic()))
                for i in range(5):
                    store.add(entry(timing(1.0 + index, repeats=1 + i)))
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 16
    found = {(t.p50_us, t.repeats) for t in load(store).timings}
    assert found == {(1.0 + index, 1 + i) for index in range(16) for i in range(5)}
    assert not list(store.root.glob("*/*.unusable"))


def test_a_writer_killed_at_any_moment_leaves_a_whole_entry(store):
    path = written(store, timing(1000.0))
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            i = 0
            while True:
                i += 1
                store.add(entry(timing(1.0 + attempt, repeats=i)))
        time.sleep(random.uniform(0.02, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = load(store)
        assert now is not None
        assert now.timings[0].p50_us == 1000.0
    written(store, timing(2.0))  # the lock of a killed writer is free, and what it left is gone
    assert not list(path.parent.glob(".*.new"))
    assert not list(path.parent.glob("*.unusable"))


def test_killed_between_the_write_and_the_replacement(store, monkeypatch):
    path = written(store, timing(1000.0))
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        store.add(entry(timing(1.0)))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(path.parent.glob(".*.new"))
    assert [t.p50_us for t in load(store).timings] == [1000.0]


def test_export_import_clear(store, tmp_path):
    written(store)
    store.add(entry(timing(3.0), problem=replace(PROBLEM, hidden_size=512)))
    broken = store.add(entry(timing(3.0), problem=replace(PROBLEM, hidden_size=256)))
    truncate(broken)
    other = Store(tmp_path / "exported")
    copied, errors = store.copy_to(other)
    assert copied == 2
    assert [str(broken) in str(error) for error in errors] == [True]
    assert store.clear() == 3
    assert load(store) is None
    other.copy_to(store)
    assert load(store) == entry(timing(100.0))


def test_classes_are_coarse_and_stand_for_their_largest_batch():
    assert {batch_class(b) for b in range(1, 17)} == {16}
    assert {batch_class(b) for b in range(65, 129)} == {128}
    assert {length_class(t) for t in (None, 32, 100, 10**6)} == {"long"}
    assert {length_class(t) for t in (1, 2, 31)} == {"short"}
    key = key_of(replace(PROBLEM, batch_size=100, features=("lengths",)), 3)
    assert key_of(problem_of(key), 3) == key
