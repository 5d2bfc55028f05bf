"""The floor's two kernels do what a loop does, less one part; and they compile for the GPUs that they are for."""

from __future__ import annotations

import pytest
import torch

from holdfast.autotune.constraints import columns
from holdfast.autotune.offline import compile_offline
from holdfast.autotune.ttgir import weight_loads_in_loop
from holdfast.bench.method.floor import (
    Exchange,
    Floor,
    ResidentWeights,
    exchange_constexprs,
    passes_of,
    weights_constexprs,
)
from holdfast.bench.method.floor_kernels import exchange_only, weights_only
from holdfast.kernels.argument_types import signature_of
from holdfast.kernels.cell_spec import find_cell
from holdfast.kernels.config import Config
from holdfast.kernels.describe import backend_options
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.loop.groups import Team
from holdfast.kernels.problem import Problem
from holdfast.kernels.stall import StalledError

CPU = torch.device("cpu")
CELLS = ("rnn_tanh", "gru", "lstm")
SPLITS = [("forward", 1), ("backward", 1), ("backward", 2), ("backward", 4)]


@pytest.mark.sampled
@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize(("phase", "split"), SPLITS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_tile_of_every_step_is_handed_on(cell, phase, split, exchange, request):
    """Three or four programs a team, two directions, a batch of two tiles, an odd hidden size."""
    problem = Problem(cell, torch.float32, 37, 19, 2, phase=phase)
    config = Config("cooperative", 16, 16, 32, exchange=exchange, SPLIT_K=split)
    with interpret(seed=sum(map(ord, request.node.name))):
        run = Exchange(problem, config, CPU, steps=3)
        run.reset()
        run.run()
    pattern = torch.arange(3)[:, None] + torch.arange(19) % 16 % 4
    assert (run.channel == pattern[:, :, None]).all()


@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize(("phase", "split", "missing"), [("forward", 1, {1}), ("backward", 2, {2, 3})])
def test_missing_members_are_noticed(phase, split, missing, exchange):
    """Backwards all who share a product: nobody notices in a sum, only who gathers their half of the columns."""
    problem = Problem("rnn_tanh", torch.float32, 64, 3, phase=phase)
    config = Config("cooperative", 16, 16, 32, exchange=exchange, SPLIT_K=split)
    with interpret(stalled=missing, raise_on_deadlock=False) as executor:
        executor.spin_limit = 5
        run = Exchange(problem, config, CPU, steps=2)
        run.reset()
        with pytest.raises(StalledError):
            run.run()


@pytest.mark.parametrize(
    ("hidden", "phase", "config"),
    [
        *[(20, phase, Config("single_cta", 16, 32, 32)) for phase in ("forward", "backward")],
        *[(37, phase, Config("cooperative", 16, 16, 32, SPLIT_K=split)) for phase, split in SPLITS],
        (48, "backward", Config("cooperative", 16, 16, 32, SPLIT_K=4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_the_product_is_the_whole_of_w(cell, hidden, phase, config):
    """The sum over the steps, put together from all programs, is W (its transpose backwards) times all operands."""
    problem = Problem(cell, torch.float32, hidden, 16, phase=phase)
    with interpret():
        run = ResidentWeights(problem, config, CPU, steps=3)
        run.run()
    operand = (2 * run.h[0] + run.h[1]).double()  # steps 0, 2 and 1
    gates, padded = find_cell(cell).gates, find_cell(cell).padded_gates
    if phase == "forward":
        right = (operand @ run.w.double().T).T.unflatten(0, (gates, hidden))
        tiles = run.out.unflatten(1, (padded, config.BLOCK_H)).transpose(0, 1)
        found = tiles.reshape(padded, -1, 16)[:gates, :hidden]
    else:
        right = (operand @ run.w.double()).T
        found = run.out.unflatten(0, (-1, config.SPLIT_K)).sum(1).reshape(-1, 16)[:hidden]
    assert (found - right).abs().max() < 1e-5


SHAPES = [
    ("lstm", torch.float16, 768, "forward", Config("cooperative", 16, 16, 256)),
    ("lstm", torch.bfloat16, 768, "backward", Config("cooperative", 16, 16, 128, SPLIT_K=4)),
    ("gru", torch.bfloat16, 1024, "backward", Config("cooperative", 16, 16, 128, exchange="barrier", SPLIT_K=4)),
    ("rnn_tanh", torch.bfloat16, 1024, "backward", Config("cooperative", 16, 64, 128)),
    ("lstm", torch.bfloat16, 64, "backward", Config("single_cta", 16, 64, 64, 8)),
]


@pytest.mark.parametrize(("cell", "dtype", "hidden", "phase", "config"), SHAPES, ids=str)
def test_the_weights_stay_resident_on_an_h100(cell, dtype, hidden, phase, config):
    problem = Problem(cell, dtype, hidden, 16, phase=phase)
    report = compile_for_h100(weights_only, weights_constexprs(problem, config, ("cuda", 90)), config, dtype)
    assert report.spill_bytes == 0
    assert report.matrix_family == "HGMMA"
    if config.regime == "cooperative":
        assert report.matrix_instructions == columns(problem, config) // 16  # of 64 rows each: nothing twice
    assert weight_loads_in_loop(report, "w_ptr") == 0


@pytest.mark.parametrize(("cell", "dtype", "hidden", "phase", "config"), SHAPES[:4], ids=str)
def test_the_exchange_compiles_for_an_h100_and_multiplies_nothing(cell, dtype, hidden, phase, config):
    problem = Problem(cell, dtype, hidden, 16, phase=phase)
    report = compile_for_h100(exchange_only, exchange_constexprs(problem, config, ("cuda", 90)), config, dtype)
    assert report.spill_bytes == 0
    assert report.matrix_instructions == 0
    assert "isVolatile = true" in report.ttgir  # what is gathered is read, though nobody uses it


def compile_for_h100(kernel, values, config, dtype):
    """As `floor` launches it on aligned tensors."""
    number = {torch.float16: "*fp16", torch.bfloat16: "*bf16"}[dtype]
    loop = values["LOOP"]
    types = {
        **dict.fromkeys(("channel_ptr", "w_ptr", "h_ptr"), number),
        "team": Team(
            arrivals="*i32" if loop.EXCHANGE == "barrier" else None,
            status="*i32",
            spin_limit="i32:16",
            partial="*i32" if loop.SPLIT_K > 1 else None,
        ),
        **dict.fromkeys(("T", "B"), "i32"),
        "out_ptr": "*fp32",
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **backend_options("cuda")}
    return compile_offline(kernel, *signature_of(kernel, types, values), "sm_90", **options)


def test_passes_multiply_a_step():
    problem = Problem("lstm", torch.bfloat16, 768, 96)
    config = Config("cooperative", 16, 16, 256)
    with interpret():  # an imagined H100: two teams of 48 programs, six tiles
        assert passes_of(problem, config, CPU) == 3
    assert Floor(0.5, 0.25, passes=3).step_us == 2.25
