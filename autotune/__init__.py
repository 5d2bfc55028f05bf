"""Which tiling a kernel runs with: `mode` says whether tuning results are used, and whether a layer may be tuned;
`first_use` whether a kernel has to have run beside torch's op before it serves a call.

Next to nothing is imported here: it costs nothing. README.md has the other files in the order of reading.
"""

from __future__ import annotations

from ..kernels.setting import Setting

__all__ = ["current_mode", "first_use", "mode"]


class mode(  # noqa: N801  used as a function: `autotune.mode("off")`, `with autotune.mode("off"): ...`
    Setting, title="autotune.mode", names=("off", "use", "tune-on-miss"), variable="HOLDFAST_AUTOTUNE", default="use"
):
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


class first_use(  # noqa: N801  used as a function, as `holdfast.backend`
    Setting, title="first_use", names=("first", "off", "always"), variable="HOLDFAST_FIRST_USE", default="first"
):
    """Choose whether a kernel runs a few steps beside torch's own op before it serves its first call.

    "first":   once for each kernel, which the user's cache remembers with GPU, driver, versions and the kernels'
               source; not in the interpreter, which has no compiler that could be wrong. The default.
    "off":     never; nor is asked what the cache remembers.
    "always":  once in every process, whatever the cache says, in the interpreter too.

    A kernel that is wrong, not the same twice, or fails, is not used: torch's own op runs in its place, `explain` says
    "failed_first_use", a warning names a report to send. While a CUDA graph is captured nothing is tried: a kernel that
    no call before it has tried leaves such a call to torch's op.

    A plain call holds for the current thread or asyncio task from then on; a `with` block puts the previous choice
    back. Other threads start from the environment variable HOLDFAST_FIRST_USE, or "first".

    Raises ValueError for any other name.
    """


def current_mode() -> str:
    """The choice in force here."""
    return mode._current.get()
