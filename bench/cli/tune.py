"""`holdfast tune`. Everything heavy is imported when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..failing import fail, make_folder
from .options import GPUS, Bidirectional, DtypeName, Heads, Load, grouped
from .own_cells import loaded_cells

if TYPE_CHECKING:
    from ...autotune.store import Store
    from ...kernels.resources import DeviceLimits
    from ..tuning.problems import Wanted

GpuName = Literal["a100", "h100", "h200", "b200", "mi300x", "l4", "rtx4090"]
SECONDS_A_PROBLEM = 60.0


@dataclass(frozen=True)
class What:
    """What to tune: one layer, a list, or what a model needs."""

    cell: Annotated[
        str | None, typer.Option(help="Tune one layer of this cell: lstm, gru, rnn_tanh, rnn_relu or another.")
    ] = None
    load: Load = None
    hidden: Annotated[int, typer.Option(min=1, help="hidden_size of that layer.")] = 768
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a batch; those of one class share a result.")] = 16
    dtype: Annotated[DtypeName, typer.Option(help="dtype of that layer.")] = "bf16"
    bidirectional: Bidirectional = False
    heads: Heads = 1
    phase: Annotated[Literal["forward", "backward", "both"], typer.Option(help="Which time loops.")] = "both"
    length: Annotated[Literal["short", "long"], typer.Option(help="short: fewer than 32 steps.")] = "long"
    list_file: Annotated[
        Path | None,
        typer.Option(help="CSV of problems: cell,hidden_size,batch[,dtype,directions,num_heads,phase,length]."),
    ] = None
    from_model: Annotated[
        str | None, typer.Option(help="module:factory; tune what every recurrent layer of that model needs.")
    ] = None


@dataclass(frozen=True)
class How:
    """For how long, on which GPU, and where to."""

    budget: Annotated[float | None, typer.Option(min=0.1, help="Seconds for all of it. A minute a problem.")] = None
    candidates: Annotated[int, typer.Option(min=1, help="Configs compiled for a problem.")] = 32
    out: Annotated[
        Path | None, typer.Option(help="Folder for tune.csv, tune.md and entries/, which --import reads.")
    ] = None
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="All but the timing, on any machine; writes to --out (tune_out).")
    ] = False
    gpu: Annotated[GpuName, typer.Option(help="The GPU that a rehearsal is for.")] = "h100"


@dataclass(frozen=True)
class Cache:
    """What to do with the user's results instead of tuning."""

    show: Annotated[bool, typer.Option("--list", help="Print what this user's cache holds, and end.")] = False
    export_to: Annotated[Path | None, typer.Option("--export", help="Copy the user's results to a folder.")] = None
    import_from: Annotated[
        Path | None, typer.Option("--import", help="Add the results of a folder that --export or --out wrote.")
    ] = None
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all of the user's results, and what first uses of kernels found.")
    ] = False


@grouped
def tune(what: What, how: How, cache: Cache) -> None:
    """Find the fastest config of a layer on this GPU, and keep it for every later run.

    Results go to the user's cache (HOLDFAST_CACHE names another folder), a file a problem; a later run goes on where
    an earlier one ended. From a script:

    holdfast tune --list-file FILE --budget SECONDS --out FOLDER

    Exit status 2, and nothing done, where there is no GPU: --rehearse does all but the timing there.
    """
    if cache != Cache():
        _look_after(cache)
        return
    problems = _problems(what)
    import torch

    from ...autotune.files import user_cache
    from ...autotune.measure import MeasurementRefusedError, require_gpu
    from ...autotune.store import Store
    from ..output.tuning import print_results
    from ..tuning.run import Options, tune_list

    device = None
    if not how.rehearse:
        device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
        try:
            require_gpu(device)
        except MeasurementRefusedError as error:
            fail(*str(error).split(". ", 1))
    out = how.out or (Path("tune_out") if how.rehearse else None)
    if out is not None:
        make_folder(out)
    store = Store(user_cache() if device is not None or out is None else out / "entries")
    limits = _limits(device, how.gpu)
    budget_s = SECONDS_A_PROBLEM * len(problems) if how.budget is None else how.budget
    try:
        done = tune_list(problems, Options(limits, device, budget_s, store, out, how.candidates))
    except OSError as error:
        fail(f"cannot write to {store.root}: {error}", "HOLDFAST_CACHE names another folder for results.")
    except KeyboardInterrupt:
        fail("interrupted", f"What was timed is kept in {store.root}; the same command goes on from there.")
    if not done:
        fail("the time was up before anything was tuned", "Give more seconds with --budget.")
    print_results(done, limits, rehearsed=how.rehearse)
    typer.echo(f"Results: {store.root}" + (f"; tables: {out / 'tune.csv'}, {out / 'tune.md'}" if out else ""))


def _problems(what: What) -> list[Wanted]:
    """What was asked for, in problems; ends the command where that is nothing or cannot be made out."""
    sources = {"--cell": what.cell, "--list-file": what.list_file, "--from-model": what.from_model}
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        fail(
            f"what to tune? {' and '.join(given) or 'nothing'} was given",
            "Give one of --cell, --list-file and --from-model.",
        )
    loaded_cells(what.load, what.cell)
    from ..method.case import DTYPES
    from ..tuning.problems import ListError, layer, load_model, of_model, read_list, wanted

    problems: list[Wanted]
    try:
        if what.list_file is not None:
            problems = read_list(what.list_file)
        elif what.from_model is not None:
            problems, left_out = of_model(load_model(what.from_model), what.batch, what.phase, what.length)
            for line in left_out:
                typer.echo(line)
        else:
            assert what.cell is not None
            directions = 2 if what.bidirectional else 1
            one = layer(what.cell, DTYPES[what.dtype], what.hidden, what.batch, directions, what.heads)
            problems = wanted(one, what.phase, what.length)
    except ListError as error:
        fail(str(error), 'See "holdfast tune --help".')
    if not problems:
        fail("there is nothing to tune", "Name a model with an RNN, GRU or LSTM, or a list with a line.")
    return problems


def _limits(device: object, gpu: str) -> DeviceLimits:
    from ...kernels import resources

    if device is None:
        return getattr(resources, GPUS[gpu])
    return resources.from_device(device)  # type: ignore[arg-type]


def _look_after(asked: Cache) -> None:
    from ...autotune.files import user_cache
    from ...autotune.store import Store
    from ..output.tuning import print_store

    try:
        cache = Store(user_cache())
    except ValueError as error:
        fail(str(error), "Name a folder, or leave it out.")
    if asked.import_from is not None:
        if not asked.import_from.is_dir():
            fail(f"--import: {asked.import_from} is no folder", "Name one that --export or --out wrote.")
        written_by_out = asked.import_from / "entries"
        _copy(Store(written_by_out if written_by_out.is_dir() else asked.import_from), cache)
    if asked.export_to is not None:
        make_folder(asked.export_to)
        _copy(cache, Store(asked.export_to))
    if asked.show:
        print_store(cache)
    if asked.clear:
        from ...autotune import tried

        typer.echo(f"{cache.clear()} entries removed from {cache.root}")
        typer.echo(f"{tried.clear()} files about first uses of kernels removed")


def _copy(source: Store, target: Store) -> None:
    try:
        copied, broken = source.copy_to(target)
    except (OSError, TimeoutError) as error:
        fail(f"cannot write to {target.root}: {error}", "HOLDFAST_CACHE names another folder for results.")
    for entry_error in broken:
        typer.echo(f"left out: {entry_error}")
    typer.echo(f"{copied} entries copied from {source.root} to {target.root}")
