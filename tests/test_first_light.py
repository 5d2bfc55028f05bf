"""The first minutes on a GPU, rehearsed without one."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.runtime.cache import triton_key

from holdfast.bench.first_light.polls import polls_of
from holdfast.bench.first_light.steps import STEPS
from holdfast.bench.first_light.warm import cached_in, compile_all, key_of
from holdfast.bench.method import fake_driver
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H200


def first_light(out, *options):
    command = [sys.executable, "-m", "holdfast.bench.first_light", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_rehearsal_prints_rows_and_keeps_them(tmp_path):
    steps = ["versions", "neighbours"]
    run = first_light(tmp_path, "--rehearse", "--only", ",".join(steps))
    assert run.returncode == 0, run.stdout + run.stderr
    for name in steps:
        with (tmp_path / f"{name}.csv").open() as file:
            assert list(csv.DictReader(file)), name
    assert "us_per_step" not in run.stdout, "a rehearsal times nothing"


@pytest.mark.slow
def test_every_step_is_rehearsed(tmp_path):
    run = first_light(tmp_path, "--rehearse", "--minutes", "30")
    assert run.returncode == 0, run.stdout + run.stderr
    assert {path.stem for path in tmp_path.glob("*.csv")} == set(STEPS)
    assert "WRONG" not in run.stdout


def test_a_step_that_takes_too_long_costs_itself_alone(tmp_path):
    run = first_light(tmp_path, "--rehearse", "--only", "versions", "--minutes", "0.02")
    assert run.returncode == 1
    assert "ended after 1 s" in run.stdout


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    run = first_light(tmp_path)
    assert run.returncode == 1
    assert "--rehearse" in run.stderr


def test_polls_are_counted_for_every_step_and_program():
    config = Config("cooperative", 16, 16, 32, num_warps=4)
    with interpret(0):
        polls = polls_of(Problem("lstm", torch.bfloat16, 40, 3), config, torch.device("cpu"), 5)
    assert polls.shape == (5, 3)
    assert polls.min() >= 1


def test_a_compilers_key_is_that_of_its_files(tmp_path):
    assert key_of(Path(triton.__file__).parents[1]) == triton_key()
    with pytest.raises(FileNotFoundError, match="should be an unpacked wheel of Triton"):
        key_of(tmp_path)


@pytest.mark.skipif(fake_driver.missing() is not None, reason="no fake driver")
@pytest.mark.parametrize("key", [None, "another Python's"])
def test_what_is_compiled_ahead_is_found(key, tmp_path):
    """Forward and backward kernel are found again (the floor's, in no cache of the fake driver's, are in memory)."""

    def rows(folder_key):
        with cached_in(tmp_path, folder_key):
            return list(compile_all(H200, [("rnn_tanh", torch.bfloat16, 16, 16)], ["single_cta"]))

    (first,) = rows(key)
    assert first["kernels"] >= 2
    assert first["found"] == 0
    (again,) = rows(key)
    assert again["found"] == again["kernels"] >= 2
