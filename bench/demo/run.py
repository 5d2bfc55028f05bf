"""The demo from start to end: what was found, the check against torch.nn, the training, the report."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ...kernels.plan import Plan
from ..environment import find_environment
from ..tables import print_environment, print_table
from .model import CELLS, CharModel, hidden_size_for, sample
from .report import results_table, write_report
from .text import Corpus, Vocabulary, python_docs, unigram_bits, xz_bits
from .train import Learner, Recipe, train

PARAMETERS = 120_000
PROMPT = "The "


def run_demo(out: Path, minutes: float = 2.0, quick: bool = False, seed: int = 0) -> list[Learner]:
    """Run the demo and write its report into `out`.

    minutes:  the most that training may take; a slow machine stops early and says so.
    quick:    a tenth of the training, for trying things out.
    """
    started = time.perf_counter()
    console = Console()
    # On models this small more threads cost more than they bring.
    torch.set_num_threads(min(4, torch.get_num_threads()))
    device = "cuda" if torch.cuda.is_available() else "cpu"

    console.rule("1. What this machine has")
    print_environment(find_environment(), console)

    console.rule("2. The kernels against torch.nn")
    check_kernels(console, quick, seed)

    console.rule("3. Next-character models on Python's documentation")
    corpus = python_docs()
    vocabulary = Vocabulary(corpus.train)
    models = build_models(len(vocabulary), device, seed)
    baselines = {"unigram": unigram_bits(corpus), "xz": xz_bits(corpus)}
    describe_task(console, corpus, vocabulary, models, baselines)
    recipe = Recipe(seconds=60 * minutes, seed=seed)
    if quick:
        recipe = replace(recipe, epochs=0.5, evaluations=6)
    learners = train_with_progress(console, models, vocabulary, corpus, recipe)
    print_table(results_table(learners), console)
    stopped_early = learners[0].curve[-1].epoch < recipe.epochs * 0.99
    if stopped_early:
        console.print(
            f"Training stopped after its {minutes:g} minutes, before its {recipe.epochs:g} epochs: "
            "--minutes gives it more."
        )

    best = min(learners, key=lambda learner: learner.curve[-1].held_out_bits)
    written = sample(best.model, vocabulary, PROMPT, 400, seed=seed)
    console.print(Panel(Text(written), title=f"The {best.name} writes (temperature 0.7, seed {seed})"))

    paths = write_report(learners, baselines, out)
    console.print("Written: " + ", ".join(map(str, paths)))
    console.print(f"The demo took {time.perf_counter() - started:.0f} s.")
    return learners


def check_kernels(console: Console, quick: bool, seed: int) -> None:
    """Print the kernels' error against float64 torch.nn beside torch's own: interpreted where there is no GPU."""
    from ..check import print_checks, run_checks

    interpret = not torch.cuda.is_available()
    where = "run by Triton's interpreter, as this machine has no GPU" if interpret else "compiled for this GPU"
    console.print(f"Kernels {where}; errors against float64 torch.nn.")
    print_checks(run_checks(interpret=interpret, seed=seed, quick=True))


def build_models(characters: int, device: str, seed: int) -> dict[str, CharModel]:
    """A model of each cell, with hidden sizes that give all of them about the same number of parameters."""
    models = {}
    for name in CELLS:
        hidden_size = hidden_size_for(name, characters, PARAMETERS)
        torch.manual_seed(seed)
        models[name] = CharModel(name, characters, hidden_size, dropout=0.1).to(device)
    return models


def describe_task(
    console: Console, corpus: Corpus, vocabulary: Vocabulary, models: dict[str, CharModel], baselines: dict[str, float]
) -> None:
    console.print(
        f"Text: pydoc_data.topics without its repeats, {len(corpus.train):,} characters to learn from and "
        f"{len(corpus.held_out):,} held out; {len(vocabulary)} different ones.\n"
        f"Models: as many parameters each (about {PARAMETERS:,}), the same batches, the same number of updates.\n"
        f"To beat, in bits per held-out character: {math.log2(len(vocabulary)):.2f} for a uniform guess, "
        + ", ".join(f"{bits:.2f} for {name}" for name, bits in baselines.items())
        + "."
    )
    print_paths(console, models)


def print_paths(console: Console, models: dict[str, CharModel]) -> None:
    """Which path each recurrent layer takes while it learns and while it is measured, and why no kernel runs."""
    plans = {name: layer_plans(model) for name, model in models.items()}
    rows = [{"model": name, "learning": path(both[0]), "measured": path(both[1])} for name, both in plans.items()]
    print_table(pd.DataFrame(rows), console)
    reasons = {reason.name: reason for both in plans.values() for plan in both for reason in plan.reasons}
    for reason in reasons.values():
        console.print(f"  {reason}")


def layer_plans(model: CharModel) -> tuple[Plan, Plan]:
    """What `explain` says of the recurrent layer: while training and under `no_grad`."""
    weight = model.head.weight
    x = torch.zeros(1, Recipe.batch_size, model.recurrent.input_size, device=weight.device, dtype=weight.dtype)
    training = model.recurrent.explain(x)
    with torch.no_grad():
        return training, model.recurrent.explain(x)


def path(plan: Plan) -> str:
    """A plan in a few words: the regime and its config, or the names of the reasons against one."""
    if plan.config is None:
        return f"{plan.regime} ({', '.join(reason.name for reason in plan.reasons)})"
    return f"{plan.regime} ({plan.config}; {plan.origin})"


def train_with_progress(
    console: Console, models: dict[str, CharModel], vocabulary: Vocabulary, corpus: Corpus, recipe: Recipe
) -> list[Learner]:
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[bits]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("training", total=1.0, bits="")

        def show(done: float, learners: list[Learner]) -> None:
            bits = " ".join(f"{learner.name} {learner.curve[-1].held_out_bits:.2f}" for learner in learners)
            progress.update(task, completed=done, bits=f"{bits} bits/char")

        return train(
            models, vocabulary.encode(corpus.train), vocabulary.encode(corpus.held_out), recipe, on_update=show
        )
