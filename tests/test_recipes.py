"""The recipes and the real models: every way of a recipe agrees with the usual one, and the tables come out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from holdfast.bench.cli import app
from holdfast.bench.real_models.models import MODELS
from holdfast.bench.real_models.packages import install_command, missing
from holdfast.bench.real_models.run import compared
from holdfast.bench.recipes.recipe import Recipe
from holdfast.bench.recipes.run import NEEDS, check, recipes_of, run_recipes

torch.set_num_threads(1)

REAL_MODELS = Path(os.environ.get("HOLDFAST_REAL_MODELS", "real_models"))
"""Where the packages of `holdfast bench real-models` are installed."""


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments], prog_name="holdfast", env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if NEEDS[name] else ()) for name in NEEDS])
@pytest.mark.filterwarnings("ignore")
def test_ways_agree(name):
    for package in NEEDS[name]:
        pytest.importorskip(package)
    for recipe in recipes_of(name, quick=True):
        check(recipe)


def test_every_recipe_is_listed():
    import holdfast.bench.recipes as recipes

    files = {path.stem for path in Path(recipes.__file__).parent.glob("*.py")}
    assert files - {"__init__", "recipe", "run"} == set(NEEDS)


def test_a_way_that_computes_something_else_is_named():
    ways = {"usual": lambda: torch.zeros(2), "ours": lambda: torch.tensor([0.0, 1e-3])}
    with pytest.raises(AssertionError, match="Tagger: ours and usual differ"):
        check(Recipe("Tagger", ways))


def test_table(tmp_path):
    result = invoke("recipes", "--quick", "--only", "tagger", "--rounds", "1", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "packing" in result.output
    assert (tmp_path / "out" / "recipes.md").read_text().count("lengths=") == 2
    with pytest.raises(ValueError, match="only should name some of recurrent_ppo"):
        run_recipes(["maze"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_recurrent_ppo_is_saved_loaded_and_goes_on(tmp_path):
    pytest.importorskip("sb3_contrib")
    import holdfast
    from holdfast.bench.recipes.recurrent_ppo import Mazes, MlpLstmPolicy, agent

    model = agent(MlpLstmPolicy, B=4, H=8, T=16)
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=Mazes(4))
    assert type(loaded.policy.lstm_actor) is holdfast.LSTM
    assert all(torch.equal(p, q) for p, q in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True))
    loaded.learn(64)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(bool(missing(REAL_MODELS)), reason=f"pip install as in {install_command(REAL_MODELS)!r}")
@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_real_models(kind):
    row, _ = compared(kind(REAL_MODELS))
    assert row["converted"] == "same bits"
    assert row["kernels"] == "same reading"
    assert row["the package's own code"] in ("", "same reading")


def test_real_models_says_how_to_get_them(tmp_path):
    result = invoke("real-models", "--packages", str(tmp_path))
    assert result.exit_code == 2
    assert "lacks Resemblyzer==0.1.4" in result.output
    assert f"pip install --no-deps --target {tmp_path}" in result.output.replace("\n", " ")
