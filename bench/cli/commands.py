"""The commands of one step: demo, check, compile-report, info, explain, atlas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..failing import fail, make_folder, need_matplotlib
from .options import GPUS, Batch, Bidirectional, DtypeName, Heads, Load
from .own_cells import line_in, loaded_cells

WRONG = (
    "kernels differ from torch.nn by more than is allowed, see the table",
    'Until that is fixed, HOLDFAST_BACKEND=eager avoids them. Please report it with the output of "holdfast info".',
)
TO_CORRECT = (
    "Do the jitted functions take and return what kernels/cell_math.py says, "
    "in the numbers that holdfast.define_cell was given?"
)
WRONG_CELL = ("kernels differ from the cell's reference by more than is allowed, see the table", TO_CORRECT)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("demo_out"),
    minutes: Annotated[float, typer.Option(min=0.05, help="The most that training may take.")] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the training.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, batches and samples.")] = 0,
) -> None:
    """Check the kernels, then train an RNN, a GRU and an LSTM on Python's documentation."""
    make_folder(out)
    need_matplotlib("the demo draws a figure")
    from ..demo.run import WrongKernelsError, run_demo

    try:
        run_demo(out, minutes=minutes, quick=quick, seed=seed)
    except WrongKernelsError:
        fail(*WRONG)


def check(
    interpret: Annotated[
        bool, typer.Option("--interpret", help="Run the kernels in the interpreter even where there is a GPU.")
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled", help="Compile the kernels and run their PTX on the CPU, instruction by instruction."
        ),
    ] = False,
    target: Annotated[str | None, typer.Option(help="With --compiled: sm_80 or sm_90.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One shape for each cell, regime and dtype; no lengths and the like.")
    ] = False,
    cell: Annotated[str | None, typer.Option(help="This cell alone. By default all, or with --load those.")] = None,
    load: Load = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the numbers and of the schedule on a CPU.")] = 0,
) -> None:
    """Compare the kernels with torch.nn in float64: on a GPU, or interpreted, or with --compiled as PTX, without one.

    A cell of your own, from --load, is compared with the reference that it was defined with.
    """
    cells = loaded_cells(load, cell) or None
    from ...kernels.ptx.executor import TARGETS
    from ..check.run import print_checks, run_checks

    if interpret and compiled:
        fail("--interpret and --compiled are two ways to run without a GPU", "Choose one.")
    if target is not None and not compiled:
        fail("--target is of what is compiled", f"Add --compiled: {target} need not be there.")
    if compiled and (target := target or "sm_90") not in TARGETS:
        fail(f"the PTX executor does not know {target}", f"Choose from {', '.join(TARGETS)}.")
    try:
        checks = run_checks(interpret=interpret or None, target=target, seed=seed, quick=quick, cells=cells)
    except Exception as error:
        if load is None:
            raise
        fail(f"{load}: {line_in(load, error)}{type(error).__name__}: {error}", f"The kernels failed. {TO_CORRECT}")
    print_checks(checks, target=target)
    if not checks["ok"].all():
        fail(*(WRONG if load is None else WRONG_CELL))


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
    from ...autotune.offline import TARGETS
    from ..output.compile_report import run, summary
    from ..output.tables import print_table

    unknown = set(target or ()) - set(TARGETS)
    if unknown:
        fail(f"unknown target {', '.join(sorted(unknown))}", f"Choose from {', '.join(TARGETS)}.")
    report = run(out, target or TARGETS, quick)
    print_table(summary(report))
    typer.echo(f"Written: {out / 'compile_report.csv'}, {out / 'compile_report.md'}")


def info() -> None:
    """Print what was found: GPU, torch, Triton, the backend setting, and which path runs."""
    import torch

    from ...cells.backend import current_backend
    from ...cells.lstm import LSTM
    from ..method.provenance import find_environment
    from ..output.plans import print_paths
    from ..output.tables import print_environment

    print_environment(find_environment())
    typer.echo(f'holdfast.backend is "{current_backend()}" (HOLDFAST_BACKEND sets it). A layer here takes these paths:')
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print_paths({f"LSTM(128, {size})": LSTM(128, size, device=device) for size in (128, 768)}, batch_size=16)


def explain(
    cell: Annotated[str, typer.Option(help="lstm, gru, rnn_tanh, rnn_relu or any other cell by name.")] = "lstm",
    hidden: Annotated[int, typer.Option(min=1, help="hidden_size.")] = 768,
    batch: Batch = 16,
    dtype: Annotated[DtypeName, typer.Option(help="dtype of x, h and the weights.")] = "bf16",
    bidirectional: Bidirectional = False,
    heads: Heads = 1,
    length: Annotated[int, typer.Option(min=1, help="Steps of the sequence.")] = 512,
    load: Load = None,
) -> None:
    """Print the plan for one layer: regime, config, where it comes from, what it should take; or why no kernel runs."""
    loaded_cells(load, cell)
    from ..method.case import DTYPES
    from ..output.plans import print_plans
    from ..tuning.problems import ListError, layer

    try:
        problem = layer(cell, DTYPES[dtype], hidden, batch, 2 if bidirectional else 1, heads)
    except ListError as error:
        fail(str(error), 'See "holdfast explain --help".')
    print_plans(problem, length)


def atlas(
    gpu: Annotated[
        list[str] | None, typer.Option(help="A GPU, such as h100; may be given again. All that are known.")
    ] = None,
    batch: Batch = 16,
    compile_too: Annotated[
        bool, typer.Option("--compile", help="Compile five sizes of each cell, dtype and phase: minutes a GPU.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for atlas.csv, atlas.md and atlas.png.")] = Path("atlas_out"),
) -> None:
    """Which layers stay on chip on which GPU, in which regime and with which margin; none of them need be there.

    From the resource model of the heuristic; with --compile also from the compilers, for each GPU's architecture.
    """
    if unknown := set(gpu or ()) - GPUS.keys():
        fail(f"unknown GPU {', '.join(sorted(unknown))}", f"Choose from {', '.join(GPUS)}.")
    need_matplotlib("the atlas is drawn")
    make_folder(out)
    from ...kernels import resources
    from ..output.atlas import add_compiled, build_atlas, summary, write
    from ..output.compile_report import compiling_bar
    from ..output.tables import print_table

    gpus = [getattr(resources, GPUS[name]) for name in dict.fromkeys(gpu or GPUS)]
    table = build_atlas(gpus, batch)
    if compile_too:
        with compiling_bar() as advance:
            table = add_compiled(table, gpus, batch, advance=advance)
        typer.echo(f"compiled: {dict(table['compiled'].dropna().value_counts())}")
    typer.echo("Largest hidden size of one program / of inference / of training, one direction:")
    print_table(summary(table))
    typer.echo(f"Written: {', '.join(map(str, write(table, out)))}")
    if "mi300x" in (gpu or GPUS):
        typer.echo("AMD: the kernels compile for it and nobody has run them; the modules run torch's own op there.")
