"""The compile gate: every config that the heuristic can choose compiles for every target, spills nothing, fits, uses
the matrix unit, keeps W_hh on chip for the whole sequence, and waits without a barrier. That blocks of PTX have the
layouts they need is part of compiling (see `kernels.layouts`).

A failure lists the problems, configs and targets that break the rule. `make test` judges a few problems, each on one
target, sixteen kernels; `make test-all` the report's quick grid on every target, and the whole of it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
import triton

from holdfast.autotune.candidates import choose
from holdfast.autotune.offline import REFERENCE_DEVICE, TARGETS
from holdfast.bench.output.compile_report import (
    KINDS,
    MANY_FEATURES,
    PHASES,
    TORCHS,
    build_report,
    full_grid,
    quick_grid,
)
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.problem import Problem

Rule = Callable[[pd.DataFrame], pd.Series]


def compiles(kernels: pd.DataFrame) -> pd.Series:
    return kernels["note"].isna()


def spills_nothing(kernels: pd.DataFrame) -> pd.Series:
    """With features, or in a cell of two products, something may be put aside before the loop: a step costs no more."""
    is_plain = (kernels["features"] == "") & kernels["cell"].isin(TORCHS)
    return (kernels["spill_bytes"] == 0) | ~is_plain


def spills_hardly_in_the_time_loop(kernels: pd.DataFrame) -> pd.Series:
    """A few local accesses, cached in L1, among the thousands of instructions of a step with every feature at once."""
    return kernels["spills_in_loop"] <= 24


def polls_in_one_round_trip(kernels: pd.DataFrame) -> pd.Series:
    """Tested number by number, a poll of LSTM H=768 went to L2 nine times in a row. With a counter the team's numbers
    are read chunk by chunk, after the wait."""
    return (kernels["poll_round_trips"].fillna(0) <= 1) | ~_by_sentinel(kernels)


def _by_sentinel(kernels: pd.DataFrame) -> pd.Series:
    return kernels["config"].str.contains("exchange=dataflow")


def _spins(kernels: pd.DataFrame) -> pd.Series:
    """Where every thread waits for itself (see `describe.exchange_of`)."""
    whole_words = (kernels["dtype"] == "float32") | (kernels["hidden_size"] // kernels["num_heads"] % 2 == 0)
    return kernels["target"].str.startswith("sm_") & _by_sentinel(kernels) & whole_words


def spins_without_a_barrier(kernels: pd.DataFrame) -> pd.Series:
    """The portable poll has three: 393 issue cycles of LSTM H=768 on sm_90, where 363 without one are a whole poll."""
    return (kernels["poll_barriers"] == 0) | ~_spins(kernels)


def waits_for_nothing_but_the_team(kernels: pd.DataFrame) -> pd.Series:
    """Loaded before the wait, the next step's inputs share a scoreboard with the poll, whose first test then waits for
    device memory."""
    return (kernels["shared_scoreboards"] == 0) | ~_spins(kernels)


def fits_in_shared_memory(kernels: pd.DataFrame) -> pd.Series:
    return kernels["shared_bytes"] <= kernels["shared_limit"]


def uses_the_matrix_unit(kernels: pd.DataFrame) -> pd.Series:
    return kernels["matrix_instructions"] > 0


def loads_no_weights_in_the_time_loop(kernels: pd.DataFrame) -> pd.Series:
    return kernels["weight_loads_in_loop"] == 0


def all_programs_are_resident(kernels: pd.DataFrame) -> pd.Series:
    """Programs of the single-CTA regime never wait for each other: any number may queue."""
    return (kernels["regime"] == "single_cta") | (kernels["grid"] <= kernels["resident_programs"])


REPORT = Path(__file__).parent.parent / "bench/results/offline/compile_report.csv"
SAME = ["cell", "phase", "dtype", "precision", "hidden_size", "num_heads", "batch", "directions", "keep"]
SAME += ["target", "features", "config"]
"""The columns that tell a kernel and its config."""


@cache
def committed() -> pd.DataFrame:
    """Issue cycles of the committed report's kernels; none where it was made with another Triton."""
    report = pd.read_csv(REPORT, keep_default_na=False)[[*SAME, "issue_cycles"]].astype(str)
    return report if triton.__version__ in REPORT.with_name("README.md").read_text() else report[:0]


