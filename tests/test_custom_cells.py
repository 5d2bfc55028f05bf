"""The cell of cells/own_cell.md, from its file to the module, the kernels and every command that takes --load."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import holdfast
from holdfast.autotune.compile_many import Request, compile_many
from holdfast.autotune.pin import pinned
from holdfast.autotune.processes import Compilers, modules_of_own_cells
from holdfast.bench.check import run as check
from holdfast.bench.cli import app
from holdfast.bench.method.results import read
from holdfast.cells.eager.reference import REFERENCES
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.problem import Problem
from holdfast.kernels.tolerance import compare_all

PAGE = (Path(__file__).parents[1] / "cells" / "own_cell.md").read_text(encoding="utf-8")
(SOURCE,) = re.findall(r"```python\n(# my_cells\.py\n.*?)```", PAGE, re.DOTALL)

CONFIGS = {
    "single_cta": Config("single_cta", 16, 32, 32),
    "dataflow": Config("cooperative", 16, 16, 32, exchange="dataflow"),
    "barrier": Config("cooperative", 16, 16, 32, exchange="barrier"),
}
CHANGES = {
    "gradients_of_another_gate": ("dn = d[0] * f", "dn = d[0] * 1.01 * f"),
    "one_gradient": ('"split_gradient": True', '"split_gradient": False'),
    "two_results": ("(d[0] * (1.0 - f),), ()", "(d[0] * (1.0 - f),)"),
    "typo": ("f = sigmoid(", "f = sigmoidd("),
}


@pytest.fixture(autouse=True)
def forget(monkeypatch, tmp_path):
    """What a test adds to the registries, to sys.path and to the imported modules is gone after it."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(CELLS)

    def forget():
        for name in set(CELLS) - known:
            del CELLS[name], REFERENCES[name]
            # The catalogue has one of the page's name: it is found anew where it is asked for.
            sys.modules.pop(f"holdfast.cells.catalogue.{name}", None)
        for name, module in [*sys.modules.items()]:
            if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[name]

    yield forget
    forget()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my_cells.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def cell(file, monkeypatch) -> str:
    """The page's cell, imported as a user imports it."""
    monkeypatch.syspath_prepend(file.parent)
    import_module("my_cells")
    return "mgu"


@pytest.fixture
def products_in_float32():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def invoke(*arguments: object):
    environment = {"COLUMNS": "300", "TERM": "dumb"}
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="holdfast", env=environment)


def test_the_example_is_short():
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 32


def results(module, x, weights, **arguments):
    """Outputs, and the gradients of everything."""
    x = x.clone().requires_grad_()
    y, h = module(x, **arguments)
    sources = [x, *module.parameters()]
    return [y, h, *torch.autograd.grad([y, h], sources, [w.to(y.dtype) for w in weights])]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_kernels_equal_the_reference_in_every_regime(cell, config, ragged, device, products_in_float32):
    T, B, H = 5, 3, 20
    module = holdfast.Recurrent(cell, 5, H, 2, bidirectional=True).to(device)
    x, weights = torch.randn(T, B, 5, device=device), [torch.randn(T, B, 2 * H), torch.randn(4, B, H)]
    weights = [w.to(device) for w in weights]
    arguments = {"lengths": [3, T, 0], "resets": torch.rand(T, B, device=device) < 0.3} if ragged else {}
    with holdfast.backend("triton"), pinned(config):  # a kernel or an error
        found = results(module, x, weights, **arguments)
    with holdfast.backend("eager"):
        plain = results(module, x, weights, **arguments)
        exact = results(module.double(), x.double(), weights, **arguments)
    # Three TF32 products keep 22 bits.
    for index, errors in enumerate(compare_all(found, plain, exact, torch.float32, 2.0**-22)):
        assert errors.ok, f"{index}: {errors}"


