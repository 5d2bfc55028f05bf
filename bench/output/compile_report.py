"""What the kernels cost on each GPU architecture, as their compilers say: a table made without a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...autotune.candidates import choose
from ...autotune.compile_many import Outcome, Request, compile_many, programs
from ...autotune.identity import keeps
from ...autotune.offline import REFERENCE_DEVICE, TARGETS
from ...autotune.processes import Compilers
from ...autotune.sass import Parts, Step
from ...kernels.cell_spec import CELLS, NORMALISED
from ...kernels.plan import Reason
from ...kernels.problem import Phase, Precision, Problem
from .tables import to_markdown

KINDS: tuple[tuple[torch.dtype, Precision], ...] = (
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
)
"""What a kernel can compute in: dtype, and what a float32 product may be rounded to."""

PHASES: tuple[Phase, ...] = ("forward", "backward")
HIDDEN_SIZES = (1, 7, 64, 100, 128, 256, 384, 512, 768, 1000, 1024, 1400, 1664, 2048)
BATCH_SIZES = (1, 8, 16, 32, 64, 128, 256)


TORCHS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
"""The cells of torch.nn."""

MANY_FEATURES = ("lengths", "recurrent_dropout", "reset_state", "resets", "zoneout")


BUILT_IN = (*CELLS, *NORMALISED)


def full_grid() -> list[Problem]:
    """Every cell × dtype × size × batch × directions × phase that the compile gate covers, and features of the loop."""
    plain = [
        Problem(cell, dtype, hidden, batch, directions, precision, phase)
        for cell, (dtype, precision), hidden, batch, directions, phase in itertools.product(
            BUILT_IN, KINDS, HIDDEN_SIZES, BATCH_SIZES, (1, 2), PHASES
        )
    ]
    featured = [
        Problem(cell, dtype, hidden, 16, directions, precision, phase, features)
        for cell, (dtype, precision), hidden, directions, phase, features in itertools.product(
            BUILT_IN, KINDS, (64, 256, 768, 1024), (1, 2), PHASES, FEATURE_SETS
        )
    ]
    headed = [
        Problem(cell, dtype, heads * size, 16, 1, precision, phase, features, num_heads=heads)
        for cell, (dtype, precision), (heads, size), phase, features in itertools.product(
            BUILT_IN, KINDS, HEADS, PHASES, ((), MANY_FEATURES)
        )
    ]
    return plain + featured + headed


HEADS = ((12, 64), (3, 256), (8, 16), (5, 20), (2, 768), (4, 7))
"""Heads and their size: of one program, of a team, in tiles that they do not fill, of no whole vectors or words."""


FEATURE_SETS = (
    ("lengths",),
    ("lengths", "packed"),
    ("resets",),
    ("reset_state", "resets"),
    ("recurrent_dropout",),
    ("zoneout",),
    MANY_FEATURES,
)


def quick_grid() -> list[Problem]:
    """A few problems that between them meet every cell, dtype and regime, and sizes odd and even, small and large."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        *(Problem(cell, bf16, hidden, 16) for cell in TORCHS for hidden in (100, 768)),
        *(Problem(cell, fp32, 256, 16, precision="tf32") for cell in TORCHS),
        *(Problem(cell, fp32, 100, 1) for cell in TORCHS),
        *(Problem("lstm", bf16, hidden, 16) for hidden in (7, 64, 128, 256, 512, 1000, 1024)),
        *(Problem("gru", bf16, hidden, 16, directions=2) for hidden in (64, 384)),
        *(Problem("lstm", bf16, 768, batch) for batch in (1, 64, 256)),
        # The tightest: both spilled on sm_100 with Triton 3.7.1 or 3.6.0 while the others were clean.
        Problem("rnn_tanh", bf16, 1000, 16),
        Problem("rnn_tanh", fp32, 1024, 16, precision="tf32"),
        Problem("rnn_tanh", fp32, 768, 16, precision="tf32", phase="backward"),
        Problem("lstm", fp16, 768, 16),
        Problem("lstm", fp32, 256, 16),
        *(Problem(cell, bf16, hidden, 16, phase="backward") for cell in TORCHS for hidden in (64, 256, 768)),
        *(Problem(cell, fp32, 256, 16, precision="tf32", phase="backward") for cell in TORCHS),
        *(Problem("lstm", bf16, hidden, 16, phase=phase) for hidden in (1400, 1664) for phase in PHASES),
        *(Problem("lstm", fp32, 768, batch, precision="tf32", phase=phase) for batch in (16, 128) for phase in PHASES),
        *(Problem("lstm", bf16, hidden, 128, phase="backward") for hidden in (512, 768, 1024)),
        Problem("lstm", bf16, 1024, 16, phase="backward"),
        Problem("lstm", fp32, 1024, 16, precision="tf32", phase="backward"),
        Problem("gru", bf16, 1000, 16, directions=2, phase="backward"),
        Problem("lstm", fp32, 100, 16, phase="backward"),
        *(Problem(cell, bf16, 768, 16, phase=phase) for cell in BUILT_IN if cell not in TORCHS for phase in PHASES),
        *(Problem("lstm", bf16, 768, 16, 2, phase=phase, features=("lengths",)) for phase in PHASES),
        *(Problem("gru", bf16, 768, 16, phase=phase, features=("lengths", "packed")) for phase in PHASES),
        *(Problem("lstm", bf16, 1024, 16, phase=phase, features=("reset_state", "resets")) for phase in PHASES),
        *(Problem("lstm", bf16, 768, 16, phase=phase, features=MANY_FEATURES) for phase in PHASES),
        *(Problem("lstm", bf16, 64, 16, phase=phase, features=MANY_FEATURES) for phase in PHASES),
        *(Problem("lstm", bf16, n * size, 16, phase=phase, num_heads=n) for n, size in HEADS[:3] for phase in PHASES),
        *(Problem("gru", bf16, 1536, 16, phase=phase, num_heads=2) for phase in PHASES),
        *(Problem(cell, bf16, 64, 16, phase=phase) for cell in NORMALISED for phase in PHASES),
        *(Problem("lstm_layer_norm", fp32, 256, 16, phase=phase) for phase in PHASES),
        *(Problem("lstm_layer_norm", bf16, 768, 16, phase=phase, features=MANY_FEATURES) for phase in PHASES),
    ]


