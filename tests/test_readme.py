"""The README's example is run, and prints what the README says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from holdfast.bench.output.atlas import where_table
from holdfast.bench.output.tables import to_markdown
from holdfast.kernels.resources import H100

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


# A block of Python and the block of text after it; the file my_cells.py is test_custom_cells.py's.
SHOWN = ("python", "text")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
EXAMPLES = [(code, shown) for (kind, code), (next_kind, shown) in pairwise(BLOCKS) if (kind, next_kind) == SHOWN]


def test_every_example_is_tested():
    others = [code for kind, code in BLOCKS if kind == "python" and code not in dict(EXAMPLES)]
    assert len(EXAMPLES) == 2
    assert [code.splitlines()[0] for code in others] == ["# my_cells.py"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the README shows the output of a machine without a GPU")
@pytest.mark.parametrize(("code", "shown"), EXAMPLES, ids=["in a model", "sequences"])
def test_an_example_prints_what_the_readme_shows(code, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown


def test_every_file_that_the_readme_shows_exists():
    for target in re.findall(r"\]\(([^):]+)\)", README):
        assert (Path(__file__).parents[1] / target).is_file(), target


def test_the_table_of_paths_is_the_heuristics():
    assert to_markdown(where_table(H100)) in README
