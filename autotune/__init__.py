"""Which tiling a kernel runs with: `mode` says whether tuning results are used, and whether a layer may be tuned.

Nothing else is imported here: it costs nothing. README.md has the other files in the order of reading.
"""

from __future__ import annotations

import os
from contextvars import ContextVar

__all__ = ["current_mode", "mode"]

MODES = ("off", "use", "tune-on-miss")
ENVIRONMENT_VARIABLE = "HOLDFAST_AUTOTUNE"


def _valid(name: object, source: str) -> str:
    if name not in MODES:
        raise ValueError(f"{source} should be one of {', '.join(map(repr, MODES))}, got {name!r}")
    return str(name)


_from_environment = _valid(os.environ.get(ENVIRONMENT_VARIABLE, "use"), f"environment variable {ENVIRONMENT_VARIABLE}")
_current: ContextVar[str] = ContextVar("holdfast.autotune.mode", default=_from_environment)


class mode:  # noqa: N801  used as a function: `autotune.mode("off")`, `with autotune.mode("off"): ...`
    """Choose where the kernels' configs come from, until further notice or for a `with` block.

    "off":           the heuristic.
    "use":           this user's tuning results, those shipped for this GPU, else the heuristic; never tunes. The
                     default.
    "tune-on-miss":  as "use", but a layer that has no result is tuned when it first runs on a GPU (a minute or so,
                     see `on_miss.BUDGET_S`), never while a CUDA graph is captured. Under torch.distributed rank 0
                     tunes and all ranks use its result.

    A plain call holds for the current thread or asyncio task from then on; a `with` block puts the previous choice
    back. Other threads start from the environment variable HOLDFAST_AUTOTUNE, or "use".

    Raises ValueError for any other name.
    """

    def __init__(self, name: str) -> None:
        self.name = _valid(name, "autotune.mode")
        self._previous = _current.get()
        _current.set(self.name)

    def __enter__(self) -> mode:
        _current.set(self.name)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.set(self._previous)

    def __repr__(self) -> str:
        return f"holdfast.autotune.mode({self.name!r})"


def current_mode() -> str:
    """The choice in force here."""
    return _current.get()
