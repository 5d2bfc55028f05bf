"""A block of PTX in a layout that it was not written for is refused, at a launch and by the compile gate."""

from __future__ import annotations

import re

import pytest
import torch

from holdfast.autotune.identity import source_digest
from holdfast.autotune.offline import compile_offline
from holdfast.kernels.config import Config
from holdfast.kernels.describe import describe
from holdfast.kernels.layouts import LayoutError, check_layouts
from holdfast.kernels.loop import spin
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100


@pytest.fixture(scope="module")
def ttgir():
    kernel = describe(Problem("lstm", torch.bfloat16, 64, 16), Config("cooperative", 16, 16, 64), H100)
    options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages, **kernel.options}
    return compile_offline(kernel.fn, kernel.signature, kernel.constexprs, kernel.attrs, "sm_90", **options).ttgir


def layout_of_poll(ttgir):
    """The name and the definition of the layout of a poll's words."""
    name = re.search(r"isVolatile = true.*?(#\w+)>", ttgir)[1]
    return name, re.search(rf"^{name} = (.*)$", ttgir, re.MULTILINE)[1]


def test_what_is_compiled_has_a_poll_in_vectors(ttgir):
    check_layouts(ttgir)
    assert "ld.relaxed.gpu.global.v4.b32" in ttgir or "ld.relaxed.gpu.global.v2.b32" in ttgir
    assert "sizePerThread = [1, 4]" in layout_of_poll(ttgir)[1]


def test_words_that_do_not_lie_side_by_side_are_refused(ttgir):
    _, layout = layout_of_poll(ttgir)
    for other in ("sizePerThread = [1, 1]", "sizePerThread = [4, 1]"):
        wrong = ttgir.replace(layout, layout.replace("sizePerThread = [1, 4]", other))
        with pytest.raises(LayoutError, match="side by side"):
            check_layouts(wrong)


def test_words_that_were_converted_after_the_load_are_refused(ttgir):
    wrong = re.sub(r"= tt\.load( .*isVolatile)", r"= ttg.convert_layout\1", ttgir)
    with pytest.raises(LayoutError, match="not from a load"):
        check_layouts(wrong)


def test_operands_of_several_layouts_are_refused(ttgir):
    name, _ = layout_of_poll(ttgir)
    poll = next(line for line in ttgir.splitlines() if "ld.relaxed.gpu" in line)
    with pytest.raises(LayoutError, match="several layouts"):
        check_layouts(ttgir.replace(poll, poll.replace(f"{name}>", "#elsewhere>", 1)))


def test_a_trade_of_anything_but_the_accumulator_is_refused(ttgir):
    if "shfl.sync" not in ttgir:
        pytest.skip("this Triton does not interleave gates (see describe.interleaves)")
    with pytest.raises(LayoutError, match="m64n16"):
        check_layouts(ttgir.replace("versionMajor = 3", "versionMajor = 2"))


def test_a_block_of_ptx_is_part_of_the_kernels_source(monkeypatch):
    """Tuning results know the source that they were made with: a constexpr_function is part of it."""
    problem = Problem("lstm", torch.bfloat16, 64, 1)
    before = source_digest(problem)
    monkeypatch.setattr("holdfast.kernels.loop.exchange.poll", spin.parts_poll)
    assert source_digest(problem) != before
