"""`holdfast tune`, `holdfast atlas` and `holdfast explain`, as people call them on a machine without a GPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import holdfast
from holdfast.autotune import store
from holdfast.autotune.candidates import choose
from holdfast.autotune.identity import fingerprint, key_of
from holdfast.autotune.store import Entry, Store, Timing
from holdfast.bench.cli import app
from holdfast.bench.output.atlas import CELLS, KINDS, add_compiled, build_atlas, summary
from holdfast.bench.tuning.problems import ListError, Wanted, of_model, read_list
from holdfast.bench.tuning.run import share
from holdfast.kernels.config import Config
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100, L4

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
PROBLEM = Problem("lstm", torch.bfloat16, 768, 16)
LIST = Path(__file__).parents[1] / "bench" / "tune_list.csv"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    store.changed()
    return Store(tmp_path / "cache")


def invoke(*arguments: object):
    environment = {"COLUMNS": "300", "TERM": "dumb"}
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="holdfast", env=environment)


def entry(problem=PROBLEM) -> Entry:
    config = replace(choose(PROBLEM, H100), BLOCK_H=8)
    timing = Timing(config, "nothing", "warm", False, 90.0, 100.0, 110.0, 9, 512, 16, 150, 70_000, "2026-11-21")
    return Entry(key_of(problem), fingerprint(problem, H100), config, (timing,))


@needs_no_gpu
@pytest.mark.parametrize("what", [["--cell", "gru"], ["--list-file", LIST]])
def test_tuning_is_refused_without_a_gpu(what, tmp_path, cache):
    result = invoke("tune", *what, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no kernel can be timed on cuda:0: torch sees no NVIDIA GPU here" in result.output
    assert "--rehearse" in result.output
    assert not (tmp_path / "out").exists()
    assert not list(cache.entries())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hidden", 32], "Give one of --cell, --list-file and --from-model."),
        (["--cell", "gru", "--list-file", LIST], "--cell and --list-file was given"),
        (["--cell", "mguu"], "--cell: cell should be one of 'rnn_tanh'"),
        (["--list-file", "/no/such.csv"], "/no/such.csv: cannot be read as CSV"),
        (["--from-model", "torch"], "--from-model should be module:factory"),
        (["--from-model", "no_such_module:make"], "ModuleNotFoundError"),
        (["--from-model", "torch:manual_seed"], "TypeError"),
        (["--from-model", "torch:get_num_threads"], "should return a torch.nn.Module, got int"),
        (["--import", "/no/such/folder"], "/no/such/folder is no folder"),
    ],
)
def test_bad_arguments_end_with_what_to_do(arguments, said):
    result = invoke("tune", "--rehearse", *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_rehearsal_writes_tables_and_entries_that_nothing_uses(tmp_path, cache):
    problems = tmp_path / "list.csv"
    problems.write_text("cell,hidden_size,batch,phase\n# tiny\nrnn_tanh,20,3,forward\n")
    out = tmp_path / "out"
    result = invoke("tune", "--list-file", problems, "--rehearse", "--candidates", 1, "--out", out, "--budget", 1000)
    assert result.exit_code == 0, result.output
    assert "A rehearsal: nothing was timed" in result.output
    assert "heuristic over tuned best: no measurements" in result.output
    assert "none of the cost model's constants is; the others are published or assumed" in result.output
    table = pd.read_csv(out / "tune.csv")
    assert table["warm_us"].isna().all()
    assert set(table["status"]) == {"right"}
    assert set(table["gpu"]) == {H100.name}
    assert "no measurements" in (out / "tune.md").read_text()
    assert not list(cache.entries())
    for folder in (out / "entries", out):
        assert "1 entries copied" in invoke("tune", "--import", folder).output
    listed = invoke("tune", "--list").output
    assert "1 entries in" in listed
    assert "no complete timing: not used" in listed


def test_export_clear_import(tmp_path, cache):
    cache.add(entry())
    broken = cache.add(entry(replace(PROBLEM, hidden_size=512)))
    broken.write_text("{")
    result = invoke("tune", "--export", tmp_path / "exported")
    assert result.exit_code == 0
    assert f"left out: {broken}: no JSON" in result.output
    assert "1 entries copied" in result.output
    assert "2 entries removed" in invoke("tune", "--clear").output
    assert "0 entries in" in invoke("tune", "--list").output
    assert "1 entries copied" in invoke("tune", "--import", tmp_path / "exported").output
    listed = invoke("tune", "--list").output
    assert "100.0" in listed
    assert "1 problem(s): geometric mean 1.000 (goal 1.15), worst 1.000 (goal 1.5)" in listed


@needs_no_gpu
def test_explain_says_where_a_config_comes_from_or_what_differed(cache):
    arguments = ("explain", "--cell", "lstm", "--hidden", 768, "--dtype", "bf16", "--batch")
    assert "(heuristic)" in invoke(*arguments, 16).output
    cache.add(entry())
    assert f"config: {entry().heuristic} (user cache)" in invoke(*arguments, 16).output
    other = invoke(*arguments, 17).output
    assert "note: user cache: the nearest of 1 entries differs in batch (there 16, here 32)" in other
    with holdfast.autotune.mode("off"):
        assert 'note: autotune.mode is "off"' in invoke(*arguments, 16).output


def test_help_shows_how_a_script_calls_it():
    result = invoke("tune", "--help")
    assert "holdfast tune --list-file FILE --budget SECONDS --out FOLDER" in result.output
    for command in ("tune", "atlas"):
        output = invoke(command, "--help").output
        listed, _, example = output.partition("Example: ")
        assert all(word in listed for word in example.split() if word.startswith("--"))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_list_is_read_in_order_each_problem_once(tmp_path):
    path = write(
        tmp_path / "list.csv",
        "cell, hidden_size, batch, dtype, directions, phase, length, precision, features",
        "lstm, 768, 16, fp16, 1, both, long, ,",
        "# again, and others",
        "lstm, 768, 16, fp16, , both, , ,",
        "gru, 100, 7, fp32, 2, backward, short, ieee, packed lengths",
    )
    lstm = Problem("lstm", torch.float16, 768, 16)
    assert read_list(path) == [
        Wanted(lstm),
        Wanted(replace(lstm, phase="backward")),
        Wanted(Problem("gru", torch.float32, 100, 7, 2, "ieee", "backward", ("lengths", "packed")), "short"),
    ]


def test_the_list_for_a_new_gpu_can_be_read_and_has_kernels():
    found = read_list(LIST)
    assert len(found) > 20
    assert [w.problem for w in found if not isinstance(choose(w.problem, H100), Config)] == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["cell,batch", "lstm,3"], "columns hidden_size are missing"),
        (["cell,hidden_size,batch,colour", "lstm,3,3,red"], "columns colour are unknown"),
        (["cell,hidden_size,batch", "lstm,3,3", "mgu,3,3"], "problem 2: cell should be one such as"),
        (["cell,hidden_size,batch", "lstm,-3,3"], "problem 1: hidden_size should be a positive whole number, got '-3'"),
        (["cell,hidden_size,batch", "lstm,3,"], "batch should be a positive whole number, got None"),
        (["cell,hidden_size,batch,dtype", "lstm,3,3,int8"], "dtype should be one of fp32, bf16, fp16, got 'int8'"),
        (["cell,hidden_size,batch,directions", "lstm,3,3,3"], "directions should be 1 or 2"),
        (["cell,hidden_size,batch,features", "lstm,3,3,masks"], "features should be of lengths, packed"),
        (["cell,hidden_size,batch,length", "lstm,3,3,512"], "length should be one of short, long"),
    ],
)
def test_a_wrong_list_names_file_line_and_column(lines, said, tmp_path):
    path = write(tmp_path / "list.csv", *lines)
    with pytest.raises(ListError, match=re.escape(said)) as error:
        read_list(path)
    assert str(path) in str(error.value)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = holdfast.LSTM(8, 64, num_layers=2, bidirectional=True, dtype=torch.bfloat16)
        self.second = nn.GRU(128, 96, dtype=torch.bfloat16)
        self.same = nn.GRU(5, 96, dtype=torch.bfloat16)
        self.exact = nn.RNN(5, 96, dtype=torch.float64)
        self.projected = nn.LSTM(64, 64, bidirectional=True, proj_size=3, dtype=torch.bfloat16)  # as `first`
        self.head = nn.Linear(96, 2)


def test_a_models_layers_each_problem_once():
    found, left_out = of_model(Tagger(), 12, "both", "long")
    lstm = Problem("lstm", torch.bfloat16, 64, 12, directions=2)
    gru = Problem("gru", torch.bfloat16, 96, 12)
    assert [w.problem for w in found] == [lstm, replace(lstm, phase="backward"), gru, replace(gru, phase="backward")]
    assert [line.partition(":")[0] for line in left_out] == ["exact"]


def test_from_model_finds_a_factory_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_model_of_this_test.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(2, 3)\n")
    monkeypatch.chdir(tmp_path)
    result = invoke("tune", "--rehearse", "--from-model", "my_model_of_this_test:make")
    assert result.exit_code == 2
    assert "there is nothing to tune" in result.output


def test_the_budget_is_shared():
    assert share(100.0, 4) == 25.0
    assert share(-3.0, 4) == 0.0


def test_the_atlas_is_written_as_table_and_picture(tmp_path):
    result = invoke("atlas", "--gpu", "h100", "--gpu", "l4", "--gpu", "h100", "--out", tmp_path / "atlas")
    assert result.exit_code == 0, result.output
    assert "LSTM" in result.output
    table = pd.read_csv(tmp_path / "atlas" / "atlas.csv")
    assert set(table["gpu"]) == {H100.name, L4.name}
    assert (tmp_path / "atlas" / "atlas.png").read_bytes()[:4] == b"\x89PNG"
    assert "| NVIDIA L4 | LSTM |" in (tmp_path / "atlas" / "atlas.md").read_text()
    assert invoke("atlas", "--gpu", "h1000").exit_code == 2


@pytest.fixture(scope="module")
def atlas():
    return build_atlas([L4])


def test_the_atlas_agrees_with_itself(atlas):
    runs = atlas[atlas["regime"] != "eager"]
    assert runs["margin"].between(0, 1).all()
    teams = runs[runs["regime"] == "cooperative"]
    assert (teams["programs"] <= L4.num_sms).all()
    assert (atlas.loc[atlas["regime"] == "eager", "note"] != "").all()
    assert [*summary(atlas)["cell"]] == [*CELLS]
    assert set(summary(atlas).columns) == {"GPU", "cell", *KINDS}


def test_the_atlas_asks_the_compiler(atlas):
    one = atlas[(atlas["cell"] == "RNN") & (atlas["dtype"] == "bf16") & (atlas["phase"] == "forward")]
    compiled = add_compiled(one, [L4], 16, sizes=(64,))
    (row,) = compiled[compiled["compiled"].notna()].to_dict("records")
    assert row["compiled"] == "yes"
    assert row["registers"] > 0
    assert row["compiled_shared_bytes"] <= row["shared_limit"]
