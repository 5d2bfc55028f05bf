"""The floor's two kernels do what a loop does, less one part; and they compile for the GPUs that they are for."""

from __future__ import annotations

import pytest
import torch

from holdfast.autotune.heuristic import choose
from holdfast.autotune.offline import compile_offline, weight_loads_in_loop
from holdfast.bench.floor import Exchange, Floor, ResidentWeights, exchange_constexprs, passes_of, weights_constexprs
from holdfast.bench.floor_kernels import exchange_only, weights_only
from holdfast.kernels.config import Config
from holdfast.kernels.describe import backend_options
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100
from holdfast.kernels.stall import StalledError

CPU = torch.device("cpu")
CELLS = ("rnn_tanh", "gru", "lstm")


@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_tile_of_every_step_is_handed_on(cell, phase, exchange, request):
    """Three programs a team, two directions, a batch of two tiles, an odd hidden size."""
    problem = Problem(cell, torch.float32, 37, 19, 2, phase=phase)
    config = Config("cooperative", 16, 16, 32, exchange=exchange)
    with interpret(seed=sum(map(ord, request.node.name))):
        run = Exchange(problem, config, CPU, steps=3)
        run.reset()
        run.run()
    pattern = torch.arange(3)[:, None] + torch.arange(19) % 16 % 4
    assert (run.channel == pattern[:, :, None]).all()


@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
def test_a_missing_member_is_noticed(exchange):
    problem = Problem("lstm", torch.float32, 40, 3)
    config = Config("cooperative", 16, 16, 32, exchange=exchange)
    with interpret(stalled={1}, raise_on_deadlock=False) as executor:
        executor.spin_limit = 5
        run = Exchange(problem, config, CPU, steps=2)
        run.reset()
        with pytest.raises(StalledError):
            run.run()


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("regime", ["single_cta", "cooperative"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_product_is_the_whole_of_w(cell, regime, phase):
    """The sum over the steps, put together from all programs, is W (its transpose backwards) times all operands."""
    hidden = 20 if regime == "single_cta" else 37
    config = Config("single_cta", 16, 32, 32) if regime == "single_cta" else Config("cooperative", 16, 16, 32)
    problem = Problem(cell, torch.float32, hidden, 16, phase=phase)
    with interpret():
        run = ResidentWeights(problem, config, CPU, steps=3)
        run.run()
    operand = (2 * run.h[0] + run.h[1]).double()  # steps 0, 2 and 1
    gates, padded, block = run.values["GATES"], run.values["PADDED_GATES"], config.BLOCK_H
    if phase == "forward":
        right = (operand @ run.w.double().T).T.unflatten(0, (gates, hidden))
        tiles = run.out.unflatten(1, (padded, block)).transpose(0, 1)
        found = tiles.reshape(padded, -1, 16)[:gates, :hidden]
    else:
        right = (operand @ run.w.double()).T
        found = run.out.reshape(-1, 16)[:hidden]
    assert (found - right).abs().max() < 1e-5


POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
ALIGNED = [["tt.divisibility", 16]]
SHAPES = [
    ("lstm", torch.float16, 768, "forward"),
    ("lstm", torch.bfloat16, 768, "backward"),
    ("gru", torch.bfloat16, 1024, "forward"),
    ("lstm", torch.bfloat16, 64, "backward"),
]


@pytest.mark.parametrize(("cell", "dtype", "hidden", "phase"), SHAPES, ids=str)
def test_the_weights_stay_resident_on_an_h100(cell, dtype, hidden, phase):
    problem = Problem(cell, dtype, hidden, 16, phase=phase)
    config = choose(problem, H100)
    report = compile_offline(
        weights_only,
        {"w_ptr": POINTERS[dtype], "h_ptr": POINTERS[dtype], "out_ptr": "*fp32", "T": "i32"},
        weights_constexprs(problem, config, "cuda"),
        dict.fromkeys([(0,), (1,), (2,)], ALIGNED),
        "sm_90",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **backend_options("cuda"),
    )
    assert report.spill_bytes == 0
    assert report.matrix_instructions > 0
    assert weight_loads_in_loop(report, "w_ptr") == 0


@pytest.mark.parametrize(("cell", "dtype", "hidden", "phase"), SHAPES[:3], ids=str)
def test_the_exchange_compiles_for_an_h100_and_multiplies_nothing(cell, dtype, hidden, phase):
    problem = Problem(cell, dtype, hidden, 16, phase=phase)
    config = choose(problem, H100)
    values = exchange_constexprs(problem, config)
    if config.exchange == "dataflow":
        values["arrivals_ptr"] = None
    types = {"channel_ptr": POINTERS[dtype], "arrivals_ptr": "*i32", "status_ptr": "*i32"}
    types |= dict.fromkeys(("T", "B", "num_groups", "spin_limit"), "i32")
    report = compile_offline(
        exchange_only,
        {name: kind for name, kind in types.items() if name not in values},
        values,
        {(0,): ALIGNED},
        "sm_90",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **backend_options("cuda"),
    )
    assert report.spill_bytes == 0
    assert report.matrix_instructions == 0
    assert "isVolatile = true" in report.ttgir  # what is gathered is read, though nobody uses it


def test_passes_multiply_a_step():
    problem = Problem("lstm", torch.bfloat16, 768, 96)
    config = Config("cooperative", 16, 16, 256)
    with interpret():  # an imagined H100: two teams of 48 programs, six tiles
        assert passes_of(problem, config, CPU) == 3
    assert Floor(0.5, 0.25, passes=3).step_us == 2.25
