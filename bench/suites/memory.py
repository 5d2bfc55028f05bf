"""Bytes held between a forward and a backward pass, inputs and outputs not counted.

On a GPU measured by torch's allocator. Elsewhere computed: what the plan of an H100 says holdfast keeps; what cuDNN
keeps, its reserve, is known to cuDNN alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..method.case import Case
from ..method.numbers import TORCH, Numbers
from ..providers.holdfast import HOLDFAST
from .entries import Entry
from .session import Session

CASES = (
    Case("lstm", torch.float16, 768, 16, 1024),
    Case("gru", torch.bfloat16, 768, 16, 1024),
    Case("rnn_tanh", torch.bfloat16, 768, 16, 1024),
    Case("lstm", torch.bfloat16, 512, 128, 512),
    Case("lstm", torch.bfloat16, 512, 32, 512, directions=2),
)


def run(session: Session) -> None:
    for entry in session.track([Entry(case, ()) for case in CASES], lambda entry: str(entry.case)):
        measured = session.device.type == "cuda"
        rows = measure(entry.case, session.device) if measured else compute(entry.case)
        base = {"phase": "training", **entry.case.columns()}
        session.results.add({**base, **row} for row in rows)


def compute(case: Case) -> Iterator[dict[str, object]]:
    """What holdfast's plan says of a batch that is never filled."""
    from ...kernels.interpreter import interpret

    factory: Any = HOLDFAST[case.cell]
    module = factory(case.inputs, case.hidden_size, bidirectional=case.directions == 2, dtype=case.dtype)
    x = torch.empty(case.length, case.batch_size, case.inputs, dtype=case.dtype)
    for keep in ("save", "recompute"):
        module.keep = keep
        with interpret():
            plan = module.explain(x)
        yield {
            "provider": f"holdfast {keep}",
            "bytes_held": plan.kept_bytes,
            "status": "computed",
            "note": "from the plan of an H100, not measured",
        }
    yield {"provider": "torch.nn", "status": "unavailable", "note": "cuDNN's reserve is measured on a GPU only"}


def measure(case: Case, device: torch.device) -> Iterator[dict[str, object]]:
    """torch's allocator before and after each pass."""
    numbers = Numbers(case, device)
    x = numbers.xs[0].requires_grad_()
    for name, factory, keep in (
        ("holdfast save", HOLDFAST[case.cell], "save"),
        ("holdfast recompute", HOLDFAST[case.cell], "recompute"),
        ("torch.nn", TORCH[case.cell], None),
    ):
        module = numbers.module(factory, case.dtype)
        if keep is not None:
            module.keep = keep
        held, peak = _bytes(module, x, numbers.dy)
        yield {"provider": name, "bytes_held": held, "bytes_peak": peak, "status": "ok"}
        del module


def _bytes(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[int, int]:
    """(held between the passes besides results, peak of both passes above what was there before)."""
    y, states = module(x)
    y.backward(dy)  # compiles, and makes the gradients, which stay
    del y, states
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y, states = module(x)
    results: list[Any] = [y, *(states if isinstance(states, tuple) else (states,))]
    held = torch.cuda.memory_allocated() - before - sum(t.nbytes for t in results)
    y.backward(dy)
    torch.cuda.synchronize()
    return held, torch.cuda.max_memory_allocated() - before
