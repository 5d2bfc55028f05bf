"""`holdfast bench`: help, refusals, exit codes, and suites from end to end on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from holdfast.bench.cli import app
from holdfast.bench.method.case import Case
from holdfast.bench.method.results import read
from holdfast.bench.suites import features, flashrnn, grid, home, session
from holdfast.bench.suites.catalogue import ON_A_CPU, ON_A_GPU, SUITES
from holdfast.bench.suites.entries import Options, rehearsal
from holdfast.bench.suites.prewarm import kernels_alike, run_once
from holdfast.bench.suites.session import Session
from holdfast.kernels.interpreter import interpret

ROOT = Path(__file__).parents[1]
COMMANDS = (*SUITES, "auto", "tasks", "real-models", "recipes", "report", "compare")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments], prog_name="holdfast", env={"COLUMNS": "200", "TERM": "dumb"})


def test_help_lists_every_suite():
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(f" {command} " in result.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example_that_is_right(command):
    result = invoke(command, "--help")
    listed, _, example = result.output.partition("Example: ")
    assert example.startswith(f"holdfast bench {command}")
    assert all(word in listed for word in example.split() if word.startswith("--"))


@without_gpu
@pytest.mark.parametrize("suite", [suite.name for suite in SUITES.values() if suite.needs_gpu])
def test_a_suite_for_a_gpu_is_refused_without_one(suite, tmp_path):
    result = invoke(suite, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "needs a GPU" in result.output
    assert "--rehearse" in result.output
    assert not (tmp_path / "out" / "results.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", "--out", "/dev/null/here"], "Name another folder with --out."),
        (["report", "{tmp}"], "holds no results.csv"),
        (["compare", "{tmp}", "{tmp}"], "holds no results.csv"),
        (["smoke", "--seconds", "0"], "--seconds"),
        (["nonsense"], "No such command 'nonsense'"),
        (["tasks", "--only", "nonsense", "--out", "{tmp}"], "Name tasks with --only"),
    ],
)
def test_bad_arguments_end_with_what_to_do(arguments, message, tmp_path):
    result = invoke(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@without_gpu
def test_smoke_from_end_to_end(tmp_path):
    """Twice into folders of their own, compared; providers by name."""
    for name in ("a", "b"):
        result = invoke("smoke", "--seconds", "0.003", "--providers", "holdfast,torch", "--out", str(tmp_path / name))
        assert result.exit_code == 0, result.output
    table = read(tmp_path / "a")
    timed = table[table["p50_us"].notna()]
    assert set(timed["provider"]) == {"holdfast", "torch.nn"}
    assert (timed["status"] == "ok").all()
    assert (timed["error"] <= timed["allowed"]).all()
    assert (timed.groupby(["provider", "phase", "cell", "H"]).size() == 3).all()
    assert "heuristic over tuned best" in result.output
    assert {"results.csv", "results.md", "results.tex", "provenance.json", "smoke.png", "smoke.pdf"} <= set(
        os.listdir(tmp_path / "a")
    )
    result = invoke("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--all")
    assert result.exit_code == 0, result.output
    assert f"of {len(timed) // 3} measurements" in result.output


@without_gpu
def test_a_wrong_kernel_fails_the_run(tmp_path, monkeypatch):
    class Wrong(session.Judge):
        def __call__(self, outputs, dtype, *, factor):
            return super().__call__(outputs, dtype, factor=-1.0)

    monkeypatch.setattr(session, "Judge", Wrong)
    result = invoke("smoke", "--providers", "holdfast", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "HOLDFAST_BACKEND=eager" in result.output
    table = read(tmp_path)
    assert set(table["status"]) == {"wrong"}
    assert table["p50_us"].isna().all()


@without_gpu
@pytest.mark.parametrize(
    "suite", ["home", "floors", "memory", "torchrl", pytest.param("flashrnn", marks=pytest.mark.thorough)]
)
def test_a_rehearsal_checks_and_times_nothing(suite, tmp_path):
    result = invoke(suite, "--rehearse", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    table = read(tmp_path)
    assert set(table["status"]) <= {"rehearsed", "unavailable", "computed"}
    assert table["p50_us"].isna().all()
    if suite not in ("floors", "memory"):
        ours = table[(table["provider"] == "holdfast") & (table["status"] == "rehearsed")]
        regimes = {"home": {"cooperative"}, "torchrl": {"single_cta"}, "flashrnn": {"single_cta", "cooperative"}}
        assert set(ours["regime"]) == regimes[suite]
        assert (ours["error"] <= ours["allowed"]).all()


def test_suites_begin_with_the_shape_of_the_published_figures():
    for entries in (home.entries(False), grid.entries(False), flashrnn.entries(False)):
        assert entries[0].case.hidden_size == 768
        assert entries[0].case.batch_size == 16
        assert len({entry.case for entry in entries}) == len(entries)
    assert all(1 <= entry.case.batch_size <= 256 and entry.case.hidden_size <= 2048 for entry in grid.entries(False))
    assert {entry.case.hidden_size * entry.case.heads for entry in flashrnn.entries(False)} == {768}


def test_home_is_where_cudnn_has_its_persistent_kernel():
    from holdfast.autotune.cudnn import cudnn_algorithm

    for entry in home.entries(False):
        for backward in (False, True):
            found = cudnn_algorithm(entry.case.stack, backward=backward, capability=(9, 0), num_sms=132, cudnn=91300)
            assert found == "persist_static"


def test_rehearsals_keep_the_kind_of_a_case():
    found = rehearsal(features.entries(Case("lstm", torch.bfloat16, 512, 32, 512)))
    assert [(e.case.sequences, e.case.directions, e.case.layers) for e in found] == [
        ("ragged", 1, 1),
        ("resets", 1, 1),
        ("dense", 2, 1),
        ("dense", 1, 2),
    ]
    assert all(entry.case.batch_size == 3 for entry in found)


def test_every_suite_has_its_place_on_a_gpu():
    assert set(ON_A_GPU) == set(SUITES)
    assert set(ON_A_CPU) == {name for name, suite in SUITES.items() if not suite.needs_gpu} - {"floors"}


def test_a_warm_up_run_computes_both_passes():
    with interpret() as executor:
        run_once(Case("gru", torch.float16, 21, 3, 2), torch.device("cpu"))
    assert executor.launches == 3  # forward; forward and backward


def test_cases_of_one_kernel_are_compiled_once():
    case = Case("gru", torch.bfloat16, 768, 64, 1024)
    alike = {
        kernels_alike(replace(case, batch_size=batch, length=length))
        for batch in (49, 64, 256)
        for length in (99, 1024)
    }
    assert alike == {replace(case, length=32)}
    assert kernels_alike(replace(case, batch_size=7)).batch_size == 16


def test_the_suite_on_the_host_measures_the_cpu(tmp_path):
    assert Session("host", Options(tmp_path), on_cpu=True).device.type == "cpu"


def test_every_entry_has_its_baseline():
    chosen = [*home.entries(False), *grid.entries(False), *features.entries(Case("gru", torch.float32, 8, 2, 9))]
    assert all(entry.baseline in [provider.name for provider in entry.providers] for entry in chosen)


@without_gpu
@pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux")
def test_the_script_for_a_gpu_does_with_what_a_lent_machine_has(tmp_path):
    """It finds every test that is marked gpu, without pip and the plugins and libraries that may be missing, and packs
    what it has into eight files at the most."""
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for name in ("greenlet", "pip", "platformdirs", "pytest_timeout", "scipy", "sklearn", "statsmodels"):
        (lacking / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n")
    environment = os.environ | {
        "OUT": str(tmp_path / "out"),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(lacking),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "ONLY": "^(info|training|bench_host|memcheck)$",
    }
    script = [str(ROOT / "bench" / "gpu_run.sh"), "--rehearse"]
    result = subprocess.run(["bash", *script], env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    files = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert len(files) <= 8
    assert {"stages.csv", "results.csv", "results.md", "provenance.json", "logs.tar.gz"} <= set(files)
    stages = (tmp_path / "out" / "stages.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in stages] == ["stage", "info", "training", "bench_host", "memcheck"]
    assert all(line.endswith(",0") for line in stages[1:4])
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as logs:
        log = logs.extractfile("logs/training.log")
        assert log is not None
        found = log.read().decode()
    marked = [path.name for path in Path(__file__).parent.glob("test_*.py") if "mark.gpu\n" in path.read_text()]
    assert marked
    assert all(f"tests/{name}::" in found for name in marked)


@without_gpu
@pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux")
def test_the_script_for_a_gpu_is_refused_without_one(tmp_path):
    """Every test that is marked gpu would be skipped, and the run look green."""
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "ONLY": "^info$"}
    script = str(ROOT / "bench" / "gpu_run.sh")
    result = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 2
    assert "finds no GPU" in result.stderr
    assert "--rehearse" in result.stderr
    assert not (tmp_path / "out").exists()
