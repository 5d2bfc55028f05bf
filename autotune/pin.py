"""What the caller has pinned: a config, for a block and for the backward pass of what ran in it; or only that kernels
run where they can.

Autograd carries the settings of the forward pass to the thread that runs the backward pass. A compiled graph has no
place for them: there the backward pass knows the forward one by the memory of y.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..kernels.config import Config

_pinned: ContextVar[Config | None] = ContextVar("holdfast_pinned_config", default=None)


@contextmanager
def pinned(config: Config | None) -> Iterator[None]:
    """Run every layer of this block with `config`, whatever has been tuned and whatever the heuristic would say, and
    their backward passes too, wherever they run."""
    token = _pinned.set(config)
    try:
        yield
    finally:
        _pinned.reset(token)


def pinned_config() -> Config | None:
    return _pinned.get()


_slower_too: ContextVar[bool] = ContextVar("holdfast_kernels_where_they_can", default=False)


@contextmanager
def kernels_where_they_can() -> Iterator[None]:
    """Run on a kernel in this block whatever one can run, also where torch's own op should be faster: for tests and for
    measurements. Unlike holdfast.backend("triton") it lets everything else fall back."""
    token = _slower_too.set(True)
    try:
        yield
    finally:
        _slower_too.reset(token)


def asks_for_the_faster() -> bool:
    """Whether the choice between a kernel and torch's own op is open."""
    return _pinned.get() is None and not _slower_too.get()


_of_memory: dict[int, tuple[StorageWeakRef, Config]] = {}


def remember_pin(y: torch.Tensor) -> None:
    """Note for y's backward pass which config is pinned here."""
    config = _pinned.get()
    if config is None:
        return
    for address in [address for address, (memory, _) in _of_memory.items() if memory.expired()]:
        del _of_memory[address]
    memory = StorageWeakRef(y.untyped_storage())
    _of_memory[memory.cdata] = memory, config


def pin_of(y: torch.Tensor) -> Config | None:
    """What was pinned where y was computed; None where nothing was."""
    if not _of_memory:
        return None
    # While a weak reference is held no other memory gets its address.
    memory, config = _of_memory.get(y.untyped_storage()._cdata, (None, None))
    return None if memory is None or memory.expired() else config