def takes_no_longer_than_it_did(kernels: pd.DataFrame) -> pd.Series:
    """A step's issue cycles beside those of the committed report, of the same kernel, config and Triton.

    A change that saved LSTM 768 a dozen had cost GRU of 64 units a third, and another LSTM with lengths as much; it was
    seen when the report was made anew, two days later.
    """
    before = kernels[SAME].astype(str).merge(committed(), on=SAME, how="left")
    known = pd.to_numeric(before["issue_cycles"], errors="coerce").set_axis(kernels.index)
    return known.isna() | (kernels["issue_cycles"].astype(float) <= 1.05 * known)


RULES: tuple[Rule, ...] = (
    compiles,
    spills_nothing,
    spills_hardly_in_the_time_loop,
    polls_in_one_round_trip,
    spins_without_a_barrier,
    waits_for_nothing_but_the_team,
    fits_in_shared_memory,
    uses_the_matrix_unit,
    loads_no_weights_in_the_time_loop,
    all_programs_are_resident,
    takes_no_longer_than_it_did,
)


def broken(rule: Rule, kernels: pd.DataFrame) -> pd.DataFrame:
    """The rows that break a rule, in the columns that say why. What did not compile breaks only `compiles`."""
    judged = kernels if rule is compiles else kernels[compiles(kernels)]
    return judged[~rule(judged).astype(bool)].dropna(axis="columns", how="all")


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FEW = {
    # The tightest: each spilled on some target with some Triton while the others were clean.
    "sm_80": [
        Problem("rnn_tanh", FP32, 768, 16, precision="tf32", phase="backward"),
        Problem("rnn_relu", FP16, 64, 16),
    ],
    "sm_90": [
        Problem("gru_reset_before", FP32, 256, 16, precision="tf32", phase="backward"),
        Problem("lstm", BF16, 64, 16, phase="backward", features=MANY_FEATURES),
        Problem("lstm_peephole", BF16, 256, 16, phase="backward"),
    ],
    "sm_100": [
        Problem("rnn_tanh", BF16, 1000, 16),
        Problem("rnn_tanh", FP32, 1024, 16, precision="tf32"),
        Problem("slstm", BF16, 64, 16, phase="backward"),
    ],
    "gfx942": [
        Problem("gru", BF16, 256, 16, phase="backward", features=("lengths", "packed")),
        Problem("rnn_tanh", FP32, 100, 16),
    ],
}
GRIDS: dict[str, Callable[[str], Sequence[Problem]]] = {
    "few": FEW.__getitem__,
    "quick": lambda target: quick_grid(),
    "full": lambda target: full_grid(),
}


def test_the_few_have_some_of_everything():
    every = {problem for problems in FEW.values() for problem in problems}
    assert set(FEW) == set(TARGETS)
    assert every <= set(full_grid())
    assert {problem.cell for problem in every} == set(CELLS)
    assert {(problem.dtype, problem.precision) for problem in every} == set(KINDS)
    assert {problem.phase for problem in every} == set(PHASES)
    of_each = [{choose(problem, REFERENCE_DEVICE[target]).regime for problem in FEW[target]} for target in FEW]
    assert all("cooperative" in regimes for regimes in of_each)
    assert "single_cta" in set().union(*of_each)


@pytest.fixture(scope="module")
def kernels_of(compilers) -> Callable[[str, str], pd.DataFrame]:
    """Compile a grid for a target, once; the rows that run a kernel."""

    @cache
    def kernels(grid: str, target: str) -> pd.DataFrame:
        # One process, as another runs tests beside it; the whole of a grid has the machine to itself.
        rows = build_report([target], GRIDS[grid](target), compilers=compilers if grid == "few" else None)
        return rows[rows["regime"] != "eager"]

    return kernels


HOURS = pytest.mark.timeout(12 * 60 * 60)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "grid",
    [
        "few",
        pytest.param("quick", marks=(HOURS, pytest.mark.thorough)),
        pytest.param("full", marks=(HOURS, pytest.mark.slow)),
    ],
)
def test_kernel(grid, target, rule, kernels_of):
    kernels = kernels_of(grid, target)
    if grid != "few":
        assert set(kernels["regime"]) == {"single_cta", "cooperative"}
        assert set(kernels["phase"]) == {"forward", "backward"}
        assert set(kernels["cell"]) >= set(CELLS)
    failing = broken(rule, kernels)
    assert failing.empty, f"{rule.__name__} fails on {target}:\n{failing.to_string()}"
