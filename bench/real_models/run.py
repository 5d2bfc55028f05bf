"""Each model as it is, converted, and through the kernels: what changes."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from ...cells.backend import backend
from ...cells.convert import convert
from ...kernels import interpreter
from .models import MODELS, Answer, RealModel


def run_real_models(
    folder: Path, *, quick: bool = False, seed: int = 0, console: Console | None = None
) -> pd.DataFrame:
    """A row a model of `compared`, and the readings on the console.

    folder:  where the packages are installed.
    quick:   shorter inputs.
    seed:    of the interpreter's schedule.
    """
    rows = []
    for kind in MODELS:
        model = kind(folder, quick)
        row, reading = compared(model, seed)
        rows.append(row)
        if console is not None:
            console.print(f"{model.package}: {reading}", markup=False)
    return pd.DataFrame(rows)


@torch.no_grad()
def compared(real: RealModel, seed: int = 0) -> tuple[dict[str, object], str]:
    """What becomes of the model's answers.

    The row: package, licence, layers; converted ("same bits" or "wrong"); kernels ("same reading" or "wrong": another
    one, or an error of more than four times torch's and one rounding: twice as in the rest of the benchmark, and twice
    for one input's single largest error); error of the kernels and of torch (the largest against float64, as a share of
    the largest number); the package's own code ("same reading", "wrong", or empty where it is torch.nn itself).

    Float32 products are not rounded to TF32, as these models answer on a CPU. Without a GPU the kernels run in the
    interpreter.
    """
    torchs = real.answer(real.model)
    exact = real.answer(deepcopy(real.model).double())
    converted = convert(deepcopy(real.model))
    with backend("eager"):
        ours = real.answer(converted)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        converted = converted.cuda()
    where = nullcontext() if on_gpu else interpreter.interpret(seed)
    with torch.backends.cudnn.flags(allow_tf32=False), backend("triton"), where:
        kernels = real.answer(converted)
    own = real.packages_own()
    same_bits = torch.equal(ours.numbers, torchs.numbers) and ours.reading == torchs.reading
    error, torchs_error = _distance(kernels, exact), _distance(torchs, exact)
    row: dict[str, object] = {
        "package": real.package,
        "licence": real.licence,
        "layers": real.layers,
        "converted": "same bits" if same_bits else "wrong",
        "kernels": _same(kernels, torchs) if error <= 4 * torchs_error + torch.finfo(torch.float32).eps else "wrong",
        "error of the kernels": f"{error:.1e}",
        "error of torch": f"{torchs_error:.1e}",
        "the package's own code": "" if own is None else _same(own, torchs),
    }
    return row, torchs.reading


def _same(answer: Answer, other: Answer) -> str:
    return "same reading" if answer.reading == other.reading else "wrong"


def _distance(answer: Answer, exact: Answer) -> float:
    if answer.numbers.shape != exact.numbers.shape:
        return float("inf")
    return float((answer.numbers.double() - exact.numbers).abs().max() / exact.numbers.abs().max())