def test_the_module_learns(cell, device):
    """Four steps of Adam on one batch, through the kernels."""
    torch.manual_seed(0)
    module = holdfast.Recurrent(cell, 4, 16).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    x, goal = torch.randn(4, 3, 4, device=device), torch.rand(4, 3, 16, device=device)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        with holdfast.backend("triton"):
            loss = (module(x)[0] - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_gates_have_the_readme_s_names(cell):
    _, _, (gates,) = holdfast.Recurrent(cell, 4, 8)(torch.randn(6, 3, 4), return_gates=True)
    assert list(gates) == ["f", "n", "h"]


def test_check(file):
    result = invoke("check", "--load", file, "--quick", "--interpret", "--seed", 3)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if line.split()[:1] == ["mgu"]]
    assert {row[1] for row in rows} == {"single_cta", "dataflow", "barrier"}
    assert {row[3] for row in rows} == {"float32", "bfloat16", "float16"}
    assert {row[-1] for row in rows} == {"ok"}
    assert " lstm " not in result.output


def test_the_full_check_has_features_too(cell, monkeypatch):
    """And sees a wrong gradient in them alone."""
    monkeypatch.setattr(check, "REGIMES", ("single_cta",))
    monkeypatch.setattr(check, "DRAWS", 3)
    monkeypatch.setattr(check, "cases", lambda *_: [])
    table = check.run_checks(interpret=True, cells=[cell], progress=False, seed=11)
    assert list(table["phase"]) == ["forward", "backward"] * check.DRAWS
    assert table["ok"].all()
    shapes = " ".join(table["shape"])
    assert any(word in shapes for word in ("lengths", "resets", "dropout", "zoneout"))
    CELLS[cell] = replace(CELLS[cell], split_gradient=False)
    again = check.run_checks(interpret=True, cells=[cell], progress=False, seed=11)
    assert again[again["phase"] == "forward"]["ok"].all()
    assert not again[again["phase"] == "backward"]["ok"].any()


def test_check_of_a_built_in_cell_alone(monkeypatch):
    monkeypatch.setattr(check, "REGIMES", ("single_cta",))
    monkeypatch.setattr(check, "DTYPES", (torch.float32,))
    result = invoke("check", "--cell", "rnn_tanh", "--quick", "--interpret")
    assert result.exit_code == 0, result.output
    assert " rnn_tanh " in result.output
    assert " gru " not in result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gradients_of_another_gate", "kernels differ from the cell's reference by more than is allowed"),
        ("one_gradient", "kernels differ from the cell's reference by more than is allowed"),
        ("two_results", "not enough values to unpack (expected 4, got 3)"),
        ("typo", "line 11: NameError: name 'sigmoidd' is not defined"),
    ],
)
def test_check_finds_a_cell_that_is_wrong(change, said, tmp_path, monkeypatch):
    right, wrong = CHANGES[change]
    assert SOURCE.count(right) == 1
    file = tmp_path / f"{change}.py"
    file.write_text(SOURCE.replace(right, wrong))
    monkeypatch.setattr(check, "REGIMES", ("single_cta",))
    monkeypatch.setattr(check, "DTYPES", (torch.float32,))
    result = invoke("check", "--load", file, "--quick", "--interpret")
    assert result.exit_code == 2
    assert said in result.output
    assert "kernels/cell_math.py" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "command", [["check"], ["explain"], ["tune", "--cell", "mgu"], ["bench", "smoke", "--cell", "mgu"]]
)
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nothing.py", "import torch\n", "defines no new cell; it should call holdfast.define_cell"),
        ("wrong.py", "x = 1\nimport no_such_module\n", "line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("ends.py", "raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        ("bench.txt", "", "--load should name a Python file that is there, got "),
        ("json.py", "", "Python knows another module 'json' already; give the file another name"),
    ],
)
def test_files_that_are_refused(command, name, text, said, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    result = invoke(*command, "--load", path)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_not_there(tmp_path):
    result = invoke("check", "--load", tmp_path / "none.py")
    assert result.exit_code == 2
    assert "--load should name a Python file that is there" in result.output


@pytest.mark.parametrize("command", [["check"], ["explain"], ["tune"], ["bench", "grid"]])
def test_an_unknown_cell_ends_with_those_that_are_known(command, file):
    result = invoke(*command, "--load", file, "--cell", "mguu")
    assert result.exit_code == 2
    assert "cell should be one of 'rnn_tanh', 'rnn_relu', 'slstm', 'mgu', 'gru'" in result.output
    assert "got 'mguu'" in result.output


def test_a_cell_that_no_kernel_takes(tmp_path):
    file = tmp_path / "wide.py"
    file.write_text(SOURCE.replace('"gates": 2', '"gates": 5').replace(".chunk(2, -1)", ".chunk(5, -1)[:2]"))
    result = invoke("check", "--load", file)
    assert result.exit_code == 2
    assert "the kernels take at most 4 gates and mgu has 5: it runs in plain steps" in result.output


def test_a_suite_wants_the_cell_s_name(file):
    result = invoke("bench", "smoke", "--load", file)
    assert result.exit_code == 2
    assert "Name one of the file's cells with --cell." in result.output
    assert "No such option" in invoke("bench", "home", "--cell", "mgu").output


def test_explain(file):
    result = invoke("explain", "--load", file, "--cell", "mgu", "--hidden", 512)
    assert result.exit_code == 0, result.output
    assert "mgu bfloat16 hidden_size=512 batch=16, one direction" in result.output
    assert "regime: cooperative" in result.output


def test_a_rehearsal_of_tuning(file, tmp_path):
    """Compiled and interpreted in processes of their own, which know the cell."""
    out = tmp_path / "out"
    options = ("--hidden", 20, "--batch", 3, "--phase", "forward", "--candidates", 1, "--budget", 200, "--out", out)
    result = invoke("tune", "--load", file, "--cell", "mgu", "--rehearse", *options)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "tune.csv")
    assert set(table["cell"]) == {"mgu"}
    assert set(table["status"]) == {"right"}
    assert (table["registers"] > 0).all()


