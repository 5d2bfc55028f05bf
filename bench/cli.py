"""The `holdfast` command. Everything heavy is imported by the command that needs it, so that --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from .cli_bench import bench
from .cli_tune import ATLAS_EXAMPLE, TUNE_EXAMPLE, atlas, tune
from .load_cells import Load, line_in, loaded_cells

app = typer.Typer(
    help="Recurrent layers whose weights stay on chip for the whole sequence.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(bench, name="bench")
app.command(epilog=TUNE_EXAMPLE, no_args_is_help=True)(tune)
app.command(epilog=ATLAS_EXAMPLE)(atlas)

DtypeName = Literal["fp32", "bf16", "fp16"]
WRONG = (
    "kernels differ from torch.nn by more than is allowed, see the table",
    'Until that is fixed, HOLDFAST_BACKEND=eager avoids them. Please report it with the output of "holdfast info".',
)
TO_CORRECT = (
    "Do the jitted functions take and return what kernels/cell_math.py says, "
    "in the numbers that holdfast.define_cell was given?"
)
WRONG_CELL = ("kernels differ from the cell's reference by more than is allowed, see the table", TO_CORRECT)
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> None:
    """Run the command under one name, however it was started."""
    app(prog_name="holdfast")


def fail(problem: str, next_step: str) -> NoReturn:
    """End the command with what is wrong and what to do about it."""
    typer.echo(f"holdfast: {problem}\n{next_step}", err=True)
    sys.exit(2)


def make_folder(out: Path) -> None:
    """Make the folder now: a run of minutes should not end with nowhere to write."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot write to {out}: {error.strerror}", "Name another folder with --out.")


def show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: holdfast demo --quick --out /tmp/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("demo_out"),
    minutes: Annotated[float, typer.Option(min=0.05, help="The most that training may take.")] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the training.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, batches and samples.")] = 0,
) -> None:
    """Check the kernels, then train an RNN, a GRU and an LSTM on Python's documentation."""
    make_folder(out)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        fail("the demo draws a figure and matplotlib is not installed", "Install it: pip install 'holdfast[bench]'")
    from .demo.run import WrongKernelsError, run_demo

    try:
        run_demo(out, minutes=minutes, quick=quick, seed=seed)
    except WrongKernelsError:
        fail(*WRONG)


@app.command(epilog="Example: holdfast check --interpret --quick --seed 7")
def check(
    interpret: Annotated[
        bool, typer.Option("--interpret", help="Run the kernels in the interpreter even where there is a GPU.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="One shape for each cell, regime and dtype; no lengths and the like.")
    ] = False,
    cell: Annotated[str | None, typer.Option(help="This cell alone. By default all, or with --load those.")] = None,
    load: Load = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the numbers and of the interpreter's schedule.")] = 0,
) -> None:
    """Compare the kernels with torch.nn in float64: compiled on a GPU, interpreted without one.

    A cell of your own, from --load, is compared with the reference that it was defined with.
    """
    cells = loaded_cells(load, cell) or None
    from .check import print_checks, run_checks

    try:
        checks = run_checks(interpret=interpret or None, seed=seed, quick=quick, cells=cells)
    except Exception as error:
        if load is None:
            raise
        fail(f"{load}: {line_in(load, error)}{type(error).__name__}: {error}", f"The kernels failed. {TO_CORRECT}")
    print_checks(checks)
    if not checks["ok"].all():
        fail(*(WRONG if load is None else WRONG_CELL))


@app.command(epilog="Example: holdfast compile-report --quick --target sm_90 --out report")
def compile_report(
    out: Annotated[Path, typer.Option(help="Folder for compile_report.csv and compile_report.md.")] = Path(
        "compile_report"
    ),
    target: Annotated[
        list[str] | None, typer.Option(help="Architecture; may be given again. All that are known by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few dozen problems, not the full grid.")] = False,
) -> None:
    """Compile what the heuristic chooses, without a GPU, and table its registers, spills and shared memory."""
    make_folder(out)
    from ..autotune.offline import TARGETS
    from .compile_report import run
    from .compile_summary import summary
    from .tables import print_table

    unknown = set(target or ()) - set(TARGETS)
    if unknown:
        fail(f"unknown target {', '.join(sorted(unknown))}", f"Choose from {', '.join(TARGETS)}.")
    report = run(out, target or TARGETS, quick)
    print_table(summary(report))
    typer.echo(f"Written: {out / 'compile_report.csv'}, {out / 'compile_report.md'}")


@app.command(epilog="Example: HOLDFAST_BACKEND=eager holdfast info")
def info() -> None:
    """Print what was found: GPU, torch, Triton, the backend setting, and which path runs."""
    import torch

    from ..cells.backend import current_backend
    from ..cells.lstm import LSTM
    from .environment import find_environment
    from .paths import print_paths
    from .tables import print_environment

    print_environment(find_environment())
    typer.echo(f'holdfast.backend is "{current_backend()}" (HOLDFAST_BACKEND sets it). A layer here takes these paths:')
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print_paths({f"LSTM(128, {size})": LSTM(128, size, device=device) for size in (128, 768)}, batch_size=16)


@app.command(epilog="Example: holdfast explain --cell lstm --hidden 768 --batch 16 --dtype bf16")
def explain(
    cell: Annotated[str, typer.Option(help="lstm, gru, rnn_tanh, rnn_relu or any other cell by name.")] = "lstm",
    hidden: Annotated[int, typer.Option(min=1, help="hidden_size.")] = 768,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 16,
    dtype: Annotated[DtypeName, typer.Option(help="dtype of x, h and the weights.")] = "bf16",
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Both directions in one launch.")] = False,
    load: Load = None,
) -> None:
    """Print the plan for one layer: regime, config and where it comes from, or why no kernel runs."""
    loaded_cells(load, cell)
    import torch

    from ..cells.call.surroundings import precision
    from ..kernels.problem import Problem
    from .explain import print_plans

    torch_dtype = getattr(torch, TORCH_DTYPES[dtype])
    print_plans(Problem(cell, torch_dtype, hidden, batch, 2 if bidirectional else 1, precision(torch_dtype)))
