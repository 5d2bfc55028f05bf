"""`holdfast bench`: a command a suite, and what to do with results. Heavy imports wait for the command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..failing import fail, make_folder, need_matplotlib
from ..suites.catalogue import ON_A_CPU, ON_A_GPU, SUITES, Suite
from .options import Load, grouped
from .own_cells import loaded_cells

if TYPE_CHECKING:
    import pandas as pd

bench = typer.Typer(
    help="Measure: right first, then timed beside torch.nn and others in the same process.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Option(help="Folder for tables and pictures; other suites' results in it stay.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer cases, shorter timing.")]
Seconds = Annotated[float | None, typer.Option(min=0.001, help="Timed seconds for each provider of a case.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads that torch uses on the CPU.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and inputs.")]


@dataclass(frozen=True)
class Run:
    """How to run a suite."""

    out: Out = Path("bench_out")
    quick: Quick = False
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="Tiny cases through the interpreter on the CPU: right or wrong, no times."),
    ] = False
    providers: Annotated[
        str, typer.Option(help="Only providers whose name contains one of these words: 'holdfast,cudnn'.")
    ] = ""
    seconds: Seconds = None
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Cases that have not begun by then are left out.")] = (
        None
    )
    threads: Threads = None
    seed: Seed = 0


@dataclass(frozen=True)
class OwnCell:
    """A cell in place of a suite's own."""

    cell: Annotated[str | None, typer.Option(help="This cell alone, beside its plain loop.")] = None
    load: Load = None


@dataclass(frozen=True)
class RunAll:
    """How to run several suites."""

    out: Out = Path("bench_out")
    quick: Quick = False
    seconds: Seconds = None
    minutes: Annotated[float | None, typer.Option(min=0.01, help="The most that each suite may take.")] = None
    threads: Threads = None
    seed: Seed = 0


WRONG = (
    "a result of holdfast's was wrong or missing, see the table; it got no time",
    "Until that is fixed, HOLDFAST_BACKEND=eager avoids the kernels. "
    'Please report it with the output of "holdfast info".',
)
DRAWS = "the benchmark draws figures"


def _add(suite: Suite) -> None:
    def as_it_is(run: Run) -> None:
        _run([suite], run)

    def with_a_cell(run: Run, own: OwnCell) -> None:
        if own.cell is None and own.load is not None:
            fail("--load was given without --cell", "Name one of the file's cells with --cell.")
        if own.cell is not None:
            loaded_cells(own.load, own.cell)
        _run([suite], run, own.cell)

    epilog = f"Example: holdfast bench {suite.name} --quick --out results"
    add = bench.command(suite.name, help=suite.summary, epilog=epilog)
    add(grouped(with_a_cell if suite.any_cell else as_it_is))


for _suite in SUITES.values():
    _add(_suite)


@bench.command(epilog="Example: holdfast bench auto --quick --out results")
@grouped
def auto(run: RunAll) -> None:
    """Run the suites that mean something on this machine, in order of worth."""
    import torch

    names = ON_A_GPU if torch.cuda.is_available() else ON_A_CPU
    _run([SUITES[name] for name in names], Run(**vars(run)))
    typer.echo("The suite of real tasks takes minutes and has a command of its own: holdfast bench tasks --quick")


@bench.command(epilog="Example: holdfast bench tasks --quick --out tasks_out")
def tasks(
    out: Annotated[Path, typer.Option(help="Folder for tables and curves.")] = Path("tasks_out"),
    quick: Annotated[bool, typer.Option("--quick", help="Less training: at most 10 minutes on 2 cores.")] = False,
    minutes: Annotated[float | None, typer.Option(min=0.05, help="The most that training may take.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds to repeat each training with.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A task by name; may be given again.")] = None,
    seed: Seed = 0,
) -> None:
    """Train RNN, GRU and LSTM on real sequence data and table quality, time and spread."""
    make_folder(out)
    need_matplotlib(DRAWS)
    from ..tasks.run import run_tasks

    try:
        run_tasks(out, quick=quick, minutes=minutes, seeds=seeds, only=only, seed=seed)
    except ValueError as error:
        fail(str(error), "Name tasks with --only, or leave it out for all of them.")
    except ImportError as error:
        fail(f"the tasks need a package that is not here: {error}", "Install it: pip install 'holdfast[bench]'")


@bench.command(
    "real-models", epilog="Example: holdfast bench real-models --packages real_models --quick --out real_models_out"
)
def real_models(
    packages: Annotated[Path, typer.Option(help="Folder that the packages are installed in.")] = Path("real_models"),
    quick: Annotated[bool, typer.Option("--quick", help="Shorter inputs: a minute on a core.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and where it comes from.")] = None,
    seed: Seed = 0,
) -> None:
    """Trained models out of four packages: as they are, converted, and through the kernels."""
    from ..real_models.packages import install_command, missing

    if absent := missing(packages):
        fail(f"{packages} lacks {', '.join(absent)}", f"Install them: {install_command(packages)}")
    if out is not None:
        make_folder(out)
    from rich.console import Console

    from ..output.tables import print_table
    from ..real_models.run import run_real_models

    table = run_real_models(packages, quick=quick, seed=seed, console=Console())
    print_table(table)
    if out is not None:
        _write(table, out, "real-models")
    if (table == "wrong").any(axis=None):
        fail(*WRONG)


