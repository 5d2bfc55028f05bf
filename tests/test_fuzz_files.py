"""Files and command lines that hypothesis makes up or damages: an answer or a message, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from holdfast.autotune.constants import load_constants
from holdfast.autotune.files import replace_file
from holdfast.autotune.identity import fingerprint, key_of
from holdfast.autotune.store import Entry, EntryError, Rejected, Timing, from_json, sealed, to_json
from holdfast.autotune.tried import SCHEMA as TRIED
from holdfast.autotune.tried import _read
from holdfast.bench.cli import app
from holdfast.bench.method.results import COLUMNS, FILE, read
from holdfast.bench.output.compare import compare, differences
from holdfast.bench.tuning.problems import ListError, read_list
from holdfast.kernels.config import Config
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100

CASES = int(os.environ.get("FUZZ_CASES", 30))
fuzzed = settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))

CONFIG = Config("cooperative", 16, 16, 256)
PROBLEM = Problem("lstm", torch.bfloat16, 768, 16)
KEY, HERE = key_of(PROBLEM), fingerprint(PROBLEM, H100)

numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(10**30), 10**400, 0, -1])
texts = st.text(max_size=12) | st.sampled_from(
    ["lstm", "../x", "forward", "float32", "inf", "nan", "{}", "\0", "é" * 300]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def whole_entry() -> dict:
    timing = Timing(CONFIG, "nothing", "warm", False, 9.0, 10.0, 11.0, 10, 512, 16, 168, 100_000, "2026-11-21")
    made = json.loads(to_json(Entry(KEY, HERE, CONFIG, (timing,), (Rejected(CONFIG, "save", "why"),))))
    return {name: value for name, value in made.items() if name not in ("schema", "digest")}


def places(value, path=()):
    """Every place in nested lists and dicts."""
    yield path
    for name in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[name], (*path, name))


@st.composite
def damaged(draw, made):
    """Nested content with a value, an absent field or a new one somewhere."""
    content = json.loads(json.dumps(made))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from([p for p in places(content) if p]))
        within = content
        for step in path[:-1]:
            within = within[step]
        what = draw(st.sampled_from(["change", "change", "remove", "add"]))
        if what == "remove":
            del within[path[-1]]
        elif what == "add" and isinstance(within, dict):
            within[draw(texts)] = draw(values)
        else:
            within[path[-1]] = draw(values)
    return content


def text_of(content) -> str:
    """Sealed, as if whoever damaged it knew how."""
    return sealed(content, 2)


@fuzzed
@given(damaged(whole_entry()))
def test_an_entry_is_read_whole_or_refused(content):
    try:
        found = from_json(text_of(content), "here")
    except EntryError as error:
        assert str(error).startswith("here: ")  # noqa: PT017
        return
    assert found.key.name
    assert found.winner("nothing") is not None
    assert from_json(to_json(found), "again") == found


@fuzzed
@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")) | values.map(json.dumps))
def test_any_text_is_no_entry(text):
    with pytest.raises(EntryError, match=r"^here: "):
        from_json(text, "here")


def tried_content() -> dict:
    row = {"config": CONFIG.asdict(), "keep": "save", "kind": ["bias"], "why": "", "when": "2026-11-21"}
    return {"key": KEY.asdict(), "fingerprint": HERE.asdict(), "tried": [row]}


@fuzzed
@given(damaged(tried_content()))
def test_what_first_uses_found_is_read_whole_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tried") / "x.json"
    replace_file(path, sealed(content, TRIED))
    try:
        rows = _read(path, KEY, HERE)
    except EntryError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert all(isinstance(row.why, str) for row in rows)


@fuzzed
@given(damaged({"schema": 2, "gpu": H100.name, "measured": {"clock_mhz": {"value": 1980.0, "source": "a run"}}}))
def test_measured_constants_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("constants") / "constants.json"
    path.write_text(json.dumps(content))
    try:
        load_constants(path, H100)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017


LIST = "cell,hidden_size,batch,dtype,phase,features\nlstm,768,16,bf16,both,lengths\ngru,64,1,fp32,forward,\n"


@fuzzed
@given(st.data())
def test_a_list_of_problems_is_read_or_names_what_is_wrong(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("list") / "list.csv"
    path.write_bytes(changed(data, LIST).encode("utf-8", "surrogateescape"))
    try:
        assert all(wanted.problem.hidden_size > 0 for wanted in read_list(path))
    except ListError as error:
        assert str(path) in str(error)  # noqa: PT017


def changed(data, text: str) -> str:
    """Some of a CSV's fields are others."""
    lines = [line.split(",") for line in text.splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines))
        field = data.draw(st.integers(0, len(line) - 1))
        line[field] = data.draw(
            texts | st.sampled_from(['"', "", "9" * 5000, "-1", "1e400", "٣", "lstm(", "lstm(a,b)"])
        )
    return "\n".join(",".join(line) for line in lines)


ROW = {name: "" for name in COLUMNS} | {"suite": "grid", "provider": "a", "p50_us": "1.5", "H": "64", "status": "ok"}
RESULTS = ",".join(COLUMNS) + "\n" + ",".join(ROW.values()) + "\n"


@fuzzed
@given(st.data())
def test_results_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("results")
    (folder / FILE).write_bytes(changed(data, RESULTS).encode("utf-8", "surrogateescape"))
    (folder / "provenance.json").write_text(data.draw(texts | values.map(json.dumps)))
    try:
        read(folder)
        compare(folder, folder)
        differences(folder, folder)
    except ValueError as error:
        assert str(folder) in str(error)  # noqa: PT017


WORDS = ["-1", "--", "-", "1e9", "lstm(relu,tanh)", "lstm(a,b)", "h100", "/"]
words = texts | numbers.map(str) | st.sampled_from(WORDS)
COMMANDS = {
    "explain": ["--cell", "--hidden", "--batch", "--dtype", "--length", "--bidirectional", "--load"],
    "tune": ["--cell", "--hidden", "--list", "--list-file", "--import", "--gpu", "--budget", "--from-model", "--phase"],
    "bench compare": ["--all", "a", "b"],
    "bench report": ["a"],
    "atlas": ["--gpu", "--batch"],
    "info": ["--x"],
    "nothing": ["--x"],
}
SANE = {"--cell": "lstm", "--hidden": "64", "--batch": "16", "--dtype": "bf16", "--length": "9", "--gpu": "h100"}


@st.composite
def command_lines(draw):
    name = draw(st.sampled_from(list(COMMANDS)))
    line = name.split()
    for option in draw(st.lists(st.sampled_from(COMMANDS[name]), min_size=1, max_size=4)):
        line.append(option)
        line += [SANE.get(option, "x") if draw(st.booleans()) else draw(words)] if draw(st.integers(0, 3)) else []
    # Without a GPU that it does not know it computes all tables: ten seconds.
    return [*line, "--gpu", "none"] if name == "atlas" else line


@settings(fuzzed, max_examples=max(12, CASES // 3))
@given(command_lines())
def test_a_command_ends_with_an_answer_or_a_message(tmp_path_factory, line):
    folder = tmp_path_factory.mktemp("line")
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(app, line, env={"HOLDFAST_CACHE": str(folder / "cache")})
    finally:
        os.chdir(before)
    assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    assert result.exit_code == 0 or result.output.strip()