def build_report(
    targets: Sequence[str], problems: Iterable[Problem], progress: bool = True, compilers: Compilers | None = None
) -> pd.DataFrame:
    """One row for each problem on each target: the config that the heuristic chooses, and what its kernel costs.

    targets:   architecture names of `autotune.offline.TARGETS`; each stands for its reference device.
    progress:  show a bar on standard error.
    compilers: as for `compile_many`.

    A problem has a row on a target for each way to keep values between the loops (`kernels.kept.Keep`) that makes a
    difference to its kernel.

    Columns: the problem (cell, phase, dtype, precision, hidden_size, batch, directions, num_heads), keep, target,
    features, regime, config, registers (32-bit, per thread), spill_bytes (per thread), spills_in_loop (local accesses
    in the time loop's code), shared_bytes (per program), shared_limit (bytes that the device gives one program),
    matrix_family, matrix_instructions, barriers (both counted in the code, not as run), weight_loads_in_loop, grid
    (programs of the launch), resident_programs (that the device holds at once), compile_seconds (near 0 where Triton's
    disk cache had the kernel) and note: why no kernel is used, or why it did not compile.

    Of a step (see `autotune.sass.Step`; NVIDIA only, where every wait ends with its first poll): step_instructions,
    issue_cycles of a warp and what they are by part (issue_head, issue_poll, issue_operands, issue_product,
    issue_gates), step_barriers, drained_groups of products, gathered_bytes that a program reads of its team's memory.
    Of each further poll, the most of any wait: poll_issue_cycles, poll_barriers; poll_round_trips, and
    shared_scoreboards: see there.

    What does not apply to a row is missing there (pd.NA).

    Raises ValueError for an unknown target.
    """
    for target in targets:
        if target not in TARGETS:
            raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    choices = [
        (problem, target, keep, choose(problem, REFERENCE_DEVICE[target]))
        for problem in problems
        for target in targets
        for keep in keeps(problem)
    ]
    requests = {
        (problem, target, keep): Request(problem, choice, target, keep)
        for problem, target, keep, choice in choices
        if not isinstance(choice, Reason)
    }
    with compiling_bar(progress) as advance:
        outcomes = compile_many(requests.values(), advance, compilers=compilers)
    rows = []
    for problem, target, keep, choice in choices:
        row: dict[str, object] = _problem_columns(problem) | {"keep": keep, "target": target}
        if isinstance(choice, Reason):
            row |= {"regime": "eager", "note": str(choice)}
        else:
            request = requests[problem, target, keep]
            row |= {"regime": choice.regime, "config": str(choice)} | _outcome_columns(request, outcomes[request])
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


