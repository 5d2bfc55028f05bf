"""A program that is missing, and a GPU that somebody else holds: as a GPU has them, the first also interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

import holdfast
from holdfast.autotune.pin import pinned
from holdfast.kernels import launch
from holdfast.kernels.config import Config
from holdfast.kernels.loop.backward import backward
from holdfast.kernels.loop.forward import forward
from holdfast.kernels.stall import limit_of


# A program that is missing on purpose: in the interpreter, and compiled on a GPU.
@triton.jit(do_not_specialize=["T", "B", "walk_bits"])
def forward_but_one(
    gx,
    layer,
    states,
    out,
    rows,
    resets,
    dropout,
    zones,
    team,
    T,
    B,
    walk_bits,
    CELL: tl.constexpr,
    LOOP: tl.constexpr,
):
    if tl.program_id(0) != 1:
        forward(gx, layer, states, out, rows, resets, dropout, zones, team, T, B, walk_bits, CELL, LOOP)


@triton.jit(do_not_specialize=["T", "B", "walk_bits"])
def backward_but_one(
    dy,
    gradients,
    layer,
    past,
    gx,
    ga,
    out,
    rows,
    resets,
    dropout,
    zones,
    team,
    T,
    B,
    walk_bits,
    CELL: tl.constexpr,
    LOOP: tl.constexpr,
):
    if tl.program_id(0) != 1:
        backward(
            dy, gradients, layer, past, gx, ga, out, rows, resets, dropout, zones, team, T, B, walk_bits, CELL, LOOP
        )


@pytest.fixture
def short_waits(monkeypatch):
    """And kernels that are not remembered."""
    monkeypatch.setattr(launch, "WAIT_LIMIT", limit_of("0.05"))
    launch.launcher_of.cache_clear()
    yield
    launch.launcher_of.cache_clear()


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_missing_program_is_reported(phase, exchange, split, device, monkeypatch, short_waits):
    """And the next call, of the whole kernel, is right."""
    torch.manual_seed(4)
    module = holdfast.GRU(8, 32, device=device)
    x = torch.randn(3, 2, 8, device=device, requires_grad=True)
    config = Config("cooperative", 16, 16, 32, exchange=exchange, SPLIT_K=split)
    substitutes = {"forward": forward_but_one, "backward": backward_but_one}
    kernel_of = launch.kernel_of

    def but_one(problem):
        return substitutes[phase] if problem.phase == phase else kernel_of(problem)

    def call():
        y, _ = module(x)
        if phase == "backward":
            torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
        return y

    def call_and_ask():
        y = call()
        holdfast.check_stalled(device if device.type == "cuda" else None)
        return y

    deadlock_is_no_error(device, monkeypatch)
    with pinned(config), holdfast.backend("triton"):
        right = call()
        monkeypatch.setattr(launch, "kernel_of", but_one)
        launch.launcher_of.cache_clear()
        with pytest.raises(holdfast.StalledError, match="Team 0 gave up in a first step"):
            call_and_ask()
        monkeypatch.setattr(launch, "kernel_of", kernel_of)
        launch.launcher_of.cache_clear()
        assert torch.equal(call_and_ask(), right)


def deadlock_is_no_error(device, monkeypatch):
    if device.type == "cpu":
        from holdfast.kernels.executor import substitute

        if hasattr(substitute(), "behaviour"):  # of compiled kernels
            monkeypatch.setattr(substitute(), "behaviour", replace(substitute().behaviour, raise_on_deadlock=False))
        else:
            monkeypatch.setattr(substitute(), "raise_on_deadlock", False)
        monkeypatch.setattr(substitute(), "spin_limit", 60)


@triton.jit
def hold_the_gpu(out_ptr, NANOSECONDS: tl.constexpr):
    from_now = tl.extra.cuda.globaltimer() + NANOSECONDS
    now = from_now - NANOSECONDS
    while now < from_now:
        now = tl.extra.cuda.globaltimer()
    tl.store(out_ptr + tl.program_id(0), now)


@pytest.mark.gpu
@pytest.mark.parametrize("cooperative_launch", [False, True])
def test_a_sibling_stream_that_holds_the_gpu(cooperative_launch, monkeypatch, short_waits):
    """Half a second, ten times the limit, all threads of nearly all SMs. A plain launch begins with the programs that
    find room, which give up; a cooperative one may also wait until all do, and is right then."""
    device = torch.device("cuda", torch.cuda.current_device())
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    torch.manual_seed(5)
    module = holdfast.LSTM(8, 768, device=device, dtype=torch.bfloat16)
    x = torch.randn(4, 2, 8, device=device, dtype=torch.bfloat16)
    taken, side = torch.zeros(2 * sms, dtype=torch.int64, device=device), torch.cuda.Stream()
    with torch.no_grad(), pinned(Config("cooperative", 16, 16, 256)), holdfast.backend("triton"):
        right = module(x)[0]
        if not cooperative_launch:
            launch.launcher_of.cache_clear()
            plain = launch.Launcher.__init__

            def not_cooperative(self, *arguments):
                plain(self, *arguments)
                self.options["launch_cooperative_grid"] = False

            monkeypatch.setattr(launch.Launcher, "__init__", not_cooperative)
            module(x)
        hold_the_gpu[(1,)](taken, 1, num_warps=32)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            hold_the_gpu[(2 * (sms - 1),)](taken, 500_000_000, num_warps=32)
        found = module(x)[0]
        torch.cuda.synchronize()
        if cooperative_launch and torch.equal(found, right):
            holdfast.check_stalled(device)
        else:
            assert found.isnan().any()
            with pytest.raises(holdfast.StalledError, match="gave up in a first step"):
                holdfast.check_stalled(device)
        assert torch.equal(module(x)[0], right)
        holdfast.check_stalled(device)
