"""A launch that the GPU does not take, a wait that runs out, a first launch inside a graph capture: on the fake driver
through Triton's own launcher, and in the interpreter."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest
import torch

import holdfast
from holdfast.autotune import select, store
from holdfast.autotune.pin import pinned
from holdfast.bench.method import fake_driver
from holdfast.kernels import launch, stall
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.resources import NotResidentError
from holdfast.kernels.stall import StalledError, limit_of, status_word

CPU = torch.device("cpu")
SMALL = Config("cooperative", 16, 16, 64)
"""Three programs for 40 units, and a team for every 16 rows."""


@pytest.fixture
def fake():
    if (why := fake_driver.missing()) or torch.cuda.is_available():
        pytest.skip(why or "the tests marked gpu launch for real")
    with fake_driver.fake_gpu() as driver:
        yield driver


@pytest.fixture(autouse=True)
def _nothing_refused(monkeypatch):
    """Each test finds a GPU that has refused nothing, and leaves none that has."""
    monkeypatch.setattr(select, "_refused", {})
    yield
    store.changed()
    select._plan.cache_clear()


@contextmanager
def grids(monkeypatch):
    """The grids that arrive at the driver, those it refuses among them."""
    seen = []
    run = launch.Launcher._start

    def start(self, start_one, fit, spin_limit, walk_bits):
        def noted(grid, *more):
            seen.append(grid)
            return start_one(grid, *more)

        return run(self, noted, fit, spin_limit, walk_bits)

    with monkeypatch.context() as patch:
        patch.setattr(launch.Launcher, "_start", start)
        yield seen


def cooperative_module(cell=holdfast.LSTM, **options):
    """Small, so that the heuristic would take one program: its config is made to be a team's by the tests."""
    torch.manual_seed(0)
    return cell(8, 40, **options)


def use(monkeypatch, config):
    """The heuristic chooses this config, so that nothing is pinned."""
    monkeypatch.setattr(select, "choose", lambda problem, limits: config)
    select._plan.cache_clear()
    store.changed()


@pytest.fixture
def teams(monkeypatch):
    use(monkeypatch, SMALL)


X = torch.zeros(2, 64, 8)  # four batch tiles


def test_a_refused_grid_is_launched_smaller_and_remembered(fake, teams, monkeypatch):
    module = cooperative_module()
    fake.admit(7)
    with torch.no_grad(), holdfast.backend("triton"), grids(monkeypatch) as seen:
        module(X)
        first, seen[:] = list(seen), []
        module(X)
        module(X[:, :48])
    assert first == [12, 6], "four teams of three do not fit, two do"
    assert seen == [6, 6], "remembered, for another batch size too"


def test_a_refusal_above_one_program_an_sm_counts_on_one_less():
    fit = launch.Fit(resident=4 * 132, num_sms=132)
    for grid, expected in ((528, 396), (396, 264), (264, 132), (132, 66), (66, 33), (6, 3), (3, 0)):
        fit.refused(grid, 3)
        assert fit.resident == expected


def test_another_error_of_the_driver_is_not_taken_for_a_refusal(fake, teams, monkeypatch):
    module = cooperative_module()

    def broken(*_):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(launch.Launcher, "_team", broken)
    with torch.no_grad(), holdfast.backend("auto"), pytest.raises(RuntimeError, match="illegal memory access"):
        module(X)
    assert not select._refused


def test_a_gpu_that_takes_no_team_leaves_the_call_to_torch(fake, teams):
    module = cooperative_module()
    fake.admit(2)
    with torch.no_grad(), holdfast.backend("auto"):
        y, hx = module(X)
        torch.testing.assert_close((y, hx), module.double()(X.double()), check_dtype=False, atol=1e-5, rtol=1e-5)
        module.float()
        plan = module.explain(X)
        assert [reason.name for reason in plan.reasons] == ["not_resident"]
        assert "needs 3 programs resident at once" in str(plan)
        assert module.explain(X[:, :5]).regime == "eager", "whatever the batch size"
        fake.admit(0)
        module(X)
        assert module.explain(X).regime == "eager", "remembered"


def test_a_gpu_that_takes_no_team_where_only_kernels_are_allowed(fake, teams):
    module = cooperative_module()
    fake.admit(2)
    with torch.no_grad(), holdfast.backend("triton"):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"not_resident: lstm .* needs 3 programs"):
                module(X)


def test_a_pinned_config_hears_of_it(fake):
    module = cooperative_module()
    fake.admit(2)
    unfit = pytest.raises(NotResidentError, match="needs 3 programs")
    with torch.no_grad(), holdfast.backend("auto"), pinned(SMALL), unfit:
        module(X)
    assert not select._refused


