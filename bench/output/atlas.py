"""Which layers stay on chip on which GPU, in which regime and with which margin; and the README's table of one GPU.

All by the resource model of the heuristic: no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ...autotune.candidates import candidates, choose
from ...autotune.compile_many import Request, compile_many
from ...autotune.constraints import CONSTRAINTS, footprint, refusal
from ...autotune.tune import flaw
from ...cells.catalogue import CATALOGUE
from ...cells.eager.reference import reference_of
from ...kernels.config import Config
from ...kernels.describe import least_grid
from ...kernels.problem import Phase, Precision, Problem
from ...kernels.resources import KNOWN, DeviceLimits
from .tables import to_markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS = {
    "RNN": "rnn_tanh",
    "GRU": "gru",
    "GRU, layer_norm": "gru_layer_norm",
    "LSTM": "lstm",
    "LSTM, layer_norm": "lstm_layer_norm",
    "SLSTM": "slstm",
}
KINDS: dict[str, tuple[torch.dtype, Precision]] = {
    "bf16": (torch.bfloat16, "ieee"),
    "TF32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
"""fp16 has the sizes of bf16."""

FORWARD: tuple[Phase, ...] = ("forward",)
TRAINING: tuple[Phase, ...] = ("forward", "backward")
HIDDEN_SIZES = tuple(range(32, 2049, 32))
COMPILED_SIZES = (64, 256, 512, 768, 1024)
"""Sizes that are compiled on request: minutes each GPU, where the model takes milliseconds."""

COLOURS = {"single_cta": "#2a9d8f", "training": "#264f86", "inference": "#7fa6d6", "eager": "#e7e7e7"}


def build_atlas(gpus: Sequence[DeviceLimits] = KNOWN, batch_size: int = 16) -> pd.DataFrame:
    """One row per GPU, cell, dtype, hidden size and phase, one direction.

    Columns: gpu, cell, dtype, hidden_size, phase, regime, config, programs (that must be resident at once), sms,
    shared_bytes (of a program, by the model), shared_limit, margin and note.

    margin: the smaller of the shares of SMs and of shared memory that stay free; 0 is a tight fit. (On AMD W_hh lies
    in registers, so only the SMs count.)
    """
    rows = [
        _row(limits, cell, kind, hidden, phase, batch_size)
        for limits in gpus
        for cell in CELLS
        for kind in KINDS
        for hidden in HIDDEN_SIZES
        for phase in TRAINING
    ]
    return pd.DataFrame(rows)


def _problem(cell: str, kind: str, hidden: int, phase: Phase, batch_size: int) -> Problem:
    dtype, precision = KINDS[kind]
    return Problem(CELLS.get(cell, cell), dtype, hidden, batch_size, 1, precision, phase)


def _row(limits: DeviceLimits, cell: str, kind: str, hidden: int, phase: Phase, batch_size: int) -> dict[str, Any]:
    problem = _problem(cell, kind, hidden, phase, batch_size)
    choice = choose(problem, limits)
    row: dict[str, Any] = {"gpu": limits.name, "cell": cell, "dtype": kind, "hidden_size": hidden, "phase": phase}
    if not isinstance(choice, Config):
        return row | {"regime": "eager", "note": str(choice)}
    programs = least_grid(problem, choice)
    shared = footprint(problem, choice, limits).shared
    free = [1 - programs / limits.num_sms] if choice.regime == "cooperative" else []
    free += [1 - shared / limits.shared_per_block] if limits.arch[0] == "cuda" or not free else []
    return row | {
        "regime": choice.regime,
        "config": str(choice),
        "programs": programs,
        "sms": limits.num_sms,
        "shared_bytes": shared,
        "shared_limit": limits.shared_per_block,
        "margin": round(min(free), 3),
        "note": "",
    }


def add_compiled(
    atlas: pd.DataFrame,
    gpus: Sequence[DeviceLimits],
    batch_size: int,
    sizes: Sequence[int] = COMPILED_SIZES,
    advance: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The atlas with what the compilers say of some sizes: compiled ("yes", or what is wrong), registers, spill_bytes,
    compiled_shared_bytes and resident_programs."""
    by_name = {limits.name: limits for limits in gpus}
    requests: dict[int, Request] = {}
    for index, row in atlas[atlas["hidden_size"].isin(sizes) & (atlas["regime"] != "eager")].iterrows():
        limits = by_name[row["gpu"]]
        problem = _problem(row["cell"], row["dtype"], row["hidden_size"], row["phase"], batch_size)
        choice = choose(problem, limits)
        assert isinstance(choice, Config)
        requests[index] = Request(problem, choice, limits.target, device=limits)
    outcomes = compile_many(requests.values(), advance)
    found: dict[int, dict[str, Any]] = {}
    for index, request in requests.items():
        outcome = outcomes[request]
        found[index] = {"compiled": flaw(request, outcome) or "yes"}
        if outcome.report is not None:
            found[index]["registers"] = outcome.report.registers
            found[index]["spill_bytes"] = outcome.report.spill_bytes
            found[index]["compiled_shared_bytes"] = outcome.report.shared_bytes
            found[index]["resident_programs"] = outcome.resident_programs
    return atlas.join(pd.DataFrame.from_dict(found, orient="index").convert_dtypes())


