"""What the two ops are told besides tensors, stated once: their schemas are made from these records, and the ops, their
fake kernels and the derivative take the arguments apart with `told`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast, get_type_hints

import torch
from torch import Tensor

from ...kernels.extras import Extras
from ...kernels.problem import Phase, Precision, Problem

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Not as ScalarType: AOTInductor of torch 2.11.0 hands that over in torch.export's numbers where an op reads PyTorch's
# own, so that float32 arrived as float64 and bfloat16 as quint8.
DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES}

_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class Options(NamedTuple):
    """What both ops compute.

    cell:         a name that `kernels.cell_spec.find_cell` knows.
    directions:   1, or 2 side by side.
    batch_first:  x is [B, T, I].
    dtype:        what to compute in, "float32", "bfloat16" or "float16": x, weights and initial are cast to it, and
                  all results are of it.
    precision:    see `kernels.problem.Precision`.
    """

    cell: str
    directions: int
    batch_first: bool
    dtype: str
    precision: str

    def problem(self, x: Tensor, weights: Sequence[Tensor], extras: Extras, phase: Phase) -> Problem:
        batch_size = self.batch_size(x, extras)
        dtype, precision = dtype_named(self.dtype), cast(Precision, self.precision)
        from ...kernels.cell_spec import find_cell

        rows, head_size = weights[1].shape
        hidden_size = rows // find_cell(self.cell).gates
        sizes = (hidden_size, batch_size, self.directions)
        heads = hidden_size // head_size
        return Problem(self.cell, dtype, *sizes, precision, phase, extras.features, num_heads=heads)

    def batch_size(self, x: Tensor, extras: Extras) -> int:
        packed = extras.starts is not None
        return cast(Tensor, extras.lengths).shape[0] if packed else x.shape[0 if self.batch_first else 1]

    def steps(self, x: Tensor, extras: Extras) -> int:
        return x.shape[1 if self.batch_first else 0] if extras.starts is None else extras.starts.shape[0]


def told(arguments: Sequence[Any]) -> tuple[Options, Any, Extras]:
    """What stands behind an op's tensors: the options, its own argument (keep or needs_dx), the extras, if any."""
    own, end = len(Options._fields), len(Options._fields) + 1 + len(Extras._fields)
    return Options(*arguments[:own]), arguments[own], Extras(*arguments[own + 1 : end])


def told_wanted(arguments: Sequence[Any]) -> int:
    """What stands last behind `layer_backward`'s tensors: which gradients are wanted, all where it is left out."""
    last = len(Options._fields) + 1 + len(Extras._fields)
    return arguments[last] if len(arguments) > last else -1


def dtype_named(name: str) -> torch.dtype:
    """The dtype that an op was asked to compute in. Raises ValueError where no kernel has it."""
    if name not in _BY_NAME:
        raise ValueError(f"dtype should be one of {', '.join(map(repr, _BY_NAME))}, got {name!r}")
    return _BY_NAME[name]


# torch.library.infer_schema does not know the type of an optional list, nor a default for a list.
_TYPES = {
    str: "str",
    int: "SymInt",
    bool: "bool",
    float: "float",
    Sequence[float]: "float[]",
    Tensor | None: "Tensor?",
    Sequence[Tensor] | None: "Tensor[]?",
}


def schema(tensors: str, own: str, last: str = "") -> str:
    """The schema of an op: its tensors, the options, its own argument, the extras, and what was added since."""
    return f"({tensors}, {declared(Options)}, {own}, {declared(Extras)}{last}) -> Tensor[]"


def declared(record: type[NamedTuple]) -> str:  # type: ignore[valid-type]
    """The fields of a record as arguments of a schema."""
    defaults = record._field_defaults
    return ", ".join(
        f"{_TYPES[kind]} {name}" + (f"={defaults[name]}" if name in defaults else "")
        for name, kind in get_type_hints(record).items()
    )
