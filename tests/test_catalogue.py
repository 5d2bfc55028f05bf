"""The published cells of cells/catalogue: each equals its paper's formula, written out here row by row from its own
matrices, in values and gradients, in every regime; and another package's cells where that is installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import holdfast
from holdfast.autotune.pin import pinned
from holdfast.bench.method.judge import compare_all
from holdfast.bench.output.atlas import catalogue_table
from holdfast.bench.output.tables import to_markdown
from holdfast.cells.catalogue import CATALOGUE
from holdfast.cells.eager.reference import REFERENCES, reference_of
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.resources import H100

CONFIGS = {
    "single_cta": Config("single_cta", 16, 32, 32),
    "dataflow": Config("cooperative", 16, 16, 32, exchange="dataflow"),
    "barrier": Config("cooperative", 16, 16, 32, exchange="barrier"),
}
S, TANH = torch.sigmoid, torch.tanh


@pytest.fixture(autouse=True, scope="module")
def forget():
    """What the tests take from the catalogue is as if it had never been asked for."""
    known = set(CELLS)
    yield
    for name in set(CELLS) - known:
        del CELLS[name], REFERENCES[name]
        sys.modules.pop(f"holdfast.cells.catalogue.{name}", None)


# One step of one row. w(k), u(k, h) and so on: gate k's W_ih x + b_ih, and its W_hh h + b_hh.


def janet(w, u, h):
    s, g = w(0) + u(0, h), TANH(w(1) + u(1, h))
    return (S(s) * h + (1 - S(s - 1)) * g,)


def lem(w, u, y, z):
    s, r = S(w(0) + u(0, y)), S(w(1) + u(1, y))
    z = (1 - s) * z + s * TANH(w(2) + u(2, y))
    return (1 - r) * y + r * TANH(w(3) + u(3, z)), z


def ligru(w, u, h):
    z = S(w(0) + u(0, h))
    return (z * h + (1 - z) * torch.relu(w(1) + u(1, h)),)


def mgu(w, u, h):
    f = S(w(0) + u(0, h))
    return ((1 - f) * h + f * TANH(w(1) + u(1, f * h)),)


def nbrc(w, u, h):
    a, c = 1 + TANH(w(0) + u(0, h)), S(w(1) + u(1, h))
    return (c * h + (1 - c) * TANH(w(2) + a * h),)


def sublstm(w, u, h, c):
    i, f, z, o = (S(w(k) + u(k, h)) for k in range(4))
    c = f * c + z - i
    return S(c) - o, c


def ugrnn(w, u, h):
    c, g = TANH(w(0) + u(0, h)), S(w(1) + u(1, h))
    return (g * h + (1 - g) * c,)


FORMULAS = {f.__name__: f for f in (janet, lem, ligru, mgu, nbrc, sublstm, ugrnn)}


def by_the_formula(name: str, module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """y and the final states of one layer that walks forwards from zeros."""
    gates = reference_of(name).gates
    w_ih, b_ih, w_hh, b_hh = (
        module.get_parameter(f"{p}_l0").chunk(gates) for p in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    )
    ys, finals = [], []
    for row in x.unbind(1):
        states = (x.new_zeros(module.hidden_size),) * module.n_states
        hs = []
        for step in row:
            states = FORMULAS[name](
                lambda k, step=step: w_ih[k] @ step + b_ih[k], lambda k, h: w_hh[k] @ h + b_hh[k], *states
            )
            hs.append(states[0])
        ys.append(torch.stack(hs))
        finals.append(states)
    return [torch.stack(ys, 1), *(torch.stack(each).unsqueeze(0) for each in zip(*finals, strict=True))]


def by_the_module(name: str, module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    y, hx = module(x)
    return [y, *(hx if isinstance(hx, tuple) else (hx,))]


def results(run, name, module, x):
    """Values, and the gradients of x and all parameters."""
    x = x.clone().requires_grad_()
    found = run(name, module, x)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in found]
    return [*found, *torch.autograd.grad(found, [x, *module.parameters()], weights)]


def lines_of_code(path: Path) -> int:
    """Without the docstring and empty lines."""
    text = path.read_text(encoding="utf-8")
    return sum(bool(line.strip()) for line in text[text.index('"""', 3) + 3 :].splitlines())


def test_the_catalogue_is_all_there():
    assert set(CATALOGUE) == set(FORMULAS)
    page = importlib.import_module("holdfast.cells.catalogue").__doc__
    for name in CATALOGUE:
        reference = reference_of(name)
        products = 1 if CELLS[name].inner is None else 2
        assert f"| {reference.gates} | {reference.states} | {products} |" in page[page.index(f"| `{name}` |") :]
        module = sys.modules[f"holdfast.cells.catalogue.{name}"]
        assert "arXiv:" in module.__doc__ or "doi:" in module.__doc__
        assert lines_of_code(Path(module.__file__)) <= 30


@pytest.mark.thorough
def test_the_page_s_table_is_the_heuristics():
    page = Path(__file__).parents[1] / "cells" / "own_cell.md"
    assert to_markdown(catalogue_table(H100)) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CATALOGUE)
def test_plain_steps_equal_the_formula(name):
    module, x = holdfast.Recurrent(name, 3, 5).double(), torch.randn(4, 2, 3, dtype=torch.float64)
    both = results(by_the_module, name, module, x), results(by_the_formula, name, module, x)
    for found, right in zip(*both, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_kernels_equal_the_formula(name, config, device):
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    try:
        module, x = holdfast.Recurrent(name, 3, 20), torch.randn(3, 2, 3)
        plain = results(by_the_formula, name, module, x)
        exact = results(by_the_formula, name, module.double(), x.double())
        with holdfast.backend("triton"), pinned(config):  # a kernel or an error
            found = results(by_the_module, name, module.float().to(device), x.to(device))
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before
    # Three TF32 products keep 22 bits.
    for index, errors in enumerate(compare_all([t.cpu() for t in found], plain, exact, torch.float32, 2.0**-22)):
        assert errors.ok, f"{index}: {errors}"


@pytest.mark.parametrize("name", ["janet", "ligru", "mgu", "ugrnn"])
def test_equals_another_package(name):
    """torchrecurrent; its LEM multiplies the z of the step before, which is not the paper's equation 3."""
    theirs = pytest.importorskip("torchrecurrent")
    kind = {"janet": "JANETCell", "ligru": "LiGRUCell", "mgu": "MGUCell", "ugrnn": "UGRNNCell"}[name]
    module, cell = holdfast.Recurrent(name, 3, 5).double(), getattr(theirs, kind)(3, 5).double()
    with torch.no_grad():
        for parameter in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, parameter).copy_(module.get_parameter(f"{parameter}_l0"))
    x, h = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64)
    y, _ = module(x, h)
    state = (h[0], h[0]) if name == "janet" else h[0]
    for ours, step in zip(y, x, strict=True):
        state = cell(step, state)
        torch.testing.assert_close(ours, state[0] if name == "janet" else state, rtol=1e-12, atol=1e-12)