def summary(atlas: pd.DataFrame) -> pd.DataFrame:
    """Per GPU and cell, for each dtype: the largest hidden size of one program / of inference / of training."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for (gpu, cell, kind), part in atlas.groupby(["gpu", "cell", "dtype"], sort=False):
        forward = part[part["phase"] == "forward"].set_index("hidden_size")["regime"]
        backward = part[part["phase"] == "backward"].set_index("hidden_size")["regime"]
        sizes = (
            _largest(forward == "single_cta"),
            _largest(forward != "eager"),
            _largest((forward != "eager") & (backward != "eager")),
        )
        rows.setdefault((str(gpu), str(cell)), {})[str(kind)] = " / ".join(map(str, sizes))
    return pd.DataFrame([{"GPU": gpu, "cell": cell} | sizes for (gpu, cell), sizes in rows.items()])


def _largest(holds: pd.Series) -> int:
    """The last size before the first that does not hold; 0 where none does."""
    failing = holds[~holds].index
    kept = holds.index[holds.index < failing[0]] if len(failing) else holds.index
    return int(kept[-1]) if len(kept) else 0


def draw(atlas: pd.DataFrame, path: Path) -> None:
    """A panel per GPU and cell, a bar per dtype along the hidden size; the paler, the smaller the margin."""
    from matplotlib.patches import Patch

    from .drawing import new_figure

    gpus, cells = list(atlas["gpu"].unique()), list(atlas["cell"].unique())
    figure = new_figure(3.6 * len(cells) + 1.2, 0.78 * len(gpus) + 1.5)
    panels = figure.subplots(len(gpus), len(cells), sharex=True, sharey=True, squeeze=False)
    for panel_row, gpu in zip(panels, gpus, strict=True):
        for panel, cell in zip(panel_row, cells, strict=True):
            _draw_panel(panel, atlas[(atlas["gpu"] == gpu) & (atlas["cell"] == cell)])
        panel_row[0].set_ylabel(_short(gpu), rotation=0, ha="right", va="center", fontweight="bold")
    for panel, cell in zip(panels[0], cells, strict=True):
        panel.set_title(cell, fontweight="bold", fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("hidden size")
    words = {
        "single_cta": "one program",
        "training": "team, training and inference",
        "inference": "team, inference only",
        "eager": "torch's own op",
    }
    patches = [Patch(color=COLOURS[name], label=label) for name, label in words.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle("Where recurrent weights stay on chip, by the resource model (paler: tighter)", fontsize=11)
    figure.savefig(path, dpi=150)


def _draw_panel(panel: Axes, part: pd.DataFrame) -> None:
    kinds = list(part["dtype"].unique())
    for level, kind in enumerate(reversed(kinds)):
        rows = part[part["dtype"] == kind]
        forward = rows[rows["phase"] == "forward"].set_index("hidden_size")
        backward = rows[rows["phase"] == "backward"].set_index("hidden_size")
        step = HIDDEN_SIZES[1] - HIDDEN_SIZES[0]
        for hidden, row in forward.iterrows():
            trains = backward.loc[hidden, "regime"] != "eager"
            name = row["regime"] if row["regime"] in COLOURS else "training" if trains else "inference"
            shade = 1.0 if name == "eager" else 0.45 + 0.55 * float(row["margin"])
            left = int(str(hidden)) - step
            panel.barh(level, step, 0.82, left=left, color=COLOURS[name], alpha=shade, linewidth=0)
    panel.set_yticks(range(len(kinds)), list(reversed(kinds)), fontsize=8)
    panel.set_xlim(0, HIDDEN_SIZES[-1])
    panel.set_xticks(range(0, HIDDEN_SIZES[-1] + 1, 512))
    panel.tick_params(length=0, labelsize=8)
    panel.grid(axis="x", color="white", linewidth=0.8)
    for side in panel.spines.values():
        side.set_visible(False)


def _short(gpu: str) -> str:
    """A GPU's name without its maker and its memory."""
    dropped = {"NVIDIA", "AMD", "Instinct", "GeForce", "80GB", "HBM3"}
    return " ".join(word for word in gpu.split() if word not in dropped).removesuffix("-SXM4-80GB")


