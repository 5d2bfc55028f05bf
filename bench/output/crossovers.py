"""From how many steps on "auto" takes a kernel, by the models: the table of README.md.

python -m holdfast.bench.output.crossovers
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...autotune.candidates import choose
from ...autotune.faster import Asked, first_length
from ...kernels.config import Config
from ...kernels.problem import Precision, Problem
from ...kernels.resources import H100, DeviceLimits
from ..failing import check_settings

MODULES = {"RNN": "rnn_tanh", "GRU": "gru", "LSTM": "lstm"}
KINDS: dict[str, tuple[torch.dtype, Precision]] = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "fp32 as TF32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
HIDDEN_SIZES = (64, 128, 256, 512, 768, 1024)
BATCH_SIZES = (16, 64, 256)


def table(limits: DeviceLimits = H100) -> Iterator[str]:
    """Lines of Markdown: one layer, one direction, inference."""
    yield "| module | dtype | " + " | ".join(f"H={hidden}" for hidden in HIDDEN_SIZES) + " |"
    yield "|" + " --- |" * (2 + len(HIDDEN_SIZES))
    for module, cell in MODULES.items():
        for name, kind in KINDS.items():
            yield f"| {module} | {name} | " + " | ".join(_sizes(cell, *kind, h, limits) for h in HIDDEN_SIZES) + " |"


def _sizes(cell: str, dtype: torch.dtype, precision: Precision, hidden: int, limits: DeviceLimits) -> str:
    found = []
    for batch in BATCH_SIZES:
        problem = Problem(cell, dtype, hidden, batch, precision=precision)
        config = choose(problem, limits)
        if not isinstance(config, Config):
            return "no kernel"
        length = first_length(Asked(problem, 1, hidden), (config,), limits)
        found.append(f"{length:,}" if length else "never")
    return " / ".join(found)


if __name__ == "__main__":
    check_settings()
    print("\n".join(table()))
