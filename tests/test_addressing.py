"""Offsets into sequences are 64-bit: no product of a length, a batch size, a stride or a step is a 32-bit one."""

from __future__ import annotations

import re

import pytest
import torch

from holdfast.autotune.offline import REFERENCE_DEVICE, compile_offline
from holdfast.kernels.config import Config
from holdfast.kernels.describe import describe
from holdfast.kernels.problem import Problem

CONFIGS = {"single_cta": Config("single_cta", 16, 32, 32), "cooperative": Config("cooperative", 16, 16, 32)}
FEATURES = [(), ("lengths", "packed"), ("lengths", "reset_state", "resets", "zoneout")]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("regime", CONFIGS)
def test_scalar_products_of_run_time_values_are_64_bit(regime, phase, features):
    config = CONFIGS[regime]
    problem = Problem("lstm", torch.bfloat16, 32, 16, 2, phase=phase, features=features)
    kernel = describe(problem, config, REFERENCE_DEVICE["sm_90"])
    ttgir = compile_offline(
        kernel.fn,
        kernel.signature,
        kernel.constexprs,
        kernel.attrs,
        "sm_90",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **kernel.options,
    ).ttgir
    products = re.findall(r"arith\.muli (%[\w#]+), (%[\w#]+)[^:]* : (i32|i64)\b", ttgir)
    assert any(width == "i64" for *_, width in products)
    # What is left in 32 bits is a program's own number, or how many there are, times a block size: its first unit, its
    # team's first row and the rows from there to its next tile, its direction's first column; twice a bit; and a step
    # times 1 or -1.
    signs = set(re.findall(r"(%[\w#]+) = arith\.subi %c1_i32", ttgir))
    narrow = [(a, b) for a, b, width in products if width == "i32" and not signs.intersection((a, b))]
    arguments = set(re.findall(r"(%\w+): (?:i32|i64)", ttgir[: ttgir.index("attributes")]))
    for operands in narrow:
        assert any(re.fullmatch(r"%c\d+_i32(_\d+)?", operand) for operand in operands), operands
        assert not arguments.intersection(operands), operands
    assert len(narrow) <= 5
