"""tests/README.md names tests that exist, and every file of tests; `make sanitize` runs tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_what_is_named_exists(file, test):
    path = FOLDER / file
    assert path.is_file()
    if test:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_file_is_named():
    assert {path.name for path in FOLDER.glob("test_*.py")} == {file for file, _ in NAMED}


def test_no_row_is_cut_short():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(rows) > 40
    assert {row.count("|") for row in rows} == {4}


def test_what_is_run_under_compute_sanitizer_exists():
    """By name: on a machine without a GPU pytest deselects them all the same."""
    makefile = (FOLDER.parent / "Makefile").read_text(encoding="utf-8")
    (names, files) = re.search(r'-k "([\w ]+)" \\\n\s*([\w/. ]+) \|\|', makefile).groups()
    found = {
        node.name
        for file in files.split()
        for node in ast.parse((FOLDER.parent / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "device" in {argument.arg for argument in node.args.args}
    }
    for name in names.split(" or "):
        assert any(test.startswith("test_") and name in test for test in found), name
