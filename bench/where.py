"""Which hidden sizes run on which path: the README's table, made from the heuristic."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from ..autotune.candidates import choose
from ..kernels.config import Config
from ..kernels.problem import Phase, Precision, Problem
from ..kernels.resources import DeviceLimits

LARGEST = 2048
"""Hidden sizes are looked at up to here."""

KINDS: dict[str, tuple[torch.dtype, Precision]] = {
    "bf16, fp16": (torch.bfloat16, "ieee"),
    "fp32 as TF32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
CELLS = {"RNN": "rnn_tanh", "GRU": "gru", "LSTM": "lstm"}
FORWARD: tuple[Phase, ...] = ("forward",)
TRAINING: tuple[Phase, ...] = ("forward", "backward")


def where_table(limits: DeviceLimits, batch_size: int = 16) -> pd.DataFrame:
    """Per cell and dtype, the largest hidden size of each path on a GPU; every smaller one has a kernel too.

    Where only multiples of 16 go further, theirs stands in brackets.
    """

    def choices(cell: str, kind: str, hidden: int, directions: int, phases: tuple[Phase, ...]) -> list[Config] | None:
        dtype, precision = KINDS[kind]
        found = [
            choose(Problem(CELLS[cell], dtype, hidden, batch_size, directions, precision, phase), limits)
            for phase in phases
        ]
        configs = [choice for choice in found if isinstance(choice, Config)]
        return configs if len(configs) == len(phases) else None

    def row(cell: str, kind: str) -> dict[str, str]:
        def is_single(hidden: int) -> bool:
            configs = choices(cell, kind, hidden, 1, FORWARD)
            return configs is not None and configs[0].regime == "single_cta"

        def upto(directions: int, phases: tuple[Phase, ...]) -> str:
            return _largest(lambda hidden: choices(cell, kind, hidden, directions, phases) is not None)

        return {
            "module": cell,
            "dtype": kind,
            "single_cta": _largest(is_single),
            "one direction, inference": upto(1, FORWARD),
            "one direction, training": upto(1, TRAINING),
            "both directions, inference": upto(2, FORWARD),
            "both directions, training": upto(2, TRAINING),
        }

    return pd.DataFrame([row(cell, kind) for cell in CELLS for kind in KINDS])


def _largest(runs: Callable[[int], bool]) -> str:
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
