"""Products of a part of the gates: what fills the matrix unit's other rows (see `kernels.loop.parts`)."""

from dataclasses import replace

import pytest
import torch

from holdfast.autotune.candidates import choose
from holdfast.autotune.constraints import footprint
from holdfast.autotune.offline import compile_offline
from holdfast.kernels import cell_spec
from holdfast.kernels.config import Config
from holdfast.kernels.describe import describe, loop_of, parts_of_sums
from holdfast.kernels.loop.parts import loop_of_product
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import A100, H100

PROBLEM = Problem("gru_reset_before", torch.bfloat16, 768, 16)
CONFIG = Config("cooperative", 16, 16, 64)


def test_on_hopper_each_product_has_its_own_gates_alone():
    """Two products of all gates are 96 m64n16; of two gates and of one, in 64 rows each, 24 and 12 wider ones."""
    config = choose(PROBLEM, H100)
    assert parts_of_sums(PROBLEM, config, H100.arch) == 4
    kernel = describe(PROBLEM, config, H100)
    report = compile_offline(
        kernel.fn, kernel.signature, kernel.constexprs, kernel.attrs, H100.target,
        num_warps=kernel.num_warps, num_stages=kernel.num_stages, **kernel.options,
    )  # fmt: skip
    assert report.matrix_instructions == 768 // 16 // 2 + 768 // 16 // 4
    assert report.spill_bytes == 0
    assert report.step.counts.barriers <= 14
    modelled = footprint(PROBLEM, config, H100).shared
    assert 0.98 * modelled <= report.shared_bytes <= modelled
    assert report.shared_bytes < 4 * 16 * 768 * 2 + 16 * 768 * 2  # all gates' rows, padded, and h


def test_no_size_is_left_out_for_the_padding_of_its_parts():
    """Float32 has no other tiling: 80 to 96 and 144 to 192 units ran in plain steps."""
    for size in range(80, 400, 16):
        assert isinstance(choose(Problem("gru_reset_before", torch.float32, size, 16), H100), Config), size


def test_the_parts_of_a_sum_are_all_of_it():
    for hidden in (1, 16, 37, 100, 768):
        loop = loop_of(replace(PROBLEM, hidden_size=hidden), replace(CONFIG, BLOCK_K=32), ("interpreter", 0))
        for gates in (1, 2):
            product = loop_of_product(loop, gates)
            assert product.PARTS * gates == 4
            assert hidden <= product.PARTS * product.PART
            assert product.PART % 16 == 0
            assert product.CHUNKS * product.BLOCK_K >= product.PART
            assert product.BLOCK_B == product.PARTS * loop.BLOCK_B


@pytest.mark.parametrize(
    ("problem", "config", "arch"),
    [
        (PROBLEM, CONFIG, A100.arch),
        (PROBLEM, CONFIG, ("cuda", 100)),
        (PROBLEM, replace(CONFIG, num_warps=8), H100.arch),
        (PROBLEM, replace(CONFIG, BLOCK_H=32), H100.arch),
        (PROBLEM, Config("single_cta", 16, 64, 64), H100.arch),
        (replace(PROBLEM, features=("resets",)), CONFIG, H100.arch),
        (replace(PROBLEM, phase="backward"), CONFIG, H100.arch),
        (replace(PROBLEM, cell="gru"), CONFIG, H100.arch),
    ],
    ids=str,
)
def test_elsewhere_both_products_are_of_all_gates(problem, config, arch):
    assert parts_of_sums(problem, config, arch) == 1


def test_resident_rows_never_grow(monkeypatch):
    """Three gates beside one would be padded to four and one."""
    spec = cell_spec.CELLS["gru_reset_before"]
    monkeypatch.setitem(cell_spec.CELLS, "gru_reset_before", replace(spec, gates=4, outer_gates=3))
    assert parts_of_sums(PROBLEM, CONFIG, H100.arch) == 1
    monkeypatch.setitem(cell_spec.CELLS, "gru_reset_before", replace(spec, gates=4, outer_gates=2))
    assert parts_of_sums(PROBLEM, CONFIG, H100.arch) == 4
