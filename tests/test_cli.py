"""The command line: help that shows how, errors that say what to do next."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from typer.testing import CliRunner

from holdfast.bench.check import run as check
from holdfast.bench.cli import app

COMMANDS = ("demo", "check", "compile-report", "info", "explain")


def invoke(*arguments: str):
    # A wide terminal: what is looked for must not be broken over two lines.
    return CliRunner().invoke(app, arguments, prog_name="holdfast", env={"COLUMNS": "200", "TERM": "dumb"})


def test_help_lists_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(f" {command} " in result.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"holdfast {command}" in result.output.partition("Example: ")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_name_options_that_exist(command):
    output = invoke(command, "--help").output
    listed, _, example = output.partition("Example: ")
    options = [word for word in example.split() if word.startswith("--")]
    assert all(option in listed for option in options)


def test_version():
    assert invoke("--version").output == f"holdfast {version('holdfast')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["explain", "--hidden", "0"], "--hidden"),
        (["explain", "--cell", "mingru"], "'lstm'"),
        (["explain", "--dtype", "int8"], "'bf16'"),
        (["demo", "--minutes", "-1"], "--minutes"),
        (["demo", "--out", "/dev/null/here"], "Name another folder with --out."),
        (["compile-report", "--out", "/dev/null/here"], "Name another folder with --out."),
        (["compile-report", "--target", "sm_1", "--out", "{tmp}"], "Choose from sm_80"),
    ],
)
def test_bad_arguments_end_with_what_to_do(arguments, message, tmp_path):
    result = invoke(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_info_names_what_it_found():
    result = invoke("info")
    assert result.exit_code == 0
    assert all(word in result.output for word in ("GPU", "torch", "Triton", "Python", 'holdfast.backend is "auto"'))
    assert "LSTM(128, 768)" in result.output


@pytest.mark.parametrize("extra", [[], ["--bidirectional"]])
def test_explain_says_what_an_h100_would_choose(extra):
    result = invoke("explain", "--cell", "lstm", "--hidden", "768", "--batch", "16", "--dtype", "bf16", *extra)
    assert result.exit_code == 0
    assert "lstm bfloat16 hidden_size=768 batch=16" in result.output
    assert "regime: " in result.output


def test_explain_gives_the_reason_where_no_kernel_fits():
    result = invoke("explain", "--hidden", "100000")
    assert result.exit_code == 0
    assert "regime: eager" in result.output
    assert "reason: " in result.output


@pytest.mark.parametrize("right", [True, False])
def test_check_fails_where_a_kernel_is_wrong(right, monkeypatch):
    """One case, and a table that says it is wrong: a script can rely on the exit code."""
    case = next(c for c in check.cases(quick=True) if c.cell == "gru")
    true_checks = check.run_checks

    def one_case(**options):
        table = true_checks(only=[case], **options)
        return table.assign(ok=right)

    monkeypatch.setattr(check, "run_checks", one_case)
    result = invoke("check", "--quick", "--interpret")
    assert result.exit_code == (0 if right else 2)
    assert ("HOLDFAST_BACKEND=eager" in result.output) is not right


def test_check_compiled_runs_what_ptxas_would_get(monkeypatch):
    case = check.Case("rnn_tanh", "cooperative/dataflow", torch.bfloat16, 20, 3, 2)
    true_checks = check.run_checks
    monkeypatch.setattr(check, "run_checks", lambda **options: true_checks(only=[case], **options))
    result = invoke("check", "--compiled", "--target", "sm_80", "--quick")
    assert result.exit_code == 0, result.output
    assert "compiled for sm_80" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--compiled", "--interpret"), "two ways"),
        (("--target", "sm_90"), "--compiled"),
        (("--compiled", "--target", "gfx942"), "sm_80, sm_90"),
    ],
)
def test_check_names_what_does_not_go_together(options, says):
    result = invoke("check", *options)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_help_loads_neither_pandas_nor_triton():
    """Help must not wait for libraries that only a command needs."""
    code = "import sys, holdfast.bench.cli; print(sorted({'pandas', 'triton', 'matplotlib'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1200)
    assert printed.stdout.strip() == "[]"
