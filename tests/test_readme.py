"""Every example in the README and in the folders' pages is run, and prints what the page says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from holdfast.bench.output.atlas import heads_table, where_table
from holdfast.bench.output.tables import to_markdown
from holdfast.kernels.resources import H100

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*/*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks_of(page: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", PAGES[page], re.DOTALL)


# A block of Python and the block of text after it.
EXAMPLES = [
    (page, code, shown)
    for page in PAGES
    for (kind, code), (next_kind, shown) in pairwise(blocks_of(page))
    if (kind, next_kind) == ("python", "text")
]


def test_every_example_is_tested():
    tested = {code for _, code, _ in EXAMPLES}
    others = [code for page in PAGES for kind, code in blocks_of(page) if kind == "python" and code not in tested]
    assert [page for page, _, _ in EXAMPLES].count("README.md") == 2
    assert [code.splitlines()[0] for code in others] == ["# my_cells.py"]  # test_custom_cells.py runs this one


@pytest.mark.skipif(torch.cuda.is_available(), reason="the pages show the output of a machine without a GPU")
@pytest.mark.parametrize(("page", "code", "shown"), EXAMPLES, ids=lambda value: value.split("\n")[0][:40])
def test_an_example_prints_what_its_page_shows(page, code, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), {})
    assert printed.getvalue() == shown


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_shows_exists(page):
    for target in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_heading_that_a_page_points_to_exists(page):
    for path, heading in re.findall(r"\]\(([^):#]*)#([^)]+)\)", PAGES[page]):
        text = PAGES[page] if not path else (ROOT / page).parent.joinpath(path).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], heading


def test_the_table_of_paths_is_the_heuristics():
    assert to_markdown(where_table(H100)) in PAGES["README.md"]
    assert to_markdown(heads_table(H100)) in PAGES["README.md"]
