"""tests/README.md names tests that exist, and every file of tests."""

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
