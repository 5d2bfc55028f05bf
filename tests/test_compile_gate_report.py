"""The compile report's machinery: shared kernels, failures that name themselves, and the files it writes."""

import os
from dataclasses import replace

import pandas as pd
import pytest
import torch

from holdfast.autotune.compile_many import Request, compile_many
from holdfast.autotune.processes import Compilers
from holdfast.bench.output import compile_report
from holdfast.bench.output.compile_report import COLUMNS, build_report, full_grid, quick_grid, write_csv, write_markdown
from holdfast.kernels.config import Config
from holdfast.kernels.plan import Reason
from holdfast.kernels.problem import Problem

SMALL = Problem("rnn_tanh", torch.bfloat16, hidden_size=16, batch_size=4)
CONFIG = Config("single_cta", BLOCK_B=16, BLOCK_H=16, BLOCK_K=16)


class ProblemThatKillsTheCompiler(Problem):
    def __reduce__(self):
        """Ends the process that receives it, as a failed assertion inside LLVM would."""
        return os._exit, (1,)


def test_problems_that_need_the_same_kernel_share_it(compilers):
    calls: list[tuple[int, int]] = []
    batches = [Request(replace(SMALL, batch_size=batch), CONFIG, "sm_90") for batch in (1, 2, 3)]
    outcomes = compile_many(batches, lambda *progress: calls.append(progress), compilers=compilers)
    assert calls == [(1, 1)]
    assert len({outcomes[request].report for request in batches}) == 1
    assert outcomes[batches[0]].report.registers > 0


def test_a_failure_names_problem_config_and_target(compilers):
    bad = Request(SMALL, replace(CONFIG, BLOCK_B=3), "sm_90")  # tiles are powers of two
    good = Request(SMALL, CONFIG, "sm_90")
    outcomes = compile_many([bad, good], compilers=compilers)
    assert outcomes[good].report is not None
    assert outcomes[bad].report is None
    for part in ("hidden_size=16", "rnn_tanh", "BLOCK_B=3", "sm_90"):
        assert part in outcomes[bad].error


def test_a_compiler_that_dies_is_named_and_harms_no_other():
    deadly = Request(ProblemThatKillsTheCompiler("gru", torch.bfloat16, 16, 4), CONFIG, "sm_90")
    good = Request(SMALL, CONFIG, "sm_90")
    with Compilers(1) as compilers:
        outcomes = compile_many([deadly, good], compilers=compilers)
    assert outcomes[good].report is not None
    assert "gru" in outcomes[deadly].error
    assert "died" in outcomes[deadly].error


def test_report_of_a_kernel_a_refusal_and_a_failure(tmp_path, monkeypatch, compilers):
    def choose(problem, limits):
        refused = Reason("too_large", "hidden_size | 64 does not fit")
        return {16: CONFIG, 32: replace(CONFIG, BLOCK_B=3), 64: refused}[problem.hidden_size]

    monkeypatch.setattr(compile_report, "choose", choose)
    problems = [replace(SMALL, hidden_size=size) for size in (16, 32, 64)]
    report = build_report(["sm_90"], problems, progress=False, compilers=compilers)
    assert list(report.columns) == list(COLUMNS)
    assert list(report["regime"]) == ["single_cta", "single_cta", "eager"]
    kernel, failure, refusal = report.iloc
    assert pd.isna(kernel["note"])
    assert kernel["registers"] > 0
    assert kernel["shared_limit"] == 227 * 1024
    assert kernel["weight_loads_in_loop"] == 0
    assert pd.isna(failure["registers"])
    assert "BLOCK_B=3" in failure["note"]
    assert refusal["note"] == "too_large: hidden_size | 64 does not fit"

    write_csv(report, tmp_path / "report.csv")
    assert list(pd.read_csv(tmp_path / "report.csv")["hidden_size"]) == [16, 32, 64]
    write_markdown(report, tmp_path / "report.md")
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert len(lines) == 2 + len(report)
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(COLUMNS) + 1}


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="unknown target 'sm_75'; known: sm_80, sm_90, sm_100, gfx942"):
        build_report(["sm_75"], [SMALL])


def test_the_quick_grid_is_part_of_the_full_one():
    assert set(quick_grid()) <= set(full_grid())
    assert len(quick_grid()) == len(set(quick_grid()))
