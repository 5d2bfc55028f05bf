"""`python -m holdfast.bench.tasks`: the suite without the rest of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..failing import check_settings, fail, make_folder


def main(
    out: Annotated[Path, typer.Option(help="Folder for tables, report and figures.")] = Path("tasks_out"),
    quick: Annotated[bool, typer.Option("--quick", help="Less training, two seeds: 5 minutes on a core.")] = False,
    minutes: Annotated[float | None, typer.Option(help="The most that it may take; 25, with --quick 9.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many; 3, with --quick 2.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a task; may be given again.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    report: Annotated[bool, typer.Option("--report", help="Only make the report anew from the CSV files.")] = False,
) -> None:
    """Compare RNN, GRU and LSTM on real sequence tasks."""
    check_settings()
    make_folder(out)
    from .report import write_report
    from .run import run_tasks

    try:
        if report:
            typer.echo("Written: " + ", ".join(map(str, write_report(out))))
        else:
            run_tasks(out, quick=quick, minutes=minutes, seeds=seeds, only=only, seed=seed)
    except FileNotFoundError as error:
        fail(f"there is no {error.filename}", "Name a folder that a run has written to with --out.")
    except (ImportError, ValueError) as error:
        fail(str(error), "See --help.")


if __name__ == "__main__":
    typer.run(main)
