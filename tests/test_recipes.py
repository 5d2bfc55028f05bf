"""The recipes and the real models: every way of a recipe agrees with the usual one, and the tables come out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from holdfast.bench.cli import app
from holdfast.bench.real_models.models import MODELS, SequenceToSequence
from holdfast.bench.real_models.packages import install_command, missing
from holdfast.bench.real_models.run import compared
from holdfast.bench.real_models.voice import mel_frames, voice
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


def test_words_of_a_batch_are_pronounced_as_alone():
    generator = np.random.default_rng(3)
    shapes = {"emb": (29, 6), "w_ih": (15, 6), "w_hh": (15, 5), "b_ih": (15,), "b_hh": (15,)}
    shapes = {f"{side}_{name}": shape for side in ("enc", "dec") for name, shape in shapes.items()}
    shapes |= {"dec_emb": (9, 6), "fc_w": (9, 5), "fc_b": (9,)}
    model = SequenceToSequence({name: generator.normal(size=shape) for name, shape in shapes.items()}).double()
    words = [torch.from_numpy(generator.integers(0, 29, n)) for n in (4, 1, 9)]
    together, spoken = model(words)
    for index, word in enumerate(words):
        logits, phonemes = model([word])
        torch.testing.assert_close(together[: len(logits), index], logits[:, 0], rtol=1e-10, atol=1e-12)
        assert torch.equal(spoken[: len(phonemes), index], phonemes[:, 0])
        assert not together[len(logits) :, index].any()


def test_voice_has_its_pitch_and_vowels():
    wave = voice(pitch=125.0, seconds=1.0)
    assert wave.shape == (16_000,)
    assert wave.abs().max() <= 0.51
    spectrum = torch.fft.rfft(wave).abs()
    assert abs(int(spectrum[90:180].argmax()) + 90 - 125) <= 10
    frames = mel_frames(wave)
    assert frames.shape == (101, 40)
    assert frames[:, :20].sum() > 10 * frames[:, 30:].sum()  # speech has its power below 2.5 kHz


def test_real_models_says_how_to_get_them(tmp_path):
    result = invoke("real-models", "--packages", str(tmp_path))
    assert result.exit_code == 2
    assert "lacks Resemblyzer==0.1.4" in result.output
    assert f"pip install --no-deps --target {tmp_path}" in result.output.replace("\n", " ")
