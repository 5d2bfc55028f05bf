"""Trained models read held-out text through the kernels: the same bits per character as through torch's op?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy

import pandas as pd
from torch import Tensor

from ...autotune.pin import kernels_where_they_can
from ...cells.backend import backend
from ...kernels import interpreter
from ..output.plans import both_plans
from .text import streams
from .train import Learner, bits_per_character

STREAMS = 8
STEPS = 16  # the interpreter walks them one program at a time: tens of milliseconds a step


def through_kernels(learners: Sequence[Learner], numbers: Tensor, seed: int = 0) -> pd.DataFrame:
    """Score a little text with each model by torch's op in float64, and by torch's op and the kernels as trained.

    numbers:  characters of the text; the first `STREAMS * (STEPS + 1)` are read.
    Without a GPU the kernels run in the interpreter.
    """
    rows = []
    for learner in learners:
        device = learner.model.head.weight.device
        text = streams(numbers[: STREAMS * (STEPS + 1)], STREAMS).to(device)
        with backend("eager"):
            exact = bits_per_character(deepcopy(learner.model).double(), text, STEPS)
            torchs = bits_per_character(learner.model, text, STEPS)
        where = nullcontext() if text.is_cuda else interpreter.interpret(seed)
        with backend("auto"), kernels_where_they_can(), where:
            _, plan = both_plans(learner.model.recurrent, STREAMS)
            ours = bits_per_character(learner.model, text, STEPS)
        rows.append(
            {
                "model": learner.name,
                "regime": plan.regime,
                "products": plan.problem.precision,
                "bits/char in float64": f"{exact:.4f}",
                "error of the kernels": f"{ours - exact:+.1e}",
                "error of torch": f"{torchs - exact:+.1e}",
            }
        )
    return pd.DataFrame(rows)
