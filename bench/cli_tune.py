"""`holdfast tune` and `holdfast atlas`. Everything heavy is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .load_cells import Load, loaded_cells

if TYPE_CHECKING:
    from ..autotune.store import Store
    from ..kernels.resources import DeviceLimits
    from .tuning_list import Wanted

GpuName = Literal["a100", "h100", "h200", "b200", "mi300x", "l4", "rtx4090"]
_KNOWN = {
    "a100": "A100",
    "h100": "H100",
    "h200": "H200",
    "b200": "B200",
    "mi300x": "MI300X",
    "l4": "L4",
    "rtx4090": "RTX_4090",
}
SECONDS_A_PROBLEM = 60.0

TUNE_EXAMPLE = "Example: holdfast tune --cell lstm --hidden 768 --batch 16 --dtype bf16 --budget 120"
ATLAS_EXAMPLE = "Example: holdfast atlas --gpu h100 --gpu l4 --out atlas"


def tune(
    cell: Annotated[
        str | None, typer.Option(help="Tune one layer of this cell: lstm, gru, rnn_tanh, rnn_relu or another.")
    ] = None,
    load: Load = None,
    hidden: Annotated[int, typer.Option(min=1, help="hidden_size of that layer.")] = 768,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a batch; those of one class share a result.")] = 16,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="dtype of that layer.")] = "bf16",
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Both directions in one launch.")] = False,
    phase: Annotated[Literal["forward", "backward", "both"], typer.Option(help="Which time loops.")] = "both",
    length: Annotated[Literal["short", "long"], typer.Option(help="short: fewer than 32 steps.")] = "long",
    list_file: Annotated[
        Path | None, typer.Option(help="CSV of problems: cell,hidden_size,batch[,dtype,directions,phase,length].")
    ] = None,
    from_model: Annotated[
        str | None, typer.Option(help="module:factory; tune what every recurrent layer of that model needs.")
    ] = None,
    budget: Annotated[float | None, typer.Option(min=0.1, help="Seconds for all of it. A minute a problem.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Configs compiled for a problem.")] = 32,
    out: Annotated[
        Path | None, typer.Option(help="Folder for tune.csv, tune.md and entries/, which --import reads.")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="All but the timing, on any machine; writes to --out (tune_out).")
    ] = False,
    gpu: Annotated[GpuName, typer.Option(help="The GPU that a rehearsal is for.")] = "h100",
    show: Annotated[bool, typer.Option("--list", help="Print what this user's cache holds, and end.")] = False,
    export_to: Annotated[Path | None, typer.Option("--export", help="Copy the user's results to a folder.")] = None,
    import_from: Annotated[
        Path | None, typer.Option("--import", help="Add the results of a folder that --export or --out wrote.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of the user's results.")] = False,
) -> None:
    """Find the fastest config of a layer on this GPU, and keep it for every later run.

    Results go to the user's cache (HOLDFAST_CACHE names another folder), a file a problem; a later run goes on where
    an earlier one ended. From a script:

    holdfast tune --list-file FILE --budget SECONDS --out FOLDER

    Exit status 2, and nothing done, where there is no GPU: --rehearse does all but the timing there.
    """
    from .cli import fail, make_folder

    if show or export_to or import_from or clear:
        _look_after_the_store(show, export_to, import_from, clear)
        return
    given = [
        name for name, value in (("--cell", cell), ("--list-file", list_file), ("--from-model", from_model)) if value
    ]
    if len(given) != 1:
        fail(
            f"what to tune? {' and '.join(given) or 'nothing'} was given",
            "Give one of --cell, --list-file and --from-model.",
        )
    loaded_cells(load, cell)
    import torch

    from ..autotune.files import user_cache
    from ..autotune.measure import MeasurementRefusedError, require_gpu
    from ..autotune.store import Store
    from .tuning import Options, print_results, tune_list
    from .tuning_list import DTYPES, ListError, load_model, of_model, read_list, wanted

    problems: list[Wanted]
    try:
        if list_file is not None:
            problems = read_list(list_file)
        elif from_model is not None:
            problems, left_out = of_model(load_model(from_model), batch, phase, length)
            for line in left_out:
                typer.echo(line)
        else:
            assert cell is not None
            problems = wanted(cell, DTYPES[dtype], hidden, batch, 2 if bidirectional else 1, phase, length)
    except ListError as error:
        fail(str(error), 'See "holdfast tune --help".')
    if not problems:
        fail("there is nothing to tune", "Name a model with an RNN, GRU or LSTM, or a list with a line.")
    device = None if rehearse else torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    if device is not None:
        try:
            require_gpu(device)
        except MeasurementRefusedError as error:
            fail(*str(error).split(". ", 1))
    if rehearse:
        out = out or Path("tune_out")
    if out is not None:
        make_folder(out)
    store = Store(user_cache() if device is not None or out is None else out / "entries")
    limits = _limits(device, gpu)
    budget_s = SECONDS_A_PROBLEM * len(problems) if budget is None else budget
    options = Options(limits, device, budget_s, store, out, candidates)
    try:
        done = tune_list(problems, options)
    except OSError as error:
        fail(f"cannot write to {store.root}: {error}", "HOLDFAST_CACHE names another folder for results.")
    except KeyboardInterrupt:
        fail("interrupted", f"What was timed is kept in {store.root}; the same command goes on from there.")
    if not done:
        fail("the time was up before anything was tuned", "Give more seconds with --budget.")
    print_results(done, options)
    typer.echo(f"Results: {store.root}" + (f"; tables: {out / 'tune.csv'}, {out / 'tune.md'}" if out else ""))


def _limits(device: object, gpu: str) -> DeviceLimits:
    from ..kernels import resources

    if device is None:
        return getattr(resources, _KNOWN[gpu])
    return resources.from_device(device)  # type: ignore[arg-type]


def _look_after_the_store(show: bool, export_to: Path | None, import_from: Path | None, clear: bool) -> None:
    from ..autotune.files import user_cache
    from ..autotune.store import Store
    from .cli import fail, make_folder
    from .tuning_store import print_store

    cache = Store(user_cache())
    if import_from is not None:
        if not import_from.is_dir():
            fail(f"--import: {import_from} is no folder", "Name one that --export or --out wrote.")
        written_by_out = import_from / "entries"
        _copy(Store(written_by_out if written_by_out.is_dir() else import_from), cache)
    if export_to is not None:
        make_folder(export_to)
        _copy(cache, Store(export_to))
    if show:
        print_store(cache)
    if clear:
        typer.echo(f"{cache.clear()} entries removed from {cache.root}")


def _copy(source: Store, target: Store) -> None:
    copied, broken = source.copy_to(target)
    for error in broken:
        typer.echo(f"left out: {error}")
    typer.echo(f"{copied} entries copied from {source.root} to {target.root}")


def atlas(
    gpu: Annotated[
        list[str] | None, typer.Option(help="A GPU, such as h100; may be given again. All that are known.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 16,
    compile_too: Annotated[
        bool, typer.Option("--compile", help="Compile five sizes of each cell, dtype and phase: minutes a GPU.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for atlas.csv, atlas.md and atlas.png.")] = Path("atlas_out"),
) -> None:
    """Which layers stay on chip on which GPU, in which regime and with which margin; none of them need be there.

    From the resource model of the heuristic; with --compile also from the compilers, for each GPU's architecture.
    """
    from .cli import fail, make_folder

    if unknown := set(gpu or ()) - _KNOWN.keys():
        fail(f"unknown GPU {', '.join(sorted(unknown))}", f"Choose from {', '.join(_KNOWN)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        fail("the atlas is drawn and matplotlib is not installed", "Install it: pip install 'holdfast[bench]'")
    make_folder(out)
    from ..kernels import resources
    from .atlas import add_compiled, build_atlas, summary, write
    from .compile_report import compiling_bar
    from .tables import print_table

    gpus = [getattr(resources, _KNOWN[name]) for name in gpu or _KNOWN]
    table = build_atlas(gpus, batch)
    if compile_too:
        with compiling_bar() as advance:
            table = add_compiled(table, gpus, batch, advance=advance)
        typer.echo(f"compiled: {dict(table['compiled'].dropna().value_counts())}")
    typer.echo("Largest hidden size of one program / of inference / of training, one direction:")
    print_table(summary(table))
    typer.echo(f"Written: {', '.join(map(str, write(table, out)))}")
    if "mi300x" in (gpu or _KNOWN):
        typer.echo("AMD: the kernels compile for it and nobody has run them; the modules run torch's own op there.")
