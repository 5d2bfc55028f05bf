"""The compile gate: every config that the heuristic can choose compiles for every target, spills nothing, fits, uses
the matrix unit, and keeps W_hh on chip for the whole sequence.

A failure lists the problems, configs and targets that break the rule.
"""

from collections.abc import Callable

import pandas as pd
import pytest

from holdfast.autotune.targets import TARGETS
from holdfast.bench.output.compile_report import TORCHS, build_report, full_grid, quick_grid
from holdfast.kernels.cell_spec import CELLS

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
    """Tested number by number, a poll of LSTM H=768 went to L2 nine times in a row."""
    return kernels["poll_round_trips"] <= 1


def fits_in_shared_memory(kernels: pd.DataFrame) -> pd.Series:
    return kernels["shared_bytes"] <= kernels["shared_limit"]


def uses_the_matrix_unit(kernels: pd.DataFrame) -> pd.Series:
    return kernels["matrix_instructions"] > 0


def loads_no_weights_in_the_time_loop(kernels: pd.DataFrame) -> pd.Series:
    return kernels["weight_loads_in_loop"] == 0


def all_programs_are_resident(kernels: pd.DataFrame) -> pd.Series:
    """Programs of the single-CTA regime never wait for each other: any number may queue."""
    return (kernels["regime"] == "single_cta") | (kernels["grid"] <= kernels["resident_programs"])


RULES: tuple[Rule, ...] = (
    compiles,
    spills_nothing,
    spills_hardly_in_the_time_loop,
    polls_in_one_round_trip,
    fits_in_shared_memory,
    uses_the_matrix_unit,
    loads_no_weights_in_the_time_loop,
    all_programs_are_resident,
)


def broken(rule: Rule, kernels: pd.DataFrame) -> pd.DataFrame:
    """The rows that break a rule, in the columns that say why. What did not compile breaks only `compiles`."""
    judged = kernels if rule is compiles else kernels[compiles(kernels)]
    return judged[~rule(judged).astype(bool)].dropna(axis="columns", how="all")


@pytest.fixture(scope="session")
def kernels_of() -> Callable[[str, bool], pd.DataFrame]:
    """Compile the quick or the full grid for a target, once a session; only rows that run a kernel."""
    done: dict[tuple[str, bool], pd.DataFrame] = {}

    def kernels(target: str, quick: bool) -> pd.DataFrame:
        if (target, quick) not in done:
            report = build_report([target], quick_grid() if quick else full_grid())
            done[target, quick] = report[report["regime"] != "eager"]
        return done[target, quick]

    return kernels


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("target", TARGETS)
def test_kernel(target, rule, kernels_of):
    kernels = kernels_of(target, True)
    assert set(kernels["regime"]) == {"single_cta", "cooperative"}
    assert set(kernels["phase"]) == {"forward", "backward"}
    assert set(kernels["cell"]) == set(CELLS)
    failing = broken(rule, kernels)
    assert failing.empty, f"{rule.__name__} fails on {target}:\n{failing.to_string()}"


@pytest.mark.slow
@pytest.mark.timeout(3 * 60 * 60)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("target", TARGETS)
def test_kernel_of_the_full_grid(target, rule, kernels_of):
    failing = broken(rule, kernels_of(target, False))
    assert failing.empty, f"{rule.__name__} fails on {target}:\n{failing.to_string()}"
