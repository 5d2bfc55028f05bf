"""A program that never comes, comes late or is killed: the others end within their limit, no number is wrong, and the
host is told which team it was and how far it had got."""

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
from holdfast.kernels.stall import describe_stall, limit_of, raise_if_stalled, status_word

pytest.importorskip("greenlet")  # a lent machine lacks it

from schedules import EXCHANGES, LONGER, expected, poisoned, runner

from holdfast.kernels.executor import executing_on
from holdfast.kernels.interpreter import Interpreter

CPU = torch.device("cpu")
TEAMS = {
    name: replace(exchange, poison=False)
    for name, exchange in (EXCHANGES | LONGER).items()
    if exchange.config.regime == "cooperative"
}
QUICK = [name for name in TEAMS if name in EXCHANGES]
FIRST_STEP = "Team 0 gave up in a first step: one of its programs had not begun"


def run(exchange, monkeypatch, **options):
    """Results that a launch on a GPU leaves behind, and what the host says."""
    right = expected(exchange)
    interpreter = Interpreter(
        3, raise_on_deadlock=False, most_turns=5000, resident_programs=exchange.resident, **options
    )
    interpreter.spin_limit = 60  # weak memory takes a few polls where nothing is wrong
    status_word(CPU).zero_()
    with monkeypatch.context() as patch, poisoned(), executing_on(interpreter):
        patch.setattr(launch, "raise_if_stalled", lambda device: None)
        patch.setattr("holdfast.kernels.layer.raise_if_stalled", lambda device: None)
        found = runner(exchange)()
    for a, b in zip(found, right, strict=True):
        wrong = (a != b) & ~a.isnan()
        assert not wrong.any(), f"{int(wrong.sum())} wrong numbers; {interpreter.replay}"
    try:
        raise_if_stalled(CPU)
    except holdfast.StalledError as error:
        return found, str(error), interpreter
    return found, "", interpreter


@pytest.mark.parametrize("name", QUICK)
def test_a_program_that_never_starts(name, monkeypatch):
    found, message, _ = run(TEAMS[name], monkeypatch, stalled={1})
    assert found[0].isnan().any()
    assert FIRST_STEP in message
    assert "holdfast.backend('eager')" in message
    assert "HOLDFAST_STALL_SECONDS" in message


@pytest.mark.parametrize("name", QUICK)
def test_a_program_that_starts_too_late(name, monkeypatch):
    """A sibling stream held the GPU for longer than the limit: told by the step. The late one ends as well."""
    found, message, interpreter = run(TEAMS[name], monkeypatch, late={0})
    assert found[0].isnan().any()
    assert "Team 0 gave up in a first step" in message
    assert interpreter.trace[-1] == 0


@pytest.mark.parametrize("name", QUICK)
def test_a_program_that_is_killed_halfway(name, monkeypatch):
    """Turns of the whole run are counted first; at its end nobody waits for it any more."""
    _, nothing, interpreter = run(TEAMS[name], monkeypatch)
    assert nothing == ""
    turns = interpreter.trace.count(1)
    messages = [run(TEAMS[name], monkeypatch, stalled={1: turns * k // 6})[1] for k in range(1, 6)]
    assert "in a first step" in messages[0]
    assert any("all its programs had begun" in message for message in messages), messages


@pytest.mark.slow
@pytest.mark.parametrize("name", TEAMS)
def test_a_program_that_is_killed_at_any_time(name, monkeypatch):
    exchange = TEAMS[name]
    _, _, interpreter = run(exchange, monkeypatch)
    programs = sorted(set(interpreter.trace))
    for program in programs:
        steps = []
        for turn in range(interpreter.trace.count(program)):
            _, message, _ = run(exchange, monkeypatch, stalled={program: turn})
            if "first step" in message:
                steps.append(0)
            elif message:
                steps.append(int(message.split("gave up after ")[1].split()[0]))
        assert steps, "somebody waits for every program"
        assert max(steps) < 2 * exchange.length
        assert steps[0] == 0


def test_what_the_status_word_says():
    assert describe_stall(1 << 20).startswith("Team 0 gave up in a first step: one of its programs had not begun")
    assert describe_stall(8 << 20 | 17).startswith("Team 7 gave up after 17 steps: all its programs had begun")


def test_a_team_names_itself(monkeypatch):
    """The second of two teams, and only that."""
    exchange = replace(TEAMS["barrier forward"], resident=4)
    assert "Team 1 gave up in a first step" in run(exchange, monkeypatch, stalled={3})[1]
    assert "Team 0 gave up in a first step" in run(exchange, monkeypatch, stalled={0})[1]


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
    if (phase, split) == ("forward", 2):
        pytest.skip("only the loop backwards shares products")
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
