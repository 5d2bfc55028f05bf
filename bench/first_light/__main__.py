"""The first minutes on a GPU: is it right, how long is a step, what does a poll cost, what does the host take?

    python -m holdfast.bench.first_light --out light        # on a GPU, at most five minutes
    python -m holdfast.bench.first_light --rehearse          # tiny, through the interpreter, untimed
    python -m holdfast.bench.first_light --compile warm      # without a GPU: fill Triton's cache for one

Every step is a process of its own with a time-out, so that a kernel that spins costs its step and no more. A wrong
result is marked WRONG and makes the exit status 1; it still gets its time.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from ...kernels.interpreter import interpret
from ...kernels.resources import H200
from ..failing import check_settings
from .steps import STEPS, Row, Where


def main(
    out: Annotated[Path, typer.Option(help="Folder for a CSV of each step.")] = Path("first_light"),
    minutes: Annotated[float, typer.Option(min=0.01, help="For all steps together.")] = 5.0,
    only: Annotated[str, typer.Option(help="Steps to run, with commas between.")] = ",".join(STEPS),
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Tiny, through the interpreter, untimed.")] = False,
    compile_to: Annotated[
        Path | None, typer.Option("--compile", help="Fill this folder, a TRITON_CACHE_DIR, without a GPU, and end.")
    ] = None,
    compiler: Annotated[
        Path | None,
        typer.Option(
            help="With --compile: the unpacked wheel of Triton, for another Python, that will use the folder."
        ),
    ] = None,
    step: Annotated[str, typer.Option(hidden=True, help="The step that this process is for.")] = "",
) -> None:
    """Look at everything once, in order of worth. Example: python -m holdfast.bench.first_light --out light"""
    check_settings()
    unknown = [name for name in only.split(",") if name not in STEPS]
    if unknown:
        raise typer.BadParameter(f"--only should name steps of {', '.join(STEPS)}, got {', '.join(unknown)}")
    if compile_to is not None:
        _warm(compile_to, compiler)
        return
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("first_light: no GPU that torch can use; --rehearse runs tiny sizes in the interpreter.")
    out.mkdir(parents=True, exist_ok=True)
    if step:
        raise SystemExit(_run(step, out, rehearse))
    end, bad = time.monotonic() + 60 * minutes, 0
    for name in only.split(","):
        bad += _in_a_process(name, min(STEPS[name].seconds * (5 if rehearse else 1), end - time.monotonic()))
    raise SystemExit(1 if bad else 0)


def _warm(folder: Path, compiler: Path | None) -> None:
    from .warm import cached_in, compile_all, key_of

    folder.mkdir(parents=True, exist_ok=True)
    key = None if compiler is None else key_of(compiler)
    with cached_in(folder, key):
        _told(compile_all(H200), folder / "first_light.csv")


def _in_a_process(name: str, seconds: float) -> int:
    print(f"\n== {name}", flush=True)
    if seconds <= 1:
        print("no time left", flush=True)
        return 1
    try:
        command = [sys.executable, "-m", "holdfast.bench.first_light", *sys.argv[1:], "--step", name]
        return subprocess.run(command, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: ended after {seconds:.0f} s; its rows so far are kept", flush=True)
        return 1


def _run(name: str, out: Path, rehearse: bool) -> int:
    where = Where(torch.device("cpu" if rehearse else "cuda"), rehearse)
    if rehearse:
        with interpret(0):
            rows = _told(STEPS[name].run(where), out / f"{name}.csv")
    else:
        rows = _told(STEPS[name].run(where), out / f"{name}.csv")
    return int(any("WRONG" in row.values() for row in rows))


def _told(rows: Iterable[Row], path: Path) -> list[Row]:
    """Print each row as it comes and write all so far: a step that is cut off keeps what it has."""
    seen: list[Row] = []
    for row in rows:
        print("  " + "  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        seen.append(row)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(_columns(seen)))
            writer.writeheader()
            writer.writerows(seen)
    return seen


def _columns(rows: list[Row]) -> Iterator[str]:
    return iter(dict.fromkeys(key for row in rows for key in row))


if __name__ == "__main__":
    typer.run(main)