@bench.command(epilog="Example: holdfast bench recipes --quick --only tagger --only streaming")
def recipes(
    only: Annotated[list[str] | None, typer.Option(help="A recipe by name; may be given again.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: whether they run and agree.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way; the least time counts.")] = 15,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and where it comes from.")] = None,
) -> None:
    """Time the recipes for other packages beside the usual ways, which they must agree with."""
    if out is not None:
        make_folder(out)
    from rich.console import Console

    from ..recipes.run import run_recipes

    try:
        table = run_recipes(only, quick=quick, rounds=rounds, console=Console())
    except ValueError as error:
        fail(str(error), "Name recipes with --only, or leave it out for all of them.")
    except ImportError as error:
        fail(f"a recipe needs a package that is not here: {error}", "Install it: pip install 'holdfast[recipes]'")
    except AssertionError as error:
        fail(str(error), 'Please report it with the output of "holdfast info".')
    if out is not None:
        _write(table, out, "recipes")


@bench.command(epilog="Example: holdfast bench report results")
def report(folder: Annotated[Path, typer.Argument(help="A results folder.")]) -> None:
    """Write tables (Markdown, LaTeX) and pictures (PNG, PDF) again from a folder's CSV and provenance."""
    need_matplotlib(DRAWS)
    from ..output.report import write_report

    try:
        written = write_report(folder)
    except ValueError as error:
        fail(str(error), "Name a folder that `holdfast bench SUITE --out FOLDER` wrote.")
    typer.echo("Written: " + ", ".join(map(str, written)))


@bench.command(epilog="Example: holdfast bench compare before after")
def compare(
    before: Annotated[Path, typer.Argument(help="A results folder.")],
    after: Annotated[Path, typer.Argument(help="Another of the same suites.")],
    all_rows: Annotated[bool, typer.Option("--all", help="List what stayed the same too.")] = False,
) -> None:
    """Say what got faster or slower by more than the noise of both runs."""
    from ..output.compare import compare as compare_folders
    from ..output.compare import differences
    from ..output.tables import print_table

    try:
        table = compare_folders(before, after)
        sentences = differences(before, after)
    except ValueError as error:
        fail(str(error), "Name two folders that `holdfast bench SUITE --out FOLDER` wrote.")
    for sentence in sentences:
        typer.echo(f"Not the same machine or versions: {sentence}")
    counts = table["verdict"].value_counts()
    shown = table if all_rows else table[table["verdict"].isin(["faster", "slower"])]
    if len(shown):
        shown = shown.sort_values("change").drop(columns="suite")
        print_table(shown.assign(**{name: [_percent(value) for value in shown[name]] for name in ("change", "noise")}))
    order = ("faster", "slower", "same", "unknown")
    typer.echo(", ".join(f"{counts.get(name, 0)} {name}" for name in order) + f", of {len(table)} measurements")


def _write(table: pd.DataFrame, out: Path, suite: str) -> None:
    """The table as `suite`.csv and `suite`.md, and where it comes from."""
    from ..method.provenance import write_provenance
    from ..output.tables import to_markdown

    table.to_csv(out / f"{suite}.csv", index=False)
    (out / f"{suite}.md").write_text(to_markdown(table), encoding="utf-8")
    write_provenance(out, suite)
    typer.echo(f"Written to {out}: {suite}.csv, {suite}.md, provenance.json")


def _percent(value: float) -> str:
    return "" if value != value else f"{100 * value:+.1f} %"


def _run(suites: Iterable[Suite], run: Run, cell: str | None = None) -> None:
    """Run suites one after the other into one folder, report, and fail where a result was wrong."""
    make_folder(run.out)
    need_matplotlib(DRAWS)
    import torch

    from ..output.report import others, overview, write_report
    from ..output.tables import print_table
    from ..output.tuning import store_quality
    from ..suites.entries import Options
    from ..suites.session import Session

    if run.threads is not None:
        torch.set_num_threads(run.threads)
    words = tuple(filter(None, run.providers.split(",")))
    options = Options(run.out, run.quick, run.rehearse, words, run.seconds, run.minutes, run.seed, cell)
    ok = True
    for suite in suites:
        if suite.needs_gpu and not torch.cuda.is_available() and not run.rehearse:
            fail(
                f"the suite {suite.name} needs a GPU that torch can use",
                "--rehearse runs it with tiny cases in the interpreter; host, features, latency, memory and smoke "
                "measure a CPU.",
            )
        try:
            session = Session(suite.name, options, suite.on_cpu)
        except ValueError as error:  # what is there already
            fail(str(error), "Name another folder with --out.")
        suite.run(session)
        session.close()
        rows = session.results.table()
        for shown in (overview(rows), others(rows[rows["rate"].isna()])):
            if len(shown):
                print_table(shown)
        if run.rehearse:
            typer.echo(f"{suite.name}: {(rows['status'] == 'rehearsed').sum()} results right, none timed")
        ok &= session.ok
    write_report(run.out)
    typer.echo(store_quality())
    typer.echo(f"Written to {run.out}: results.csv, results.md, results.tex, provenance.json and pictures")
    if not ok:
        fail(*WRONG)
