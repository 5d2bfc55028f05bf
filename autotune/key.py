"""Under which name a tuning result is kept: the problem, with batch and length in coarse classes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from ..kernels.problem import Phase, Precision, Problem

LengthClass = Literal["short", "long"]

SHORT = 32
"""Sequences of fewer steps are short: there the launch and the first read of W_hh weigh as much as the steps."""

SMALLEST_BATCH = 16
"""Batches up to this are one class: no tile has fewer rows."""


@dataclass(frozen=True)
class Key:
    """What a config is tuned for. Lengths and batch sizes of one class share one result; the dtype is its name."""

    cell: str
    phase: Phase
    dtype: str
    precision: Precision
    hidden_size: int
    directions: int
    features: tuple[str, ...]
    batch: int
    length: LengthClass

    def asdict(self) -> dict[str, Any]:
        return asdict(self) | {"features": list(self.features)}

    @property
    def name(self) -> str:
        """Readable, short, and another for every other key: the digest covers what the words leave out."""
        text = f"{self.cell}-{self.phase}-{self.dtype}-h{self.hidden_size}-b{self.batch}-{self.length}"
        digest = hashlib.sha256(json.dumps(self.asdict(), sort_keys=True).encode()).hexdigest()[:8]
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in text) + f"-{digest}"


def key_of(problem: Problem, length: int | None = None) -> Key:
    """The key of a problem; without a length, that of long sequences."""
    return Key(
        problem.cell,
        problem.phase,
        str(problem.dtype).removeprefix("torch."),
        problem.precision,
        problem.hidden_size,
        problem.directions,
        problem.features,
        batch_class(problem.batch_size),
        length_class(length),
    )


def batch_class(batch_size: int) -> int:
    """The largest batch of the class: 16, 32, 64, ... A result is tuned for that batch."""
    # int: torch.jit.trace has tensors for sizes.
    return max(SMALLEST_BATCH, 1 << (int(batch_size) - 1).bit_length()) if batch_size > 0 else SMALLEST_BATCH


def length_class(length: int | None) -> LengthClass:
    return "short" if length is not None and length < SHORT else "long"


def problem_of(key: Key) -> Problem:
    """The problem that stands for a class: its largest batch."""
    return Problem(
        key.cell,
        getattr(torch, key.dtype),
        key.hidden_size,
        key.batch,
        key.directions,
        key.precision,
        key.phase,
        key.features,
    )