def test_results_of_a_cell_are_reported_where_it_is_not_loaded(file, tmp_path, forget):
    out = tmp_path / "out"
    result = invoke("bench", "smoke", "--load", file, "--cell", "mgu", "--quick", "--seconds", 0.01, "--out", out)
    assert result.exit_code == 0, result.output
    assert "plain loop" in result.output
    forget()
    result = invoke("bench", "report", out)
    assert result.exit_code == 0, result.output
    assert "mgu" in (out / "results.md").read_text()


@pytest.mark.parametrize("suite", ["smoke", pytest.param("grid", marks=pytest.mark.thorough)])
def test_a_rehearsal_of_the_benchmark(suite, file, tmp_path):
    out = tmp_path / "out"
    result = invoke("bench", suite, "--load", file, "--cell", "mgu", "--rehearse", "--out", out)
    assert result.exit_code == 0, result.output
    rows = read(out)
    assert set(rows["cell"]) == {"mgu"}
    assert set(rows["provider"]) == {"holdfast", "plain loop"}
    assert set(rows["status"]) == {"rehearsed"}
    ours = rows[rows["provider"] == "holdfast"]
    assert set(ours["regime"]) <= {"single_cta", "cooperative"}
    assert set(ours["phase"]) == {"forward", "training"}


def test_functions_of_one_name_in_two_files_are_two_kernels(tmp_path, monkeypatch):
    """Two cells whose files call their functions alike: each is compiled."""
    monkeypatch.syspath_prepend(tmp_path)
    slower = SOURCE.replace('"mgu"', '"slower"').replace("f = sigmoid(", "f = 0.5 * sigmoid(")
    for name, text in (("first", SOURCE), ("second", slower)):
        (tmp_path / f"{name}.py").write_text(text)
        import_module(name)
    assert modules_of_own_cells() == ("first", "second")
    problems = [Problem(cell, torch.float32, 16, 1) for cell in ("mgu", "slower")]
    requests = [Request(problem, CONFIGS["single_cta"], "sm_90") for problem in problems]
    compiled = []
    with Compilers(1) as compilers:
        outcomes = compile_many(requests, lambda done, total: compiled.append(total), compilers=compilers)
    assert not [outcome.error for outcome in outcomes.values() if outcome.error]
    assert compiled == [2, 2]
