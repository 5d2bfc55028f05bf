"""holdfast.patch: torch.nn's recurrent modules become holdfast's as they are built, for models that others build."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from threading import Lock
from typing import Any

from torch import nn

from .convert import Counterpart, holdfasts, swap
from .interop import Interop
from .report import TORCHS, class_name, why_left


class _Block:
    """One `with holdfast.patch()`: what becomes of a module that was just built, and what was seen so far."""

    def __init__(self, counterpart: Counterpart) -> None:
        self.counterpart = counterpart
        self.swapped = 0
        self.left: dict[str, str] = {}

    def take(self, module: nn.Module) -> None:
        swap([module], self.counterpart)
        if isinstance(module, Interop):
            self.swapped += 1
        elif (reason := why_left(module)) is not None:
            self.left[class_name(type(module))] = reason


_block: ContextVar[_Block | None] = ContextVar("holdfast.patch", default=None)
_lock = Lock()
_originals: dict[type[nn.Module], Callable[..., None]] = {}
_open_blocks = 0


@contextmanager
def patch(*, keep_isinstance: bool = False, subclasses: Collection[type[nn.Module]] = ()) -> Iterator[None]:
    """Within the block every torch.nn.RNN, GRU, LSTM and their cells are holdfast's as soon as they are built.

    For models that build their layers inside `fit` or `train`, where there is nothing to `convert` before:

        with holdfast.patch():
            model.fit(series)

    keep_isinstance, subclasses: as for `convert`, with the same price.

    It changes the constructors of torch.nn's classes, so it does not matter by which name or how early a class was
    imported. Weights, random numbers and arguments are torch.nn's, and the modules stay holdfast's after the block.

    Not reached: modules that exist already or are unpickled, copied or loaded from TorchScript (use `convert`);
    subclasses that are not named; other processes; other threads, which build torch.nn's modules, whether they were
    started in the block or run beside it. Blocks may be nested, the inner one's options hold; they end with an
    exception too. Warns where a block ends in which nothing was built.

    Raises TypeError where `subclasses` holds what is no subclass of torch.nn's.
    """
    block = _Block(holdfasts(keep_isinstance, subclasses))
    token = _block.set(block)
    _watch_constructors()
    try:
        yield
    finally:
        _unwatch_constructors()
        _block.reset(token)
    if not block.swapped:
        left = "".join(f"\n{name}  left: {reason}" for name, reason in block.left.items())
        warnings.warn(f"holdfast.patch swapped nothing: no layer of torch.nn's was built{left}", stacklevel=3)


def _watch_constructors() -> None:
    global _open_blocks
    with _lock:
        _open_blocks += 1
        if _open_blocks == 1:
            for kind in TORCHS:
                _originals[kind] = kind.__init__
                kind.__init__ = _taken_when_built(kind.__init__)  # type: ignore[method-assign]


def _unwatch_constructors() -> None:
    global _open_blocks
    with _lock:
        _open_blocks -= 1
        if _open_blocks == 0:
            for kind, original in _originals.items():
                kind.__init__ = original  # type: ignore[method-assign]
            _originals.clear()


def _taken_when_built(constructor: Callable[..., None]) -> Callable[..., None]:
    @wraps(constructor)
    def build(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        constructor(module, *args, **kwargs)
        block = _block.get()
        if block is not None:
            block.take(module)

    return build
