"""Calls that hypothesis draws, options x shapes x dtypes x features, on torch's own op and through interpreted kernels,
against a plain loop in float64: values and gradients. A failing call is shown with its seed and what reproduces it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from plain_loop import compare, draw_case

import holdfast
from holdfast.autotune.pin import kernels_where_they_can, pinned
from holdfast.bench.check.features import small_config
from holdfast.kernels.interpreter import interpret

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(autouse=True)
def _products_in_float32(monkeypatch):
    """The eager path on a CPU has no TF32 that kernels could be compared with."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")


QUICK = {"eager": 30, "kernels": 3}
FULL = {"eager": 1400, "kernels": 600}
"""2,000 calls between them. FUZZ_CASES in the environment: so many of each."""

DTYPES = {"eager": [torch.float64, torch.float32, torch.bfloat16], "kernels": [torch.float32, torch.bfloat16]}
REGIMES = [None, "single_cta", "dataflow", "barrier"]
"""None: what the heuristic says."""


def fuzz(path: str, cases: int) -> None:
    cases = int(os.environ.get("FUZZ_CASES", cases))

    # Not shrunk: an interpreted call takes seconds, and the drawn ones are small.
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(
        st.randoms(use_true_random=False),
        st.integers(0, 2**31 - 1),
        st.sampled_from(DTYPES[path]),
        st.sampled_from(REGIMES),
        st.sampled_from([None, "save", "recompute"]),
    )
    def one(pick: Random, seed: int, dtype: torch.dtype, regime: str | None, keep: str | None) -> None:
        case = draw_case(seed, pick)
        case.module.keep = keep
        note(f"{case} {dtype} {path} {regime} keep={keep} seed={seed}")
        kernels = path == "kernels"
        config = small_config(regime, case.module.hidden_size) if kernels and regime else None
        with (
            interpret(seed) if kernels else nullcontext(),
            kernels_where_they_can(),
            pinned(config),
            holdfast.backend("auto" if kernels else "eager"),
        ):
            compare(case, dtype=dtype, beside_the_loop=not kernels)

    one()


@pytest.mark.parametrize("path", QUICK)
def test_random_calls(path):
    fuzz(path, QUICK[path])


@pytest.mark.slow
@pytest.mark.parametrize("path", FULL)
def test_two_thousand_random_calls(path):
    fuzz(path, FULL[path])