def test_a_second_layer_that_does_not_fit_takes_the_whole_call_along():
    """In the interpreter, with numbers: the first layer's kernel has run by then."""
    torch.manual_seed(1)
    module, x = holdfast.GRU(8, 40, num_layers=2), torch.randn(3, 2, 8)
    problems = []

    def refused(problem, config, device, groups):
        problems.append(problem)
        if len(problems) == 2:
            raise NotResidentError("no room", problem)
        return launch.launch(problem, config, device, groups)

    with interpret(), pytest.MonkeyPatch.context() as patch, torch.no_grad():
        from holdfast.kernels import layer

        patch.setattr(layer, "launch", refused)
        y, h = module(x)
        assert [reason.message for reason in module.explain(x).reasons] == ["no room"]
    expected = torch.nn.GRU(8, 40, num_layers=2)
    expected.load_state_dict(module.state_dict())
    torch.testing.assert_close((y, h), expected(x))


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.thorough), 33])
def test_in_the_interpreter_a_refused_grid_gives_the_same_numbers(batch):
    torch.manual_seed(2)
    module, x = cooperative_module(), torch.randn(2, batch, 8, requires_grad=True)

    def run():
        y, _ = module(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    with pinned(SMALL), holdfast.backend("triton"):
        with interpret(3):
            expected = run()
        with interpret(3, admitted_programs=3):
            found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_backward_pass_that_does_not_fit_is_torchs(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    torch.manual_seed(3)
    module, x = cooperative_module(holdfast.GRU), torch.randn(3, 2, 8, requires_grad=True)
    tensors = [x, *module.parameters()]
    with interpret() as interpreter, pinned(SMALL):
        y, _ = module(x)
        interpreter.resident_programs = 2
        with pytest.raises(NotResidentError):
            torch.autograd.grad(y.square().sum(), tensors)
    use(monkeypatch, SMALL)
    with interpret() as interpreter:
        y, _ = module(x)
        interpreter.resident_programs = 2
        found = torch.autograd.grad(y.square().sum(), tensors)
        assert [reason.name for reason in module.explain(x).reasons] == ["not_resident"]
        with torch.no_grad():
            assert module.explain(x).regime != "eager", "inference needs no backward kernel"
    expected = torch.nn.GRU(8, 40)
    expected.load_state_dict(module.state_dict())
    y, _ = expected(x)
    right = torch.autograd.grad(y.square().sum(), [x, *expected.parameters()])
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# Waits.


def test_the_limit_of_a_wait_is_in_units_of_1024_ns_and_compiled_in_as_a_multiple_of_16():
    assert abs(limit_of("20") * 1024e-9 - 20) < 16 * 1024e-9
    assert limit_of("2000") < 2**31
    assert limit_of("1e-9") == 16
    assert all(limit_of(seconds) % 16 == 0 for seconds in ("20", "0.3", "7", "1999.9"))
    assert limit_of("20") == stall.WAIT_LIMIT


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "2001", "soon", ""])
def test_a_limit_that_is_none(value):
    with pytest.raises(ValueError, match=r"HOLDFAST_STALL_SECONDS should be a number of seconds above 0, at most 2000"):
        limit_of(value)


def test_the_limit_comes_from_the_environment(monkeypatch):
    code = """
import importlib, os
from holdfast.kernels import setting, stall
print(stall.WAIT_LIMIT)
os.environ["HOLDFAST_STALL_SECONDS"] = "a minute"
importlib.reload(stall)
setting.check_environment()
"""
    monkeypatch.setenv("HOLDFAST_STALL_SECONDS", "0.5")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert int(found.stdout) == limit_of("0.5")
    assert found.returncode != 0
    assert "HOLDFAST_STALL_SECONDS should be a number of seconds" in found.stderr


def test_check_stalled_tells_of_a_last_call_once():
    module = cooperative_module()
    stall.status_word(CPU).zero_()
    with interpret(stalled={1}, raise_on_deadlock=False) as interpreter, pinned(SMALL), torch.no_grad():
        interpreter.spin_limit = 20
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "raise_if_stalled", lambda device: None)  # on a GPU the launch does not wait
            module(torch.zeros(3, 2, 8))
    with pytest.raises(StalledError, match=r"gave up.*HOLDFAST_STALL_SECONDS"):
        holdfast.check_stalled()
    holdfast.check_stalled()


def test_check_stalled_waits_for_the_gpu_first(monkeypatch):
    gpu, other = torch.device("cuda", 0), torch.device("cuda", 1)
    word = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(stall, "_words", {gpu: word, other: torch.zeros(1, dtype=torch.int32)})
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(device) or word.fill_(1))
    holdfast.check_stalled(1)
    assert waited == [other]
    word.zero_()
    with pytest.raises(holdfast.StalledError, match="cuda:0"):
        holdfast.check_stalled("cuda:0")
    assert waited == [other, gpu]


