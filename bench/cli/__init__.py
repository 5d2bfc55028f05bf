"""The `holdfast` command. Everything heavy is imported by the command that needs it, so that --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from ..failing import check_settings
from .bench import bench
from .commands import atlas, check, compile_report, demo, explain, info
from .tune import tune

app = typer.Typer(
    help="Recurrent layers whose weights stay on chip for the whole sequence.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(bench, name="bench")
app.command(
    epilog="Example: holdfast tune --cell lstm --hidden 768 --batch 16 --dtype bf16 --budget 120", no_args_is_help=True
)(tune)
for command, example in (
    (atlas, "holdfast atlas --gpu h100 --gpu l4 --out atlas"),
    (demo, "holdfast demo --quick --out /tmp/demo"),
    (check, "holdfast check --interpret --quick --seed 7"),
    (compile_report, "holdfast compile-report --quick --target sm_90 --out report"),
    (info, "HOLDFAST_BACKEND=eager holdfast info"),
    (explain, "holdfast explain --cell lstm --hidden 768 --batch 16 --dtype bf16"),
):
    app.command(epilog=f"Example: {example}")(command)


def main() -> None:
    """Run the command under one name, however it was started."""
    app(prog_name="holdfast")


def show_version(wanted: bool) -> None:
    if wanted:
        from ... import __version__

        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    check_settings()
