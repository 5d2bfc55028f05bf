"""Functions that PTX approximates. Here they are computed in float64 and rounded, well within what PTX allows:

ex2.approx                2 ulp                      rcp.approx      1 ulp
lg2.approx                2**-22, relative outside (0.5, 2) and absolute inside
sqrt.approx, rsqrt.approx 2**-22.9 relative          tanh.approx     2**-11 relative
div.full, div.approx      2 ulp; div.approx by more than 2**126 is zero

So a result of the GPU differs from this one by these errors; tolerances leave room for them.
"""

from __future__ import annotations

import numpy as np

from .operation import Bits, Operation, Run, operation
from .rounding import Floats, flushing, read_f32, write_f32


def _approximation(run: Run) -> Run:
    def approximate(*sources: Bits) -> Bits:
        return write_f32(run(*(read_f32(source).astype(np.float64) for source in sources)))

    return approximate


def _reciprocal_root(x: Floats) -> Floats:
    return 1 / np.sqrt(x)


_OF_ONE: dict[str, Run] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": _reciprocal_root,
}

APPROXIMATE: dict[str, Operation] = {"tanh.approx.f32": operation(_approximation(np.tanh), ["f32"])}
for _name, _run in _OF_ONE.items():
    APPROXIMATE[f"{_name}.approx.f32"] = operation(_approximation(_run), ["f32"])
    APPROXIMATE[f"{_name}.approx.ftz.f32"] = operation(flushing(_approximation(_run)), ["f32"])


def _quotient(a: Floats, b: Floats) -> Floats:
    """Zero by 2**126 and more, and NaN where infinity is divided by that (PTX ISA, div)."""
    huge = (np.abs(b) > 2.0**126) & np.isfinite(b)
    return np.where(huge, a * 0, a / b)


for _suffix, _run in ((".f32", _approximation(_quotient)), (".ftz.f32", flushing(_approximation(_quotient)))):
    APPROXIMATE[f"div.approx{_suffix}"] = operation(_run, ["f32"] * 2)
APPROXIMATE["div.full.f32"] = operation(_approximation(np.divide), ["f32"] * 2)
APPROXIMATE["div.full.ftz.f32"] = operation(flushing(_approximation(np.divide)), ["f32"] * 2)
