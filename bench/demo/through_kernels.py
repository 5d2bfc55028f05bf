"""Trained models read held-out text through the kernels: the same bits per character as through torch's op?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pandas as pd
from torch import Tensor

from ...cells.backend import backend
from ...kernels import interpreter
from ..paths import both_plans, in_words
from .text import streams
from .train import Learner, bits_per_character

STREAMS = 8
STEPS = 16  # the interpreter walks them one program at a time: tens of milliseconds a step


def through_kernels(learners: Sequence[Learner], numbers: Tensor, seed: int = 0) -> pd.DataFrame:
    """Score a little text with each model twice: by torch's op, and by the kernels (interpreted without a GPU).

    numbers:  characters of the text; the first `STREAMS * (STEPS + 1)` are read.
    """
    rows = []
    for learner in learners:
        device = learner.model.head.weight.device
        text = streams(numbers[: STREAMS * (STEPS + 1)], STREAMS).to(device)
        with backend("eager"):
            torchs = bits_per_character(learner.model, text, STEPS)
        with backend("auto"), nullcontext() if text.is_cuda else interpreter.interpret(seed):
            _, plan = both_plans(learner.model.recurrent, STREAMS)
            ours = bits_per_character(learner.model, text, STEPS)
        rows.append(
            {
                "model": learner.name,
                "path": in_words(plan),
                "bits/char, kernels": round(ours, 6),
                "bits/char, torch": round(torchs, 6),
                "difference": f"{ours - torchs:+.1e}",
            }
        )
    return pd.DataFrame(rows)
