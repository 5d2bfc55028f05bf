"""A long, wide call whose projections are made in chunks of steps: the same bits, and less memory."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from holdfast.bench.check.layer import Case, Layer
from holdfast.bench.check.run import DTYPES, REGIMES
from holdfast.kernels import chunks, gemm
from holdfast.kernels import layer as kernel_layer
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.extras import Extras
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.layer import backward_layer, forward_layer
from holdfast.kernels.problem import Problem

CPU = torch.device("cpu")
FEW = ("rnn_tanh", "gru", "lstm")  # one state; one with W_hh h beside; two states. Two runs of 17 steps and more each.
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def results(case, layer, keep, extras):
    problem = replace(case.problem, features=extras.features)
    hx = list(layer.hx) if case.initial else None
    shared = (layer.x, layer.weights(CPU), hx)
    options = {"batch_first": case.batch_first, "reverse": case.reverse, "extras": extras}
    y, final, residuals = forward_layer(problem, case.config, *shared, keep=keep, **options)
    found = [y, *final, *residuals.kept]
    if keep != "nothing":
        dy, *d_final = layer.loss_weights()
        dy = dy.transpose(0, 1) if case.batch_first else dy
        backward = replace(problem, phase="backward")
        given = backward_layer(backward, case.config, *shared, y, residuals, dy, d_final, **options)
        found += [given.x, *given.initial, *(t for w in given.weights for t in w if t is not None)]
    return found


@pytest.fixture
def exact_projections(monkeypatch):
    """In float64: a library's GEMM may round a row otherwise among more or fewer others."""

    def double(weights):
        return [w._replace(**{name: t.double() for name, t in w._asdict().items() if t is not None}) for w in weights]

    def project_input(problem, x, weights, **options):
        return gemm.project_input(problem, x.double(), double(weights), **options).to(x.dtype)

    def project_state(problem, weights, history, *directions):
        initial = None if history.initial is None else [state.double() for state in history.initial]
        exact = history._replace(sent=history.sent.double(), initial=initial)
        return gemm.project_state(problem, double(weights), exact, *directions).to(history.sent.dtype)

    monkeypatch.setattr(kernel_layer, "project_input", project_input)
    monkeypatch.setattr(kernel_layer, "project_state", project_state)


@pytest.mark.usefixtures("exact_projections")
@pytest.mark.sampled(1)
@pytest.mark.parametrize("keep", ["nothing", "save", "recompute"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", [pytest.param(c, marks=() if c in FEW else pytest.mark.thorough) for c in CELLS])
def test_chunks_change_no_bit(cell, regime, keep, monkeypatch):
    """Forwards and backwards, with and without lengths, from either end; the last chunk is a short one."""
    directions, (hidden, heads) = random.choice((1, 2)), random.choice([(21, 1), (32, 1), (21, 3), (32, 2)])
    case = Case(
        cell,
        regime,
        random.choice(DTYPES),
        hidden_size=hidden,
        num_heads=heads,
        batch_size=random.choice((1, 3)),
        length=random.choice((17, 20)),
        directions=directions,
        initial=random.random() < 0.5,
        batch_first=random.random() < 0.5,
        reverse=directions == 1 and random.random() < 0.5,
    )
    lengths = torch.randint(0, case.length + 1, (case.batch_size,))
    extras = Extras(lengths if random.random() < 0.5 else None)
    layer, found, launches = Layer(case, seed=random.randrange(100)), [], []
    for bound in (2**40, 1):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", bound)
        with interpret(seed=1) as interpreter:
            found.append(results(case, layer, keep, extras))
        launches.append(interpreter.launches)
    assert launches[1] >= launches[0] - 1 + 2 * case.directions
    different = [i for i, pair in enumerate(zip(*found, strict=True)) if not torch.equal(*pair)]
    assert not different, (case, keep, extras.features, different)


@pytest.mark.parametrize("directions", [1, 2])
def test_projections_stay_within_the_bound(directions, monkeypatch):
    """Forwards gx, backwards gx and W_hh h + b_hh: of what `gemm` makes nothing larger lies in memory."""
    sizes = []

    def measured(make):
        def made(*arguments, **options):
            projection = make(*arguments, **options)
            sizes.append(projection.numel() * projection.element_size())
            return projection

        return made

    bound = 2 * 16 * 3 * 4 * 20 * 4  # two projections, 16 steps, 3 rows, float32
    monkeypatch.setattr(chunks, "CHUNK_BYTES", bound)
    monkeypatch.setattr(kernel_layer, "project_input", measured(gemm.project_input))
    monkeypatch.setattr(kernel_layer, "project_state", measured(gemm.project_state))
    case = Case("lstm", "single_cta", torch.float32, 20, 3, 40, directions=directions)
    with interpret():
        results(case, Layer(case, seed=0), "recompute", Extras())
    forwards = 4 if directions == 1 else 8
    assert max(sizes[:forwards]) <= bound
    pairs = zip(sizes[forwards::2], sizes[forwards + 1 :: 2], strict=True)
    assert max(gx + ga for gx, ga in pairs) <= bound


def test_which_calls_are_projected_in_chunks():
    """By default those whose projections pass half a gibibyte, in sixteens of steps."""
    wide = Problem("lstm", torch.bfloat16, 1024, 256)
    parts = chunks.chunks(wide, Extras(), 1024, 256, projections=1)
    assert [(part.first, part.end) for part in parts] == [(128 * i * 2, 128 * (i + 1) * 2) for i in range(4)]
    assert not chunks.chunks(wide, Extras(), 255, 256, projections=1)
    assert len(chunks.chunks(wide, Extras(), 1024, 256, projections=2)) == 8
    for features in [("resets",), ("lengths", "packed"), ("recurrent_dropout",), ("zoneout",)]:
        assert not chunks.chunks(replace(wide, features=features), Extras(), 1024, 256, projections=1)
    huge = chunks.chunks(replace(wide, batch_size=2**20), Extras(), 40, 2**20, projections=1)
    assert [part.steps for part in huge] == [16, 16, 8]