def test_check_stalled_where_nothing_has_run(monkeypatch):
    monkeypatch.setattr(stall, "_words", {})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: pytest.fail("nothing to wait for"))
    holdfast.check_stalled()
    holdfast.check_stalled("cuda:3")
    with pytest.raises(ValueError, match="should be a GPU, got cpu"):
        holdfast.check_stalled("cpu")


def test_a_stall_is_told_at_the_end_of_a_backward_pass(fake, teams, monkeypatch):
    module = cooperative_module()
    with holdfast.backend("triton"):
        y, _ = module(X)
        run = launch.Launcher.run

        def stalling(self, groups):
            run(self, groups)
            status_word(CPU).fill_(1)

        monkeypatch.setattr(launch.Launcher, "run", stalling)
        with pytest.raises(StalledError):
            y.sum().backward()
    assert not status_word(CPU).item()


# Captures.


def test_a_first_launch_inside_a_capture_says_what_to_do(fake, monkeypatch):
    module, x = holdfast.GRU(8, 16), torch.zeros(2, 1, 8)
    monkeypatch.setattr(launch, "_capturing", lambda device: True)
    with torch.no_grad(), holdfast.backend("triton"):
        fake.refuse_to_load(True)
        with pytest.raises(RuntimeError, match="make the same call once before the capture") as raised:
            module(x)
        assert "not permitted when stream is capturing" in str(raised.value.__cause__)
        fake.refuse_to_load(False)
        module(x)  # a driver that loads modules in a capture: it works
        fake.refuse_to_load(True)
        module(x)  # nothing is left to load


def test_without_a_capture_the_driver_speaks_for_itself(fake):
    fake.refuse_to_load(True)
    with torch.no_grad(), holdfast.backend("triton"), pytest.raises(RuntimeError, match="Triton Error"):
        holdfast.RNN(8, 16)(torch.zeros(2, 1, 8))


def test_the_device_of_the_tensors_is_made_the_current_one(fake, monkeypatch):
    """A layer on another GPU than the current one."""
    current = []

    @contextmanager
    def device(wanted):
        current.append(wanted)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    real = launch.Launcher

    def of_another_gpu(problem, config, where, substituted):
        return real(problem, config, torch.device("cuda", 3), substituted)

    monkeypatch.setattr(launch, "launcher_of", of_another_gpu)
    with torch.no_grad(), holdfast.backend("triton"):
        holdfast.RNN(8, 16)(torch.zeros(2, 1, 8))
    assert current == [torch.device("cuda", 3)]


def test_a_step_as_a_cuda_graph(fake, monkeypatch):
    """The code in Stateful's docstring, on CPU tensors: whatever is captured loads, synchronises and tunes nothing.
    Replaying needs a GPU: tests/test_gpu_graph.py."""
    text = inspect.getdoc(holdfast.Stateful)
    start, end = text.index("    x, h = torch.zeros(1, B"), text.index("    holdfast.check_stalled()")
    code = textwrap.dedent(text[start:end]).replace(', device="cuda"', "")
    captured, replays, launches = [], [], []

    class Graph:
        def replay(self):
            replays.append(True)

    @contextmanager
    def capture(graph):
        fake.refuse_to_load(True)
        before = len(launches)
        yield
        captured.append(len(launches) - before)
        fake.refuse_to_load(False)

    hand_over = launch.Launcher._hand_over
    monkeypatch.setattr(launch.Launcher, "_hand_over", lambda *given: launches.append(given) or hand_over(*given))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("a capture cannot wait"))
    monkeypatch.setattr(launch, "_capturing", lambda device: True)
    B, frames, outputs = 3, torch.randn(5, 3, 40), []
    names = {"torch": torch, "holdfast": holdfast, "module": holdfast.GRU(40, 128), "B": B}
    with holdfast.backend("triton"):
        exec(code, names | {"frames": frames, "outputs": outputs})
    assert captured == [1]
    assert (len(launches), len(replays), len(outputs)) == (2, 5, 5)
    assert outputs[0].shape == (B, 128)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_single_step_launches_once_and_loads_once(kind, fake):
    module, x = getattr(holdfast, kind)(8, 16), torch.zeros(1, 1, 8)
    with torch.no_grad(), holdfast.backend("triton"):
        module(x)
        loaded = len(fake.kernels)
        for _ in range(3):
            module(x)
    assert len(fake.kernels) == loaded
