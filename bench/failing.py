"""How a command ends that cannot go on: exit status 2, what is wrong, and what to do about it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import typer

from ..autotune.files import user_cache
from ..kernels.setting import check_environment


def fail(problem: str, next_step: str) -> NoReturn:
    """End the command with what is wrong and what to do about it."""
    typer.echo(f"holdfast: {problem}\n{next_step}", err=True)
    sys.exit(2)


def check_settings() -> None:
    """End the command where an environment variable of holdfast's has a value that it cannot have."""
    try:
        check_environment()
        user_cache()
    except ValueError as error:
        fail(str(error), "Give it such a value, or unset it.")


def make_folder(out: Path) -> None:
    """Make the folder now: a run of minutes should not end with nowhere to write."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot write to {out}: {error.strerror}", "Name another folder with --out.")


def need_matplotlib(what: str) -> None:
    """`what`: what is drawn, as the beginning of a sentence: "the demo draws a figure"."""
    if find_spec("matplotlib") is None:
        fail(f"{what} and matplotlib is not installed", "Install it: pip install 'holdfast[bench]'")