COLUMNS = {
    "cell": "string",
    "phase": "string",
    "dtype": "string",
    "precision": "string",
    "hidden_size": "Int64",
    "batch": "Int64",
    "directions": "Int64",
    "num_heads": "Int64",
    "keep": "string",
    "target": "string",
    "features": "string",
    "regime": "string",
    "config": "string",
    "registers": "Int64",
    "spill_bytes": "Int64",
    "spills_in_loop": "Int64",
    "shared_bytes": "Int64",
    "shared_limit": "Int64",
    "matrix_family": "string",
    "matrix_instructions": "Int64",
    "barriers": "Int64",
    "weight_loads_in_loop": "Int64",
    "step_instructions": "Int64",
    "issue_cycles": "Int64",
    **{f"issue_{part}": "Int64" for part in Parts._fields},
    "step_barriers": "Int64",
    "drained_groups": "Int64",
    "gathered_bytes": "Int64",
    "poll_issue_cycles": "Int64",
    "poll_barriers": "Int64",
    "poll_round_trips": "Int64",
    "shared_scoreboards": "Int64",
    "grid": "Int64",
    "resident_programs": "Int64",
    "compile_seconds": "Float64",
    "note": "string",
}
"""The report's columns and their pandas dtypes."""


@contextmanager
def compiling_bar(visible: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, as `compile_many` advances it."""
    bar = Progress(
        TextColumn("Compiling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not visible,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _problem_columns(problem: Problem) -> dict[str, object]:
    return {
        "cell": problem.cell,
        "phase": problem.phase,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "precision": problem.precision,
        "hidden_size": problem.hidden_size,
        "batch": problem.batch_size,
        "directions": problem.directions,
        "num_heads": problem.num_heads,
        "features": " ".join(problem.features),
    }


def _outcome_columns(request: Request, outcome: Outcome) -> dict[str, object]:
    report = outcome.report
    if report is None:
        return {"note": outcome.error}
    return {
        "registers": report.registers,
        "spill_bytes": report.spill_bytes,
        "spills_in_loop": report.spills_in_loop,
        "shared_bytes": report.shared_bytes,
        "shared_limit": REFERENCE_DEVICE[request.target].shared_per_block,
        "matrix_family": report.matrix_family,
        "matrix_instructions": report.matrix_instructions,
        "barriers": report.barriers,
        "weight_loads_in_loop": outcome.weight_loads_in_loop,
        **({} if report.step is None else _step_columns(report.step, request.config.num_warps)),
        "grid": programs(request),
        "resident_programs": outcome.resident_programs,
        "compile_seconds": round(report.seconds, 2),
    }


def _step_columns(step: Step, num_warps: int) -> dict[str, object]:
    return {
        "step_instructions": step.counts.instructions,
        "issue_cycles": step.counts.issue_cycles,
        **{f"issue_{part}": cycles for part, cycles in step.parts._asdict().items()},
        "step_barriers": step.counts.barriers,
        "drained_groups": step.drained_groups,
        "gathered_bytes": 4 * step.gathered_words * 32 * num_warps,
        "poll_issue_cycles": max((poll.issue_cycles for poll in step.polls), default=0),
        "poll_barriers": max((poll.barriers for poll in step.polls), default=0),
        "poll_round_trips": step.poll_round_trips,
        "shared_scoreboards": step.shared_scoreboards,
    }


def summary(report: pd.DataFrame) -> pd.DataFrame:
    """How many kernels were compiled for each target, and the most that any of them takes."""
    rows = []
    for target, rows_of_target in report.groupby("target", sort=False):
        chosen = rows_of_target[rows_of_target["regime"] != "eager"]
        compiled = chosen[chosen["registers"].notna()]
        rows.append(
            {
                "target": target,
                "problems": len(rows_of_target),
                "eager": len(rows_of_target) - len(chosen),
                "failed": len(chosen) - len(compiled),
                "most registers": compiled["registers"].max(),
                "spilling": int((compiled["spill_bytes"] > 0).sum()),
                "most shared bytes": compiled["shared_bytes"].max(),
                "loads W_hh in loop": int((compiled["weight_loads_in_loop"] > 0).sum()),
            }
        )
    return pd.DataFrame(rows)


def write_csv(report: pd.DataFrame, path: Path) -> None:
    """Write every row and column."""
    report.to_csv(path, index=False)


def write_markdown(report: pd.DataFrame, path: Path) -> None:
    """Write a GitHub table; what does not apply to a row is left empty."""
    path.write_text(to_markdown(report, rule="---"))


def run(out: Path, targets: Sequence[str] = TARGETS, quick: bool = False) -> pd.DataFrame:
    """Build the report and write `compile_report.csv` and `compile_report.md` into the folder `out`.

    quick:  a few dozen problems instead of the full grid.
    """
    out.mkdir(parents=True, exist_ok=True)
    report = build_report(targets, quick_grid() if quick else full_grid())
    write_csv(report, out / "compile_report.csv")
    write_markdown(report, out / "compile_report.md")
    return report
