"""Tables for people: they fit a terminal of 80 columns, with nothing cut and no name broken."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from rich.console import Console

import holdfast
from holdfast.bench.check.run import DTYPES, REGIMES, print_checks
from holdfast.bench.demo.model import CELLS as MODELS
from holdfast.bench.demo.report import results_table
from holdfast.bench.demo.run import build_models, describe_task
from holdfast.bench.demo.text import Corpus, Vocabulary
from holdfast.bench.demo.through_kernels import through_kernels
from holdfast.bench.demo.train import Point
from holdfast.bench.method.provenance import Environment
from holdfast.bench.output.plans import print_paths
from holdfast.bench.output.tables import print_environment, print_table
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.interpreter import interpret

WIDTH = 80
TEXT = "Every paragraph of a text is kept once, and some of them are held out. " * 20


class Printed:
    """What is printed on a terminal of 80 columns."""

    def __init__(self) -> None:
        self.console = Console(width=WIDTH, file=io.StringIO())

    def lines(self, *names: str) -> list[str]:
        """The lines, of which none is too long or cut, and each of `names` stands on one whole."""
        text = self.console.file.getvalue()
        lines = [line.rstrip() for line in text.splitlines()]
        assert "…" not in text
        assert max(map(len, lines)) <= WIDTH
        for name in names:
            assert any(name in line for line in lines), f"{name} is broken"
        return lines


@pytest.fixture
def printed() -> Printed:
    return Printed()


@pytest.fixture(scope="module")
def learners() -> list:
    """The demo's models with the largest figures that its table will meet."""
    vocabulary = Vocabulary(TEXT)
    curve = [Point(12345, 100.25, 99_999.9, 12.345, 12.345)]
    models = build_models(len(vocabulary), "cpu", 0)
    return [
        SimpleNamespace(name=name, model=model, curve=curve, parameters=12_345_678) for name, model in models.items()
    ]


def checks(cells, ok: bool = True) -> pd.DataFrame:
    dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    found = itertools.product(cells, REGIMES, ("forward", "backward"), [*dtypes, "tf32"])
    figures = {"error": 1.234e-07, "torch_error": 1.234e-07, "tolerance": 1.234e-07, "ok": ok}
    return pd.DataFrame(
        [dict(zip(("cell", "regime", "phase", "dtype"), keys, strict=True)) | figures for keys in found]
    )


@pytest.mark.parametrize("ok", [True, False])
def test_the_check_has_a_line_for_each_cell_regime_phase_and_dtype(ok, printed):
    table = checks(CELLS, ok)
    print_checks(table, printed.console)
    lines = printed.lines(*CELLS, *(regime.removeprefix("cooperative/") for regime in REGIMES))
    verdicts = [line for line in lines if line.endswith("ok" if ok else "WRONG")]
    assert len(verdicts) == len(table)
    assert all(line.split()[0] in CELLS for line in verdicts)


def test_the_check_folds_the_names_of_cells_with_other_activations_between_their_parts(printed):
    longest = max(CELLS, key=len)
    print_checks(checks([f"{longest}(relu,hard_sigmoid)"], ok=False), printed.console)
    printed.lines(longest, "hard_sigmoid)", "single_cta", "1.2e-07", "WRONG")


def test_the_demo_tables_its_models(learners, printed):
    table = results_table(learners)
    print_table(table, printed.console)
    lines = printed.lines(*MODELS, "12,345,678", "99999.9", "12.345")
    assert all(any(word in line for line in lines) for name in table for word in name.split())


def test_the_demo_tables_what_the_kernels_make_of_its_models(learners, printed, monkeypatch):
    monkeypatch.setattr("holdfast.bench.demo.through_kernels.STEPS", 1)
    table = through_kernels(learners, Vocabulary(TEXT).encode(TEXT))
    # The longest that these columns can hold, whatever this machine runs.
    print_table(table.assign(regime="single_cta", products="ieee"), printed.console)
    print_table(table.assign(regime="cooperative", products="tf32"), printed.console)
    lines = printed.lines(*MODELS, "cooperative", "single_cta", *table["error of the kernels"])
    assert all(any(word in line for line in lines) for name in table for word in name.split())


def test_the_demo_says_which_path_its_models_take(learners, printed):
    """On a GPU with the config, which is long; without one with the reason."""
    models = {learner.name: learner.model for learner in learners}
    corpus = Corpus(TEXT, TEXT)
    describe_task(printed.console, corpus, Vocabulary(TEXT), models, {"unigram": 4.56, "xz": 1.94})
    with interpret():
        print_paths({name: model.recurrent for name, model in models.items()}, 16, printed.console)
        wide = holdfast.Recurrent(max(CELLS, key=len), 64, 512, dtype=torch.bfloat16)
        print_paths({f"Recurrent({wide.cell}, 64, 512)": wide}, 16, printed.console)
    printed.lines(*MODELS, max(CELLS, key=len), "cooperative", "heuristic)")


def test_the_environment_of_a_large_machine(printed):
    gpus = ("NVIDIA H100 80GB HBM3 (sm_90, 132 SMs)",) * 8
    print_environment(
        Environment("3.12.10", "Linux x86_64", 256, "2.13.0+cu130", 128, "13.0", "3.7.1", gpus), printed.console
    )
    printed.lines("2.13.0+cu130", "x86_64")


def test_a_word_that_fits_no_column_loses_nothing(printed):
    """A path in a note is folded, whatever is beside it."""
    path = "/a/folder" * 20
    print_table(pd.DataFrame([{"case": "lstm fp16 H=768", "note": path, "time": 1.25}]), printed.console)
    header, _, *rows = (line for line in printed.lines("1.25") if line)
    begin, end = header.index("note"), header.index("time")
    assert "".join(row[begin:end].strip() for row in rows) == path
