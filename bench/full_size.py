"""Layers of useful size on a GPU: right first, then timed beside torch.nn in the same process.

The errors are against torch.nn in float64 on the same device, allowed what torch.nn's own error in the same dtype
allows (`judge.py`); a wrong kernel gets no time. Times are CUDA events around whole calls of the module, L2 cleared
before each (`triton.testing.do_bench`), medians with the 20th and 80th percentile.

    python -m holdfast.bench.full_size --out results        # on a GPU
    python -m holdfast.bench.full_size --rehearse            # tiny sizes through the interpreter, no times
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import triton
import typer
from rich.progress import track

from ..cells.backend import backend
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..cells.rnn import RNN
from ..kernels.interpreter import interpret
from ..kernels.tolerance import compare_all, worst
from .failing import check_settings
from .output.tables import print_table, to_markdown

_MODULES: dict[str, Any] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}


@dataclass(frozen=True)
class Shape:
    module: str
    dtype: torch.dtype
    hidden_size: int
    batch_size: int
    length: int
    bidirectional: bool = False


def shapes() -> Iterator[Shape]:
    """cuDNN's home ground first, then what it has no persistent kernel for."""
    for hidden, batch in itertools.product((768, 256, 512, 1024), (16, 64)):
        yield Shape("LSTM", torch.float16, hidden, batch, 1024)
    for module, dtype in itertools.product(("GRU", "LSTM", "RNN"), (torch.bfloat16, torch.float32)):
        for hidden, batch in ((768, 16), (256, 16), (768, 1), (512, 128), (64, 32), (1000, 7)):
            yield Shape(module, dtype, hidden, batch, 512)
    for module in ("GRU", "LSTM"):
        yield Shape(module, torch.bfloat16, 512, 16, 512, bidirectional=True)


def rehearsal() -> Iterator[Shape]:
    """The same code on sizes that the interpreter can do."""
    for module, dtype in (("LSTM", torch.float16), ("GRU", torch.bfloat16), ("RNN", torch.float32)):
        yield Shape(module, dtype, 20, 3, 3, bidirectional=module == "GRU")


Results = dict[str, torch.Tensor]


class Run:
    """One shape's modules and numbers on a device."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.ours = _MODULES[shape.module](
            shape.hidden_size, shape.hidden_size, bidirectional=shape.bidirectional, device=device, dtype=shape.dtype
        )
        self.x = torch.randn(shape.length, shape.batch_size, shape.hidden_size, device=device).to(shape.dtype)
        self.dy = torch.randn_like(self.ours_untouched(self.x))

    def ours_untouched(self, x: torch.Tensor) -> torch.Tensor:
        """y by torch's own op: its shape, and torch's side of the comparison."""
        with backend("eager"), torch.no_grad():
            return self.ours(x)[0]

    def forward(self, path: str) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with backend(path), torch.no_grad():  # type: ignore[arg-type]
                return self.ours(self.x)[0]

        return call

    def training(self, path: str) -> Callable[[], Results]:
        x = self.x.clone().requires_grad_()

        def call() -> Results:
            x.grad = None
            self.ours.zero_grad(set_to_none=True)
            with backend(path):  # type: ignore[arg-type]
                y, _ = self.ours(x)
                y.backward(self.dy)
            assert x.grad is not None
            named = {name: p.grad for name, p in self.ours.named_parameters() if p.grad is not None}
            return {"y": y.detach(), "x": x.grad} | named

        return call

    def reference(self) -> Results:
        """The same in float64."""
        exact = type(self.ours)(
            self.shape.hidden_size, self.shape.hidden_size, bidirectional=self.shape.bidirectional
        ).to(self.x.device, torch.float64)
        exact.load_state_dict(self.ours.state_dict())
        x = self.x.double().requires_grad_()
        with backend("eager"):
            y, _ = exact(x)
            y.backward(self.dy.double())
        assert x.grad is not None
        named = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
        return {"y": y.detach(), "x": x.grad} | named


def measure(shape: Shape, device: torch.device, timed: bool) -> dict[str, object]:
    """One row: the plan, the worst error over y and all gradients, and, where right, the times."""
    run = Run(shape, device)
    plan = run.ours.explain(run.x)
    row: dict[str, object] = {
        "module": shape.module,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "H": shape.hidden_size,
        "B": shape.batch_size,
        "T": shape.length,
        "D": 2 if shape.bidirectional else 1,
        "regime": plan.regime,
        "config": str(plan.config or "; ".join(map(str, plan.reasons))),
    }
    if plan.regime == "eager":
        return row
    reference, torchs, ours = run.reference(), run.training("eager")(), run.training("auto")()
    inference = run.forward("triton")()
    tf32 = shape.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    errors = compare_all(
        [inference, *(ours[name] for name in reference)],
        [torchs["y"], *(torchs[name] for name in reference)],
        [reference["y"], *reference.values()],
        torch.float16 if tf32 else shape.dtype,
    )
    found = worst(errors)
    row |= {
        "error": found.ours,
        "torch_error": found.torchs,
        "allowed": found.tolerance,
        "ok": all(e.ok for e in errors),
    }
    if timed and row["ok"]:
        for phase, call in (("forward", run.forward), ("training", run.training)):
            mine, theirs = (_quantiles(call(path)) for path in ("auto", "eager"))
            row |= {f"{phase}_us_per_step": round(mine[0] * 1e3 / shape.length, 3)}
            row |= {f"{phase}_p20_p80_ms": f"{mine[1]:.3f} {mine[2]:.3f}"}
            row |= {f"{phase}_torch_us_per_step": round(theirs[0] * 1e3 / shape.length, 3)}
            row |= {f"{phase}_ratio": round(theirs[0] / mine[0], 3)}
    return row


def _quantiles(call: Callable[[], object]) -> list[float]:
    return triton.testing.do_bench(call, warmup=25, rep=150, quantiles=[0.5, 0.2, 0.8])


def main(
    out: Annotated[Path, typer.Option(help="Folder for full_size.csv and full_size.md.")] = Path("full_size"),
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Tiny sizes through the interpreter, no times.")] = False,
) -> None:
    """Check and time layers of useful size. Example: python -m holdfast.bench.full_size --out results"""
    check_settings()
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("full_size: no GPU that torch can use; --rehearse runs tiny sizes in the interpreter.")
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if rehearse else "cuda")
    where: AbstractContextManager[object] = interpret(0) if rehearse else nullcontext()
    rows: list[dict[str, object]] = []
    with where:
        for shape in track(list(rehearsal() if rehearse else shapes()), "full size"):
            rows.append(measure(shape, device, timed=not rehearse))
            # Written after every row: a run that is cut off keeps what it has.
            pd.DataFrame(rows).to_csv(out / "full_size.csv", index=False)
    table = pd.DataFrame(rows)
    (out / "full_size.md").write_text(to_markdown(table))
    print_table(table.drop(columns="config"))
    if not table["ok"].fillna(True).astype(bool).all():
        raise SystemExit("full_size: a kernel differs from torch.nn by more than is allowed; see the table.")


if __name__ == "__main__":
    typer.run(main)
