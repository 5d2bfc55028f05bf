"""Which path the modules may take: the setting, its scope and the environment variable behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..kernels.setting import Setting

F = TypeVar("F", bound=Callable[..., Any])


class backend(  # noqa: N801  used as a function: `holdfast.backend("eager")`, `with holdfast.backend("eager"): ...`
    Setting, title="backend", names=("auto", "triton", "eager"), variable="HOLDFAST_BACKEND", default="auto"
):
    """Choose how holdfast's modules compute, until further notice or for a `with` block.

    "auto":    a kernel where one can run and should be faster, torch's own fused op elsewhere. The default.
    "triton":  a kernel, or RuntimeError with every reason why none can run.
    "eager":   always torch's own fused op.

    A plain call holds for the current thread or asyncio task from then on; a `with` block puts the previous
    choice back and may be nested. Other threads are not touched: they start from the environment variable
    HOLDFAST_BACKEND, or "auto". Under `torch.compile` the choice is read once, when a call is traced.

    Raises ValueError for any other name.
    """


def constant_when_traced(function: F) -> F:
    """Make Dynamo call `function` while tracing and keep the result: it cannot trace ContextVar.get.

    torch.compiler.assume_constant_result does the same, but imports all of Dynamo (seconds) to set this attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def current_backend() -> str:
    """The choice in force here: "auto", "triton" or "eager"."""
    return backend._current.get()
