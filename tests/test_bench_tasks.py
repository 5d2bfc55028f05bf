"""The suite of real tasks: honest data, an environment whose optimum is known, training that repeats."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from holdfast.bench.demo.model import parameter_count
from holdfast.bench.demo.text import Corpus, python_docs
from holdfast.bench.output.tables import to_markdown
from holdfast.bench.tasks import run
from holdfast.bench.tasks.actor_critic import DISCOUNT, TRACE, advantages
from holdfast.bench.tasks.characters import Characters
from holdfast.bench.tasks.claim import compare, epochs_until, equal_hidden, reading
from holdfast.bench.tasks.co2 import (
    STEP,
    WINDOW,
    YEAR,
    last_known,
    persistence,
    seasonal,
    seasonal_growth,
    weekly_co2,
    windows,
)
from holdfast.bench.tasks.digits import Digits
from holdfast.bench.tasks.maze import FORWARD, LEFT, OBSERVATIONS, RIGHT, TMaze, mean_return
from holdfast.bench.tasks.models import batches_of
from holdfast.bench.tasks.registry import TASKS
from holdfast.bench.tasks.report import clipping, over_seeds, quality_table, write_report
from holdfast.bench.tasks.results import read_results
from holdfast.bench.tasks.task import Task
from holdfast.bench.tasks.training import CLIP, Learner, learners_of, train
from holdfast.bench.tasks.words import Words, without_spaces

CPU = torch.device("cpu")
names = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    """Every task, those on text with a tenth of it."""
    corpus = python_docs()
    part = Corpus(corpus.train[:40_000], corpus.held_out[:4_000])
    small = {"characters": Characters(CPU, part), "words": Words(CPU, part)}
    return {name: small.get(name) or make(CPU) for name, make in TASKS.items()}


def learner(task: Task, model: str, seed: int, clip: float | None = CLIP) -> Learner:
    (found,) = (one for one in learners_of(task, seed, clips=(clip,)) if one.name == model)
    return found


def curve(task: Task, updates: int, *learners: Learner) -> pd.DataFrame:
    return train(task, learners, epochs=updates / task.updates_per_epoch)


# Training


@names
def test_models_have_about_as_many_parameters(tasks, name):
    task = tasks[name]
    for recurrent in task.models.values():
        model = task.model(recurrent, task.hidden_size(recurrent))
        assert parameter_count(model) == pytest.approx(task.parameters, rel=0.05)


@names
def test_every_model_trains_and_is_measured(tasks, name):
    task = tasks[name]
    learners = learners_of(task, seed=3)
    assert {one.name for one in learners} == set(task.models)
    curves = curve(task, 2, *learners)
    assert np.isfinite(curves["quality"]).all()
    last = curves.groupby(["model", "clip"], dropna=False).last()
    assert (last["update"] == 2).all()
    assert (last[["wall_s", "cpu_s", "gradient_norm"]] > 0).all(axis=None)
    assert len(last) == 2 * len(task.models)


@pytest.mark.parametrize(
    ("name", "updates"), [("characters", 30), ("digits", 60), ("forecast", 60), ("horizon", 60), ("words", 40)]
)
def test_a_gru_learns(tasks, name, updates):
    """Seconds of training bring it past the weakest baseline."""
    task = tasks[name]
    reached = curve(task, updates, learner(task, "GRU", 1))["quality"].iloc[-1]
    values = task.baselines().values()
    assert reached > min(values) if task.higher_is_better else reached < max(values)


@pytest.mark.slow
def test_recurrent_policies_recall_and_others_cannot(tasks):
    task = tasks["maze"]
    last = train(task, learners_of(task, 1, clips=(CLIP,)), epochs=task.epochs).groupby("model")["quality"].last()
    assert last["no memory"] < 0.2
    assert (last[["GRU", "LSTM"]] > 0.9).all()


@names
def test_training_repeats_with_its_seed_whoever_trains_beside(tasks, name):
    task = tasks[name]
    alone = curve(task, 3, learner(task, "GRU", 5))
    beside = curve(task, 3, learner(task, "LSTM", 6), learner(task, "GRU", 5), learner(task, "GRU", 6))
    grus = beside[beside["model"] == "GRU"]
    for column in ("loss", "gradient_norm", "quality"):
        same, other = grus[column][::2], grus[column][1::2]
        assert same.iloc[-1] == alone[column].iloc[-1]
        assert other.iloc[-1] != alone[column].iloc[-1] or column == "quality"


def test_models_leave_torchs_generator_alone(tasks):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    curve(tasks["maze"], 1, learner(tasks["maze"], "GRU", 0))
    assert torch.equal(torch.rand(3), expected)


def test_clipping_bounds_the_gradient_that_adam_sees(tasks):
    task = tasks["forecast"]
    for clip in (1e-3, None):
        one = learner(task, "RNN", 0, clip)
        one.update(progress=0.0)
        norm = nn.utils.get_total_norm([p.grad for p in one.model.parameters()])
        ((_, before),) = one.recent
        assert norm == pytest.approx(before if clip is None else clip, rel=1e-3)


def test_a_model_that_diverges_is_said_to_and_stops(tasks):
    task = tasks["forecast"]
    one = learner(task, "GRU", 0, None)
    one.losses = (loss * float("inf") for loss in one.losses)
    curves = curve(task, 5, one)
    assert one.updates == 1
    assert np.isnan(curves["quality"].iloc[-1])
    assert over_seeds(curves["quality"].tail(1)) == "1 of 1 diverged"


def test_time_limit_ends_training(tasks):
    task = tasks["forecast"]
    curves = train(task, [learner(task, "RNN", 0)], epochs=1e6, seconds=0.3)
    assert 0 < curves["epoch"].iloc[-1] < 1e6


def test_batches_hold_every_example_once():
    batches = batches_of(23, 5, torch.Generator().manual_seed(1))
    assert batches.shape == (4, 5)
    assert len(set(batches.flatten().tolist())) == 20


# Data


def test_series_is_split_in_time_and_nothing_is_lost():
    from statsmodels.datasets import co2

    before, after = weekly_co2()
    np.testing.assert_array_equal(np.concatenate((before, after)), co2.load_pandas().data["co2"].to_numpy())
    assert 0.2 < len(after) / (len(before) + len(after)) < 0.4


@pytest.mark.parametrize("steps", [1, 6, YEAR])
def test_targets_are_the_values_so_many_weeks_ahead(steps):
    weeks = np.arange(200.0)
    found = windows(weeks, steps)
    assert found.past.shape == (WINDOW, 200 - STEP * (WINDOW + steps - 1))
    newest = found.past[-1]
    np.testing.assert_array_equal(found.past, newest + STEP * np.arange(-WINDOW + 1, 1)[:, None])
    np.testing.assert_array_equal(found.future, newest + STEP * np.arange(1, steps + 1)[:, None])
    assert found.future.max() == weeks[-1]


def test_what_a_model_reads_does_not_depend_on_what_comes_later():
    generator = np.random.default_rng()
    series = generator.normal(size=150)
    series[generator.random(150) < 0.3] = np.nan
    series[0] = 1.0
    later = series.copy()
    now = 130
    later[now + 1 :] = generator.normal(size=len(series) - now - 1)
    np.testing.assert_array_equal(last_known(series)[: now + 1], last_known(later)[: now + 1])
    known = ~np.isnan(series)
    np.testing.assert_array_equal(last_known(series)[known], series[known])


def test_too_short_a_series_is_refused():
    with pytest.raises(ValueError, match="span 109 weeks, the series has 100"):
        windows(np.zeros(100), 1)


def test_naive_forecasts_are_exact_where_they_should_be():
    generator = np.random.default_rng()
    year = np.tile(generator.normal(size=STEP * YEAR), 5)
    trend = 0.1 * np.arange(len(year))
    for series, exact in (
        (np.full(len(year), 3.0), {persistence, seasonal, seasonal_growth}),
        (year, {seasonal, seasonal_growth}),
        (year + trend, {seasonal_growth}),
    ):
        found = windows(series, YEAR)
        for forecast in (persistence, seasonal, seasonal_growth):
            assert np.allclose(forecast(found.past, YEAR), found.future) == (forecast in exact)


def test_forecast_asks_for_the_end_of_its_horizon(tasks):
    forecast, horizon = tasks["forecast"], tasks["horizon"]
    assert forecast.train.future.shape[0] == 1
    shared = horizon.train.future.shape[1]
    np.testing.assert_array_equal(forecast.train.future[0, :shared], horizon.train.future[forecast.steps - 1])


def test_no_digit_is_both_learnt_and_asked(tasks):
    task = tasks["digits"]
    assert isinstance(task, Digits)
    learnt, asked = (
        {tuple(picture) for picture in x.squeeze(-1).t().tolist()} for x in (task.train_x, task.held_out_x)
    )
    assert not learnt & asked
    assert len(task.train_y) + len(task.held_out_y) == 1797


def test_words_are_restored_from_their_labels():
    text = "Some  words,\n\n    indented\tand\nbroken "
    characters, ends = without_spaces(text)
    assert len(characters) == len(ends)
    restored = "".join(c + (" " if end else "") for c, end in zip(characters, ends, strict=True))
    assert restored.split() == text.split()


def test_majority_is_that_of_the_labels(tasks):
    task = tasks["words"]
    assert isinstance(task, Words)
    baselines = task.baselines()
    assert baselines["majority"] == pytest.approx(100 * (1 - np.mean(task.held_out_ends)), abs=0.1)
    assert baselines["majority"] < baselines["pairs of characters"] < 100


# The maze


def with_memory(x, state, begins):
    """Walk on, then turn where the cue said."""
    state = torch.zeros(len(x), dtype=torch.int64) if state is None else state
    state = torch.where(x[:, 0] == 1, LEFT, torch.where(x[:, 1] == 1, RIGHT, state))
    return torch.where(x[:, 3] == 1, state, FORWARD), state


@pytest.mark.parametrize("corridor", [(1, 1), (4, 12), (2, 30)])
def test_memory_reaches_the_optimum_in_every_episode(corridor):
    assert mean_return(with_memory, TMaze(500, corridor, seed=int(torch.randint(1000, ())))) == TMaze.optimum


def test_no_policy_without_memory_does_better_than_guessing():
    """All 81 of them that are deterministic."""
    returns = []
    for table in product((FORWARD, LEFT, RIGHT), repeat=OBSERVATIONS):
        actions = torch.tensor(table)
        returns.append(mean_return(lambda x, *_, a=actions: (a[x.argmax(-1)], None), TMaze(60, (1, 3))))
    assert max(returns) == TMaze.memoryless_optimum


def test_a_walker_that_waits_is_stopped():
    maze = TMaze(7, (2, 4))
    for _ in range(maze.limit - 1):
        rewards, ended = maze.step(torch.full((7,), LEFT))
        assert not ended.any()
        assert torch.equal(rewards, torch.full((7,), -0.1))
    assert maze.step(torch.full((7,), LEFT))[1].all()
    assert (maze.age == 0).all()


def test_cue_is_seen_at_the_start_only_and_each_episode_draws_its_own():
    maze = TMaze(300, (3, 9), seed=2)
    for _ in range(60):
        before = maze.observe()
        torch.testing.assert_close(before[:, :2].sum(-1) == 1, maze.position == 0)
        going = maze.cue.clone()
        _, ended = maze.step(torch.where(before[:, 3] == 1, LEFT, FORWARD))
        assert torch.equal(maze.cue[~ended], going[~ended])
    assert 0.3 < (maze.cue == LEFT).double().mean() < 0.7


def test_advantages_are_those_of_each_episode_alone():
    T, B = 11, 5
    rewards, values, after = torch.randn(T, B).double(), torch.randn(T, B).double(), torch.randn(B).double()
    ends = torch.rand(T, B) < 0.3
    found = advantages(rewards, ends, values, after)
    for row in range(B):
        for step in range(T):
            expected, weight = 0.0, 1.0
            for t in range(step, T):
                following = 0.0 if ends[t, row] else (after[row] if t == T - 1 else values[t + 1, row])
                expected += weight * (rewards[t, row] + DISCOUNT * following - values[t, row])
                weight *= DISCOUNT * TRACE
                if ends[t, row]:
                    break
            torch.testing.assert_close(found[step, row], torch.as_tensor(expected))


# The claim


def curves_of(task: str, model: str, qualities: list[float], seconds: float) -> pd.DataFrame:
    epochs = np.arange(len(qualities), dtype=float)
    columns = {"epoch": epochs, "wall_s": 2 * seconds * epochs, "cpu_s": seconds * epochs, "quality": qualities}
    return pd.DataFrame({"task": task, "seed": 0, "model": model, "clip": CLIP, **columns})


@pytest.mark.parametrize(("task", "sign"), [("forecast", 1), ("digits", -1)])
def test_ratios_are_those_of_the_curves(task, sign):
    """Of two models of which one is twice as fast an epoch and needs half of the epochs."""
    gru = curves_of(task, "GRU", [sign * 4.0, sign * 2.0, sign * 1.0], seconds=1.0)
    lstm = curves_of(task, "LSTM", [sign * 4.0, sign * 3.0, sign * 2.0], seconds=2.0)
    baselines = pd.DataFrame({"task": task, "value": [sign * 0.5, sign * 4.0]})
    (ratios,) = compare(pd.concat((gru, lstm)), baselines).to_dict("records")
    assert ratios["quality"] == sign * 2.0
    assert ratios["epochs"] == 0.5
    assert ratios["epoch_cpu"] == ratios["epoch_wall"] == 0.5
    assert ratios["time_cpu"] == 0.25


@pytest.mark.parametrize(("goal", "epochs"), [(0.0, 0.0), (2.0, 1.0), (2.5, 2.5), (3.0, 3.0), (3.5, np.nan)])
def test_epochs_until_a_goal(goal, epochs):
    found = epochs_until(goal, np.arange(5.0), np.array([0.0, 2.0, 2.0, 3.0, 3.0]))
    assert found == pytest.approx(epochs, nan_ok=True)


def test_nothing_is_read_from_models_that_did_not_learn():
    curves = pd.concat([curves_of("maze", model, [-2.0, 0.0], 1.0) for model in ("GRU", "LSTM")])
    ratios = compare(curves, pd.DataFrame({"task": ["maze", "maze"], "value": [0.0, 1.0]}))
    assert ratios["epoch_cpu"].item() == 1.0
    assert ratios[["quality", "epochs", "time_cpu", "time_wall"]].isna().all(axis=None)
    assert "nothing can be said" in reading(ratios, pd.DataFrame())


def test_equal_hidden_times_both_with_and_without_onednn(tasks):
    before = torch.backends.mkldnn.enabled
    table = equal_hidden(tasks["forecast"], rounds=3)
    assert torch.backends.mkldnn.enabled == before
    assert table["hidden_size"].nunique() == 1
    assert set(zip(table["model"], table["onednn"], strict=True)) == set(product(("GRU", "LSTM"), (True, False)))
    assert (table[["wall_s", "cpu_s"]] > 0).all(axis=None)


# A run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks") / "new" / "folder"
    run.run_tasks(out, quick=True, minutes=0.1, only=["forecast", "horizon"])
    return out


def test_a_run_writes_everything(folder):
    results = read_results(folder)
    assert set(results.curves["task"]) == {"forecast", "horizon"}
    assert set(results.curves["seed"]) == {0}  # with no time for a second
    assert set(results.curves["model"]) == set(TASKS["forecast"].models)
    assert results.curves["clip"].isna().any()
    for name in ("tasks.png", "tasks_clipping.png"):
        assert (folder / name).stat().st_size > 10_000


def test_the_report_comes_from_the_files_alone(folder, tmp_path):
    for path in (*folder.glob("*.csv"), *folder.glob("*.json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_report(tmp_path)
    assert (tmp_path / "tasks.md").read_text() == (folder / "tasks.md").read_text()
    assert (tmp_path / "tasks.png").read_bytes() == (folder / "tasks.png").read_bytes()


def test_a_run_without_time_trains_a_little(tmp_path):
    curves = run.run_tasks(tmp_path, minutes=1e-4, only=["forecast"]).curves
    assert set(curves["seed"]) == {0}
    assert 0 < curves["epoch"].max() < TASKS["forecast"].epochs


def test_clipping_is_counted_run_by_run():
    runs = [
        ("forecast", "GRU", 0, CLIP, 1.0),
        ("forecast", "GRU", 0, np.nan, 2.0),  # lower is better: clipping helped
        ("digits", "GRU", 0, CLIP, 1.0),
        ("digits", "GRU", 0, np.nan, 2.0),  # higher is better: it did not
        ("words", "GRU", 0, CLIP, 5.0),
        ("words", "GRU", 0, np.nan, 5.0),
        ("digits", "RNN", 1, CLIP, 10.0),
        ("digits", "RNN", 1, np.nan, np.nan),  # diverged without
        ("forecast", "RNN", 1, CLIP, np.nan),  # diverged with
        ("forecast", "RNN", 1, np.nan, 3.0),
    ]
    curves = pd.DataFrame(runs, columns=["task", "model", "seed", "clip", "quality"])
    assert "better in 2 of 5 runs, worse in 2 and equal in 1" in clipping(curves)


def test_an_interrupted_run_leaves_what_it_had(tmp_path, monkeypatch):
    trained = []

    def train_once(task, *args, **options):
        if trained:
            raise KeyboardInterrupt
        trained.append(task.name)
        return train(task, *args, **{**options, "epochs": 0.1})

    monkeypatch.setattr(run, "train", train_once)
    with pytest.raises(KeyboardInterrupt):
        run.run_tasks(tmp_path, only=["forecast", "horizon"])
    assert list(read_results(tmp_path).curves["task"].unique()) == ["forecast"]
    write_report(tmp_path)
    assert "| forecast | LSTM |" in (tmp_path / "tasks.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["digit"]}, "only should name some of characters, .*got digit"),
        ({"only": []}, "got nothing"),
        ({"minutes": 0}, "minutes should be greater than 0, got 0"),
        ({"seeds": 0}, "seeds should be at least 1, got 0"),
    ],
)
def test_a_run_refuses_what_makes_no_sense(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run.run_tasks(tmp_path, **options)


def test_readme_shows_the_committed_results():
    root = Path(__file__).parents[1]
    results = read_results(root / "bench/results/cpu-tasks")
    readme = (root / "bench" / "README.md").read_text(encoding="utf-8")
    assert to_markdown(quality_table(results)) in readme
    claim = reading(compare(results.curves, results.baselines), results.equal_hidden)
    assert claim in " ".join(readme.split())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda module: None if module == "statsmodels" else module)
    with pytest.raises(ImportError, match=r"need statsmodels: pip install 'holdfast\[bench\]'"):
        run.run_tasks(tmp_path)


def test_report_of_an_empty_folder_is_refused(tmp_path):
    import typer

    from holdfast.bench.tasks.__main__ import main

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--report", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "there is no" in result.output
