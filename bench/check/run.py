"""Are the kernels right? Each cell, regime, dtype and odd shape, and random calls with the features of the loop.

On a GPU the kernels are compiled; without one they run in the concurrent interpreter, or compiled in the PTX executor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.text import Text

from ...kernels import interpreter
from ...kernels.cell_spec import CELLS, NORMALISED
from ...kernels.kept import Keep
from ...kernels.ptx.executor import compiled
from ...kernels.tolerance import Errors, worst
from ..output.tables import print_table
from .features import draw_call, errors_of
from .layer import Case, check_case, check_gradients

KEEP: tuple[Keep, ...] = ("save", "recompute")
DRAWS = 4
"""Calls with random features, for each cell and regime of the full check."""
REGIMES = ("single_cta", "cooperative/dataflow", "cooperative/barrier")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(quick: bool, cells: Iterable[str] | None = None) -> Iterator[Case]:
    """Every cell, or these, in every regime and dtype; in full also odd shapes, directions, strides and tf32."""
    chosen = _with_regimes(cells)
    for (cell, regime), dtype in itertools.product(chosen, DTYPES):
        yield Case(cell, regime, dtype, directions=2 if dtype == torch.bfloat16 else 1)
    if quick:
        return
    for cell, regime in chosen:
        yield Case(cell, regime, torch.float32, hidden_size=1, batch_size=1, length=1, bias=False)
        yield Case(cell, regime, torch.bfloat16, hidden_size=7, batch_size=17, length=3, directions=2, initial=False)
        yield Case(cell, regime, torch.float16, hidden_size=100, batch_size=2, length=3, batch_first=True)
        yield Case(cell, regime, torch.float32, hidden_size=33, batch_size=5, length=40, reverse=True)
        yield Case(cell, regime, torch.float32, hidden_size=48, batch_size=4, length=6, precision="tf32")
        yield Case(cell, regime, torch.bfloat16, hidden_size=60, batch_size=3, length=4, num_heads=3)


def _with_regimes(cells: Iterable[str] | None) -> list[tuple[str, str]]:
    """Every cell, or these, with every regime that it has."""
    chosen = (*CELLS, *NORMALISED) if cells is None else cells
    return list(itertools.product(chosen, REGIMES))


def run_checks(
    *,
    interpret: bool | None = None,
    target: str | None = None,
    seed: int = 0,
    quick: bool = False,
    cells: Sequence[str] | None = None,
    only: Sequence[Case] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Check the kernels; one row a case and phase, column "ok" says whether it is within tolerance.

    interpret:  run in the concurrent interpreter on the CPU; None where there is no GPU.
    target:     "sm_80" or "sm_90": run the code compiled for it in the PTX executor on the CPU.
    seed:       of the numbers and of the schedule on a CPU.
    cells:      their names; None for all that are known.
    """
    on_cpu = target is not None or (not torch.cuda.is_available() if interpret is None else interpret)

    def running(seed: int) -> AbstractContextManager[object]:
        if target is not None:
            return compiled(target, seed=seed)
        return interpreter.interpret(seed) if on_cpu else nullcontext()

    device = torch.device("cpu" if on_cpu else "cuda")
    chosen = list(cases(quick, cells)) if only is None else list(only)
    rows = []
    for index, case in enumerate(track(chosen, "checking the kernels", disable=not progress, transient=True)):
        # Gradients in float32 and the full check in every dtype; relu without a bias has kinks in reach of rounding.
        backward = (not quick or case.dtype == torch.float32) and (case.cell != "rnn_relu" or case.bias)
        with running(seed + index):
            found = {"forward": check_case(case, device, seed + index)}
            if backward:
                found["backward"] = check_gradients(case, device, seed + index, KEEP[index % 2])
        rows += [_row(case, phase, errors) for phase, errors in found.items()]
    if only is None and not quick:
        drawn = list(itertools.product(_with_regimes(cells), range(DRAWS)))
        title = "checking lengths, resets, dropout and zoneout"
        for index, ((cell, regime), _) in enumerate(track(drawn, title, disable=not progress, transient=True)):
            with running(seed + index):
                rows += check_features(cell, regime, device, seed + index, KEEP[index % 2], heads=1 + index % 3)
    return pd.DataFrame(rows)


def check_features(
    cell: str, regime: str, device: torch.device, seed: int, keep: Keep, heads: int = 1
) -> list[dict[str, object]]:
    """A call with a random choice of features in float32: a row a phase."""
    call = draw_call(cell, seed, heads)
    errors = errors_of(call, regime, keep, device)
    of_phase = {"forward": [errors.pop(name) for name in [*errors] if name == "y" or name.startswith("final")]}
    if cell != "rnn_relu":  # whose kinks are in reach of rounding
        of_phase["backward"] = [*errors.values()]
    base: dict[str, object] = {"cell": cell, "regime": regime, "dtype": "float32", "shape": str(call)}
    return [base | {"phase": phase} | _numbers(worst(found)) for phase, found in of_phase.items()]


def _row(case: Case, phase: str, errors: Errors) -> dict[str, object]:
    return {
        "cell": case.cell,
        "regime": case.regime,
        "phase": phase,
        "dtype": "tf32" if case.precision == "tf32" else str(case.dtype).removeprefix("torch."),
        "shape": f"T={case.length} B={case.batch_size} H={case.hidden_size} D={case.directions}"
        + (f" heads={case.num_heads}" if case.num_heads > 1 else ""),
        **_numbers(errors),
    }


def _numbers(errors: Errors) -> dict[str, object]:
    return {
        "error": errors.ours,
        "torch_error": errors.torchs,
        "tolerance": errors.tolerance,
        "ok": errors.ok,
    }


def print_checks(table: pd.DataFrame, console: Console | None = None, target: str | None = None) -> None:
    """The worst case of each cell, regime, phase and dtype beside torch's own error. target: as of `run_checks`."""
    console = console or Console()
    where = "interpreted on the CPU" if not torch.cuda.is_available() else "on the GPU"
    where = where if target is None else f"compiled for {target}, run on the CPU"
    rows = []
    for (cell, regime, phase, dtype), group in table.groupby(["cell", "regime", "phase", "dtype"], sort=False):
        worst = group.loc[(group["error"] / group["tolerance"]).fillna(float("inf")).idxmax()]
        rows.append(
            {
                "cell": cell,
                # A short word for the regime: every row fits into 80 columns.
                "regime": regime.removeprefix("cooperative/"),
                "phase": phase,
                "dtype": dtype,
                "error": f"{worst['error']:.1e}",
                "torch's own": f"{worst['torch_error']:.1e}",
                "allowed": f"{worst['tolerance']:.1e}",
                "": Text("ok", "green") if group["ok"].all() else Text("WRONG", "red"),
            }
        )
    print_table(pd.DataFrame(rows), console, title=f"largest error against torch in float64, kernels {where}")
    console.print("dataflow and barrier are the cooperative regime's two ways to exchange h.")