def write(atlas: pd.DataFrame, out: Path) -> list[Path]:
    """atlas.csv with every row, atlas.md with the summary, and atlas.png."""
    atlas.to_csv(out / "atlas.csv", index=False)
    head = (
        "Largest hidden size, with num_heads= of a head, of one program / of inference / of training, one direction, "
        "by the resource model.\n\n"
    )
    (out / "atlas.md").write_text(head + to_markdown(summary(atlas)), encoding="utf-8")
    draw(atlas, out / "atlas.png")
    return [out / name for name in ("atlas.csv", "atlas.md", "atlas.png")]


IN_WORDS = {"bf16": "bf16, fp16", "TF32": "fp32 as TF32", "fp32": "fp32"}
LARGEST = 2048
"""The README's table looks at hidden sizes up to here."""


def where_table(limits: DeviceLimits, cells: Iterable[str] = CELLS, batch_size: int = 16) -> pd.DataFrame:
    """Per cell and dtype, the largest hidden size of each path on a GPU; every smaller one has a kernel too.

    cells:  modules of `CELLS`, or cells by their names.

    Where only multiples of 16 go further, theirs stands in brackets. Two directions end where one does: they run beside
    each other or in turn.
    """

    def has_kernel(problem: Problem) -> bool:
        # What `choose` finds feasible, unranked: ranking 20,000 problems takes seconds.
        return any(refusal(problem, config, limits, CONSTRAINTS) is None for config in candidates(problem, limits))

    def row(cell: str, kind: str) -> dict[str, str]:
        def is_single(hidden: int) -> bool:
            choice = choose(_problem(cell, kind, hidden, "forward", batch_size), limits)
            return isinstance(choice, Config) and choice.regime == "single_cta"

        def upto(phases: tuple[Phase, ...]) -> str:
            return _limit(lambda hidden: all(has_kernel(_problem(cell, kind, hidden, p, batch_size)) for p in phases))

        return {
            "module": cell,
            "dtype": IN_WORDS[kind],
            "single_cta": _limit(is_single),
            "inference": upto(FORWARD),
            "training": upto(TRAINING),
        }

    return pd.DataFrame([row(cell, kind) for cell in cells for kind in KINDS])


def catalogue_table(limits: DeviceLimits) -> pd.DataFrame:
    """Per published cell and dtype, the largest hidden size of one program / of a team, training included."""
    for cell in CATALOGUE:
        reference_of(cell)  # reads its page
    table = where_table(limits, CATALOGUE)
    table["sizes"] = table["single_cta"] + " / " + table["training"]
    return table.pivot(index="module", columns="dtype", values="sizes")[[*IN_WORDS.values()]].reset_index()


HEADS_OF_768 = (24, 12, 6, 3, 1)


def heads_table(limits: DeviceLimits, batch_size: int = 16) -> pd.DataFrame:
    """Programs that a head takes on a GPU, forwards / backwards, of 768 units in 16 bits cut into heads.

    Where a head stays on chip follows from its size alone, as in the other tables: heads that do not fit beside each
    other take turns.
    """

    def programs(cell: str, heads: int) -> str:
        problems = [Problem(CELLS[cell], torch.bfloat16, 768, batch_size, phase=p, num_heads=heads) for p in TRAINING]
        found = [(problem, choose(problem, limits)) for problem in problems]
        return " / ".join(str(least_grid(p, c)) if isinstance(c, Config) else "no kernel" for p, c in found)

    return pd.DataFrame(
        [{"module": cell} | {f"{n} x {768 // n}": programs(cell, n) for n in HEADS_OF_768} for cell in CELLS]
    )


def _limit(runs: Callable[[int], bool]) -> str:
    """The last size before the first that does not run, and the same among multiples of 16 where it is larger."""
    any_size, aligned = _last_that_runs(runs, 1), _last_that_runs(runs, 16)
    return f"{any_size:,} ({aligned:,})" if aligned > any_size else f"{any_size:,}"


def _last_that_runs(runs: Callable[[int], bool], step: int) -> int:
    last = 0
    for hidden in range(step, LARGEST + 1, step):
        if not runs(hidden):
            break
        last = hidden
    return last
