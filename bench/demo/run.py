"""The demo from start to end: what was found, the check against torch.nn, the training, the report."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ..method.provenance import find_environment
from ..output.plans import print_paths
from ..output.tables import print_environment, print_table
from .model import CELLS, CharModel, hidden_size_for, sample
from .report import results_table, write_report
from .text import Corpus, Vocabulary, python_docs, unigram_bits, xz_bits
from .through_kernels import STEPS, STREAMS, through_kernels
from .train import Learner, Recipe, train

PARAMETERS = 120_000
PROMPT = "The "


class WrongKernelsError(Exception):
    """The kernels differ from torch.nn by more than is allowed."""


def run_demo(out: Path, minutes: float = 2.0, quick: bool = False, seed: int = 0) -> list[Learner]:
    """Run the demo and write its report into `out`.

    minutes:  the most that training may take; a slow machine stops early and says so.
    quick:    a tenth of the training, for trying things out.

    Raises WrongKernelsError, once it has printed the errors, where the kernels fail their check.
    """
    started = time.perf_counter()
    console = Console()
    # On models this small a second thread brings little, and on a busy machine the threads wait for each other:
    # ten times slower, seen with two threads beside other work on two cores.
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    console.rule("1. What this machine has")
    print_environment(find_environment(), console)

    console.rule("2. The kernels against torch.nn")
    check_kernels(console, seed)

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
    reached = learners[0].curve[-1]
    console.print(f"{reached.update:,} updates each.")
    if reached.epoch < 0.99 * recipe.epochs:
        console.print(f"Stopped by the limit of {minutes:g} minutes before {recipe.epochs:g} epochs; see --minutes.")

    best = min(learners, key=lambda learner: learner.curve[-1].held_out_bits)
    written = sample(best.model, vocabulary, PROMPT, 400, seed=seed)
    console.print(Panel(Text(written), title=f"The {best.name} writes (temperature 0.7, seed {seed})"))

    console.rule("4. The trained models through the kernels")
    console.print(f"{STEPS} steps of {STREAMS} streams of held-out text, in float32:")
    table = through_kernels(learners, vocabulary.encode(corpus.held_out), seed)
    print_table(table, console)
    if device == "cpu" and (table["products"] == "tf32").any():
        console.print("The kernels round products to TF32, torch's default for an RNN on a GPU; a CPU knows no TF32.")

    paths = write_report(learners, baselines, out)
    console.print("Written: " + ", ".join(map(str, paths)))
    console.print(f"The demo took {time.perf_counter() - started:.0f} s.")
    return learners


def check_kernels(console: Console, seed: int) -> None:
    """Print the kernels' error against float64 torch.nn beside torch's own: interpreted where there is no GPU."""
    from ..check.run import print_checks, run_checks

    interpret = not torch.cuda.is_available()
    where = "run by Triton's interpreter, as this machine has no GPU" if interpret else "compiled for this GPU"
    console.print(f"Kernels {where}:")
    checks = run_checks(interpret=interpret, seed=seed, quick=True)
    print_checks(checks, console)
    if not checks["ok"].all():
        raise WrongKernelsError


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
    print_paths({name: model.recurrent for name, model in models.items()}, Recipe.batch_size, console)


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
