"""What every test runs under."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from sample import mark_the_rest

import holdfast
from holdfast.autotune.pin import kernels_where_they_can
from holdfast.autotune.processes import Compilers
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.ptx.executor import TARGETS, PtxExecutor, compiled


def pytest_configure(config: pytest.Config) -> None:
    # Tests run side by side, and their tensors are small: more threads would only wait for each other, here and in the
    # processes that tests start. Inductor's compilers would import torch once more each.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_the_rest(items)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _kernels_on_a_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests on a GPU are of the kernels, and their layers tiny: torch's own op would be the faster choice. What runs
    before a kernel's first use has tests of its own, and would count in launches and memory here."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    with kernels_where_they_can(), holdfast.first_use("off"):
        yield


@pytest.fixture(
    params=[
        "interpreted",
        pytest.param("compiled", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the kernels run: the concurrent interpreter, each test with a schedule of its own, and the GPU. The slow
    tests also run what is compiled, each for one of two GPUs, in the PTX executor."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    seed = sum(map(ord, request.node.name))
    with compiled(TARGETS[seed % 2], seed=seed) if request.param == "compiled" else interpret(seed=seed):
        yield torch.device("cpu")


@pytest.fixture(scope="session")
def compilers() -> Iterator[Compilers]:
    """One process that compiles, for all who need one: it takes seconds to start."""
    with Compilers(1) as compilers:
        yield compilers


@pytest.fixture(params=TARGETS)
def ptx_executor(request: pytest.FixtureRequest) -> Iterator[PtxExecutor]:
    """The kernels, compiled for each of these GPUs, run on CPU tensors in the PTX executor."""
    with compiled(request.param, seed=sum(map(ord, request.node.name))) as executor:
        yield executor


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are NaN, so that what a kernel fails to write is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
