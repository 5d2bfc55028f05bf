"""Triton's cache filled without a GPU, for the first minutes on one: what first light launches is compiled here.

Every call goes the whole way to Triton's own launcher, on the fake driver, so that what is compiled is what will be
launched. A kernel is found again under the same compiler alone: the same Triton, built for the same Python.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from triton import knobs
from triton.runtime import cache

from ...kernels.resources import DeviceLimits
from ..method import floor
from ..method.fake_driver import fake_gpu
from ..method.floor import Exchange, ResidentWeights
from .layer import OneLayer, portable_poll, way_of
from .polls import polls_of
from .shapes import EVERY, Shape
from .steps import WAYS, Row, Where, told_of_kernels


def key_of(folder: Path) -> str:
    """What Triton's cache knows the compiler in `folder` by: an unpacked wheel of Triton, for any Python.

    Raises FileNotFoundError where there is none.
    """
    found = folder / "triton" / "runtime" / "cache.py"
    if not found.exists():
        raise FileNotFoundError(
            f"{folder} should be an unpacked wheel of Triton, and has no {found.relative_to(folder)}"
        )
    # Triton's own function, told that it lies there: it hashes what lies beside it.
    code = cache.triton_key.__wrapped__.__code__
    return types.FunctionType(code, vars(cache) | {"__file__": str(found)})()


@contextmanager
def cached_in(folder: Path, key: str | None) -> Iterator[None]:
    """Triton's cache is this folder; with a key, what is compiled is known as that compiler's."""
    with knobs.cache.scope():
        knobs.cache.dir = str(folder)
        if key is None:
            yield
            return
        with (
            patch.object(cache, "triton_key", lambda: key),
            patch.object(triton.compiler.compiler, "triton_key", lambda: key, create=True),
        ):
            yield


def compile_all(limits: DeviceLimits, shapes: Sequence[Shape] = EVERY, ways: Sequence[str] = WAYS) -> Iterator[Row]:
    """Compile what first light launches on such a GPU; a row for each layer and way."""
    where = Where(torch.device("cpu"), rehearse=False)
    hits: list[bool] = []
    with fake_gpu(limits), patch.object(floor, "from_device", lambda device: limits), told_of_kernels(hits.append):
        for shape in shapes:
            layer = OneLayer(where.case(*shape, 2), where.device)
            for name in ways:
                way = way_of(name, layer.problem, limits)
                if way is None:
                    continue
                hits.clear()
                with portable_poll(name == "portable"):
                    layer.forward(way)
                    layer.training(way)
                    for config in (way.forward, way.backward):
                        if config.regime == "cooperative":
                            Exchange(layer.problem, config, where.device, 2).run()
                        ResidentWeights(layer.problem, config, where.device, 2).run()
                if name == "portable":
                    polls_of(layer.problem, way.forward, where.device, 2)
                yield {"case": str(layer.case), "way": name, "config": str(way.forward), "kernels": len(hits)} | {
                    "found": sum(hits)
                }
