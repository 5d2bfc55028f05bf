"""The README's example is run, and prints what the README says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from holdfast.bench.tables import to_markdown
from holdfast.bench.where import where_table
from holdfast.kernels.resources import H100

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the README shows the output of a machine without a GPU")
def test_the_example_prints_what_the_readme_shows():
    (code, shown), *others = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", README, re.DOTALL)
    assert not others
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown


def test_every_file_that_the_readme_shows_exists():
    for target in re.findall(r"\]\(([^):]+)\)", README):
        assert (Path(__file__).parents[1] / target).is_file(), target


def test_the_table_of_paths_is_the_heuristics():
    assert to_markdown(where_table(H100)) in README
