"""A kernel runs beside torch's own op before it serves a call: what that finds in kernels that are broken on purpose,
what runs in their place, and who remembers it. In the interpreter, on the fake driver, and, marked `gpu`, on a GPU."""

from __future__ import annotations

import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
import triton

import holdfast
from holdfast.autotune import identity, select, store, tried
from holdfast.autotune.pin import kernels_where_they_can, pinned
from holdfast.autotune.tried import FirstUseWarning
from holdfast.bench.method import fake_driver
from holdfast.cells.eager.reference import REFERENCES
from holdfast.cells.ops import trial
from holdfast.kernels import layer, stall
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.launch import launch
from holdfast.kernels.ptx.machine import Behaviour
from holdfast.kernels.refused import FailedFirstUseError
from holdfast.kernels.resources import H100, NotResidentError

CPU = torch.device("cpu")
TEAM = Config("cooperative", 16, 16, 32)


def process_begins(monkeypatch):
    """Nothing is remembered but what lies in files."""
    monkeypatch.setattr(tried, "_settled", {})
    monkeypatch.setattr(tried, "_warned", set())
    monkeypatch.setattr(select, "_refused", {})
    tried.failed_before.cache_clear()
    store.changed()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A user's cache of its own, and a process that knows nothing; half the steps, as the interpreter takes seconds."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(trial, "STEPS", 3)
    process_begins(monkeypatch)
    yield tmp_path
    store.changed()
    select._plan.cache_clear()
    tried.failed_before.cache_clear()


@pytest.fixture
def always():
    """The interpreter, where kernels are tried as well."""
    with interpret(), holdfast.first_use("always"), kernels_where_they_can():
        yield


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The interpreter, taken for a GPU: what is found is remembered in the user's cache."""
    monkeypatch.setattr(tried, "executor", SimpleNamespace(interpreting=lambda: False))
    monkeypatch.setattr(select, "interpreting", lambda: False)
    monkeypatch.setattr(select, "limits_of", lambda device: H100)
    with interpret(), kernels_where_they_can():
        yield


@pytest.fixture
def trials(monkeypatch):
    """The problems that were tried, in order."""
    seen = []
    real = trial.tried
    monkeypatch.setattr(trial, "tried", lambda problem, *more: seen.append(problem.phase) or real(problem, *more))
    return seen


def first_result(groups):
    """y of a launch forwards, da of one backwards."""
    return groups["out"][0]


def wrong_tile(groups, count):
    y = first_result(groups)
    y[..., :4] = y[..., 4:8].clone()


def one_nan(groups, count):
    first_result(groups)[-1, -1, -1] = float("nan")


def flaky(groups, count):
    if count % 2:
        first_result(groups)[0, 0, 0] *= 1 + 2**-10  # within rounding


def last_step_missing(groups, count):
    first_result(groups)[-1] = 0


def fails(groups, count):
    raise RuntimeError("Triton Error [CUDA]: an illegal instruction was encountered\nand more")


def wrong_final_state(groups, count):
    groups["states"].final[0].mul_(1.5)


def break_launches(monkeypatch, broken, phase):
    """Every launch of a phase's loop computes what `broken` makes of its results."""
    counts = []

    def launched(problem, config, device, groups):
        launch(problem, config, device, groups)
        if problem.phase == phase:
            counts.append(phase)
            broken(groups, len(counts))

    monkeypatch.setattr(layer, "launch", launched)


def made(cell=holdfast.GRU, **options):
    torch.manual_seed(0)
    return cell(4, 16, **options), torch.randn(5, 3, 4)


def expected(module, x):
    """Torch's own op, bit for bit."""
    with holdfast.backend("eager"):
        return module(x)


def names(plan):
    return [reason.name for reason in plan.reasons]


def assert_as_torchs(found, module, x):
    """Gradients, to what TF32 leaves of y, which the loss squares; those of a wrong tile are off by all of it."""
    with holdfast.backend("eager"):
        right = gradients(module, x)
    torch.testing.assert_close(found, right, atol=2e-3, rtol=2e-3)


def gradients(module, x):
    y, _ = module(x)
    return torch.autograd.grad(y.square().sum(), list(module.parameters()))


# A kernel that is right.


def test_a_right_kernel_is_tried_once_forwards_and_once_backwards(always, trials):
    module, x = made(holdfast.LSTM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            found = gradients(module, x)
        with holdfast.first_use("off"):
            assert all(torch.equal(a, b) for a, b in zip(found, gradients(module, x), strict=True))
    assert trials == ["forward", "backward"]
    with torch.no_grad():
        module(x)
        module(x.repeat(2, 5, 1))
        assert trials == ["forward", "backward", "forward"], "nothing kept is another kernel; sizes are none"


def test_another_set_of_tensors_is_another_kernel(always, trials):
    module, x = made()
    with torch.no_grad():
        module(x)
        module(x, torch.zeros(1, 3, 16))
        module(x, torch.ones(1, 3, 16))
        module(x, lengths=[5, 2, 0])
    assert trials == ["forward"] * 3


def test_in_the_interpreter_nothing_is_tried_unless_asked(trials):
    module, x = made()
    with interpret(), torch.no_grad(), holdfast.backend("triton"):
        module(x)
        assert "first use beside torch's op: not in the interpreter" in str(module.explain(x))
        with holdfast.first_use("off"):
            assert "first use beside torch's op: off" in str(module.explain(x))
    assert not trials


FEATURES = {
    "plain": ({}, {}),
    "lengths, zoneout": ({"zoneout": 0.2}, {"lengths": [5, 1, 3]}),
    "resets, dropout, heads": (
        {"recurrent_dropout": 0.3, "num_heads": 2},
        {"resets": torch.eye(5, 3, dtype=torch.bool)},
    ),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("config", [None, TEAM, Config("cooperative", 16, 16, 32, exchange="barrier")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", [holdfast.RNN, holdfast.GRU, holdfast.LSTM])
@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_right_passes(always, cell, dtype, config, feature):
    options, given = FEATURES[feature]
    module, x = made(cell, bidirectional=True, **options)
    module, x = module.to(dtype), x.to(dtype)
    with holdfast.backend("triton"), pinned(config):
        y, _ = module(x, **given)
        y.float().square().sum().backward()
    assert list(tried._settled.values()) == ["", ""]


def test_a_cell_that_overflows_says_nothing_where_torchs_does(always):
    module, x = made(holdfast.GRU, activation="exponential")
    module, x = module.half(), x.half()
    with torch.no_grad(), holdfast.backend("triton"):
        module(x)
    assert list(tried._settled.values()) == [""]


# Kernels that are broken on purpose.


@pytest.mark.parametrize("broken", [wrong_tile, one_nan, flaky, last_step_missing, fails, wrong_final_state])
def test_a_broken_kernel_is_not_used(always, monkeypatch, trials, broken, cache):
    break_launches(monkeypatch, broken, "forward")
    module, x = made()
    with torch.no_grad():
        with pytest.warns(FirstUseWarning, match="failed its first use and torch's own op runs in its place") as told:
            y, h = module(x)
        assert len(told) == 1
        assert (y.equal(expected(module, x)[0]), h.equal(expected(module, x)[1])) == (True, True)
        plan = module.explain(x)
        assert (plan.regime, names(plan)) == ("eager", ["failed_first_use"])
        assert "gru float32 hidden_size=16, forward" in str(plan)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module(x)
            module(x.repeat(1, 9, 1))
        assert trials == ["forward"], "known by now, for every batch size"
    (report,) = (cache / "first_use" / "reports").iterdir()
    content = json.loads(report.read_text())
    assert str(report) in str(told[0].message)
    assert content["key"]["hidden_size"] == 16
    assert content["fingerprint"]["source"]
    assert content["config"]["regime"] == "single_cta"
    assert {"wrong_tile": "y is off by", "flaky": "not the same twice", "fails": "illegal instruction"}.get(
        broken.__name__, "is off by"
    ) in content["why"]


@pytest.mark.parametrize("broken", [wrong_tile, flaky])
def test_a_broken_backward_kernel_leaves_its_pass_and_later_calls_to_torch(always, monkeypatch, broken):
    break_launches(monkeypatch, broken, "backward")
    module, x = made()
    with pytest.warns(FirstUseWarning, match="backward"):
        found = gradients(module, x)
    assert_as_torchs(found, module, x)
    assert names(module.explain(x)) == ["failed_first_use"]
    with torch.no_grad():
        assert module.explain(x).regime != "eager", "inference is not concerned"


def test_where_only_kernels_are_allowed_it_is_an_error(always, monkeypatch):
    break_launches(monkeypatch, wrong_tile, "forward")
    module, x = made()
    refused = pytest.raises(RuntimeError, match=r"cannot run on a kernel:\n  failed_first_use: gru float32")
    with torch.no_grad(), holdfast.backend("triton"):
        with pytest.warns(FirstUseWarning), refused:
            module(x)
        with refused:
            module(x)


def test_a_pinned_config_hears_of_it(always, monkeypatch):
    break_launches(monkeypatch, wrong_tile, "forward")
    module, x = made()
    with torch.no_grad(), pinned(TEAM), pytest.warns(FirstUseWarning), pytest.raises(FailedFirstUseError, match="off"):
        module(x)
    assert not select._refused


def test_what_is_not_the_kernels_fault_is_none_of_it(always, monkeypatch):
    def no_room(groups, count):
        raise NotResidentError("no room", SimpleNamespace())

    def no_memory(groups, count):
        raise torch.OutOfMemoryError("CUDA out of memory")

    module, x = made()
    for broken, error in ((no_room, NotResidentError), (no_memory, torch.OutOfMemoryError)):
        with monkeypatch.context() as patch, pinned(TEAM), torch.no_grad():
            break_launches(patch, broken, "forward")
            with pytest.raises(error):
                module(x)
        assert not tried._settled


def test_a_stall_counts_for_this_process_alone(as_on_a_gpu, monkeypatch, cache):
    break_launches(monkeypatch, lambda groups, count: stall.status_word(CPU).fill_(1), "forward")
    module, x = made()
    with torch.no_grad(), pytest.warns(FirstUseWarning, match="gave up"):
        module(x)
    stall.status_word(CPU).zero_()
    assert not list(cache.glob("first_use/*h100*/*.json"))


# A cell of one's own: its kernel against its reference.


@triton.jit
def _leaky_gates(x, a, state, p):
    return (x[0] + a[0],)


@triton.jit
def _leaky_update(v, state, p):
    return (0.5 * state[0] + 0.5 * v[0],)


@triton.jit
def _leaky_gradients(d, v, before, after, p):
    return (0.5 * d[0],), (0.5 * d[0],), (0.5 * d[0],), ()


@triton.jit
def _wrong_gradients(d, v, before, after, p):
    return (0.5 * d[0],), (0.5 * d[0],), (0.4 * d[0],), ()


@pytest.mark.parametrize(("gradients_of", "right"), [(_leaky_gradients, True), (_wrong_gradients, False)])
def test_a_cell_of_ones_own_is_compared_with_its_reference(always, gradients_of, right):
    def reference(x, product, states, parameters):
        h = 0.5 * states[0] + 0.5 * (x + product(states[0]))
        return (h,), (h,)

    functions = {"gates_of": _leaky_gates, "update": _leaky_update, "gradients": gradients_of}
    sizes = {"gates": 1, "states": 1, "values": 1, "saved": 0}
    name = holdfast.define_cell("leaky", **sizes, **functions, reference=reference, gate_names=["n"])
    try:
        torch.manual_seed(0)
        module, x = holdfast.Recurrent(name, 4, 16), torch.randn(5, 3, 4)
        if right:
            gradients(module, x)
            assert module.explain(x).regime == "single_cta"
        else:
            with pytest.warns(FirstUseWarning, match=r"leaky float32 hidden_size=16, backward"):
                found = gradients(module, x)
            assert_as_torchs(found, module, x)
    finally:
        del CELLS[name], REFERENCES[name]


# What is remembered.


def test_the_users_cache_remembers_what_was_right(as_on_a_gpu, monkeypatch, trials, cache):
    module, x = made(holdfast.RNN)
    assert "first use beside torch's op: to come" in str(module.explain(x))
    gradients(module, x)
    assert "first use beside torch's op: right on 2" in str(module.explain(x))
    assert "first use beside torch's op: backward: right on 2" in str(module.explain(x))
    process_begins(monkeypatch)
    gradients(module, x)
    assert trials == ["forward", "backward"]
    assert len(list(cache.glob("first_use/nvidia-h100-80gb-hbm3/rnn_tanh-*.json"))) == 2
    with torch.no_grad():
        module(x)
        with holdfast.first_use("always"):
            process_begins(monkeypatch)
            module(x)
        assert len(trials) == 4
        process_begins(monkeypatch)
        monkeypatch.setattr(identity, "driver_version", lambda: "999.1")
        module(x)
        assert len(trials) == 5, "with another driver it is another kernel"
        assert tried.clear() == 3
        module(x)
        assert len(trials) == 6


def test_the_users_cache_remembers_what_was_wrong(as_on_a_gpu, monkeypatch, trials):
    module, x = made()
    with torch.no_grad():
        with monkeypatch.context() as patch:
            break_launches(patch, wrong_tile, "forward")
            with pytest.warns(FirstUseWarning):
                module(x)
        process_begins(monkeypatch)
        with pytest.warns(FirstUseWarning) as told:
            assert names(module.explain(x)) == ["failed_first_use"], "before any call"
        assert len(told) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module(x)
        with holdfast.first_use("off"):
            assert module.explain(x).regime == "single_cta"
        assert trials == ["forward"]


@pytest.mark.filterwarnings("ignore::holdfast.autotune.tried.FirstUseWarning")
def test_another_config_of_the_problem_is_tried_and_used(as_on_a_gpu, monkeypatch, trials):
    """What is refused is the problem with its config: other batch sizes may have another."""
    alone = Config("single_cta", 16, 16, 16)

    def wrong_alone(problem, config, device, groups):
        launch(problem, config, device, groups)
        if config == alone:
            wrong_tile(groups, 1)

    monkeypatch.setattr(select, "choose", lambda problem, limits: alone if problem.batch_size <= 4 else TEAM)
    monkeypatch.setattr(layer, "launch", wrong_alone)
    module, x = made()
    many = x.repeat(1, 3, 1)
    with torch.no_grad():
        with pytest.warns(FirstUseWarning):
            module(x)
        for _ in range(2):
            assert names(module.explain(x)) == ["failed_first_use"]
            assert module.explain(many).config == TEAM
            with holdfast.backend("triton"):
                module(many)
            assert module(x)[0].equal(expected(module, x)[0])
            process_begins(monkeypatch)
    assert trials == ["forward"] * 2, "the next process knows of both"


@pytest.mark.parametrize("text", ["", '{"schema": 1}', "\0\xff" * 9])
def test_a_damaged_file_is_a_miss_with_a_warning(as_on_a_gpu, monkeypatch, trials, cache, text):
    module, x = made()
    with torch.no_grad():
        module(x)
        (path,) = cache.glob("first_use/*h100*/*.json")
        whole = path.read_text()
        path.write_text(text)
        process_begins(monkeypatch)
        with pytest.warns(FirstUseWarning, match="run beside torch's own op once more"):
            module(x)
        assert trials == ["forward"] * 2
        assert path.read_text()[:60] == whole[:60], "mended"


def test_a_cache_that_cannot_be_written_to_costs_no_more_than_a_trial(as_on_a_gpu, monkeypatch, trials, tmp_path):
    (tmp_path / "first_use").write_text("a file where a folder should be")
    module, x = made()
    with torch.no_grad():
        module(x)
        module(x)
        assert trials == ["forward"]
        process_begins(monkeypatch)
        break_launches(monkeypatch, wrong_tile, "forward")
        with pytest.warns(FirstUseWarning, match="no report: "):
            module(x)


# Captures and graphs.


def test_nothing_is_tried_while_a_graph_is_captured(always, monkeypatch, trials):
    module, x = made()
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setattr(tried, "capturing", lambda device: True)
            y, _ = module(x)
            assert y.equal(expected(module, x)[0])
            with holdfast.backend("triton"), pytest.raises(RuntimeError, match="not_tried: no call has tried"):
                module(x)
        assert not trials
        module(x)
        assert trials == ["forward"]
        monkeypatch.setattr(tried, "capturing", lambda device: True)
        assert not module(x)[0].equal(expected(module, x)[0]), "the call before it did it"
        assert module.explain(x).regime == "single_cta"


def test_a_backward_pass_that_is_captured_untried_is_torchs(always, monkeypatch):
    module, x = made()
    y, _ = module(x)
    with monkeypatch.context() as patch:
        patch.setattr(tried, "capturing", lambda device: True)
        found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
    assert_as_torchs(found, module, x)
    assert module.explain(x).regime == "single_cta", "for later calls nothing is settled"


def test_a_compiled_graph_stays_whole_and_right(always, monkeypatch, trials):
    break_launches(monkeypatch, wrong_tile, "backward")
    module, x = made()
    run = torch.compile(lambda x: module(x)[0], backend="aot_eager", fullgraph=True)
    with pytest.warns(FirstUseWarning):
        found = torch.autograd.grad(run(x).square().sum(), list(module.parameters()))
    again = torch.autograd.grad(run(x).square().sum(), list(module.parameters()))
    assert_as_torchs(found, module, x)
    assert_as_torchs(again, module, x)
    assert trials.count("backward") == 1
    torch._dynamo.reset()


def test_a_graph_whose_forward_pass_was_plain_goes_back_plainly(always, monkeypatch):
    """Though the kernel backwards is right: what it would go on with is not there."""
    break_launches(monkeypatch, lambda groups, count: flaky(groups, count) if count < 3 else None, "forward")
    module, x = made()
    run = torch.compile(lambda x: module(x)[0], backend="aot_eager", fullgraph=True)
    with pytest.warns(FirstUseWarning):
        y = run(x)
    assert_as_torchs(torch.autograd.grad(y.square().sum(), list(module.parameters())), module, x)
    torch._dynamo.reset()


# The setting.


def test_the_setting():
    assert "'first'" in repr(holdfast.first_use(holdfast.first_use.current()))
    with holdfast.first_use("off"):
        assert holdfast.first_use.current() == "off"
    with pytest.raises(ValueError, match="first_use should be one of 'first', 'off', 'always', got 'never'"):
        holdfast.first_use("never")


# On a driver: what is compiled is launched, and computes nothing.


def test_a_kernel_that_does_nothing_is_found_out():
    if (why := fake_driver.missing()) or torch.cuda.is_available():
        pytest.skip(why or "the tests marked gpu launch for real")
    module, x = made(holdfast.RNN)
    torch.use_deterministic_algorithms(True)  # fills what nobody writes with NaN
    try:
        with fake_driver.fake_gpu(), kernels_where_they_can(), torch.no_grad(), holdfast.first_use("always"):
            with pytest.warns(FirstUseWarning):
                y, _ = module(x)
            assert names(module.explain(x)) == ["failed_first_use"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert y.equal(expected(module, x)[0])


@pytest.mark.parametrize("wrong", ["", "rcp.approx", "ex2.approx"])
def test_a_compiled_kernel_with_a_wrong_instruction_is_found_out(wrong, monkeypatch):
    """Triton's own PTX, executed instruction by instruction, one of them replaced."""
    if (why := fake_driver.missing()) or torch.cuda.is_available():
        pytest.skip(why or "the tests marked gpu launch for real")
    decoded = fake_driver._decoded

    def miscompiled(text, *more):
        changed = re.sub(rf"{re.escape(wrong)}[.\w]*(\s+\S+,\s*\S+;)", r"mov.b32\1", text) if wrong else text
        assert (changed != text) == bool(wrong)
        return decoded(changed, *more)

    monkeypatch.setattr(fake_driver, "_decoded", miscompiled)
    module, x = made(holdfast.RNN)
    with fake_driver.fake_gpu(behaviour=Behaviour(seed=2)), kernels_where_they_can(), holdfast.first_use("always"):
        with torch.no_grad(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            module(x)
        assert names(module.explain(x)) == (["failed_first_use"] if wrong else [])
    # Once in a whole run torch, or somebody whose object was collected just then, had something else to say.
    ours = [w for w in told if "holdfast" in str(w.message)]
    assert [w.category for w in ours] == ([FirstUseWarning] if wrong else []), list(map(str, told))


# On a GPU.


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch, trials, cache):
    module, x = made(holdfast.LSTM)
    module, x = module.cuda(), x.cuda()
    with holdfast.backend("triton"), holdfast.first_use("first"):
        gradients(module, x)
        assert trials == ["forward", "backward"]
        assert len(list(cache.glob("first_use/*/*.json"))) == 2
        process_begins(monkeypatch)
        gradients(module, x)
        assert trials == ["forward", "backward"]
        assert "right on" in module.explain(x).first_use


@pytest.mark.gpu
def test_on_a_gpu_under_capture(trials):
    module, x = made()
    module, x = module.cuda(), x.cuda()
    with torch.no_grad(), holdfast.first_use("first"):
        graph = torch.cuda.CUDAGraph()
        for _ in range(2):
            module(x) if trials else expected(module, x)
            with torch.cuda.graph(graph):
                y, _ = module(x)
            graph.replay()
            torch.testing.assert_close(y, expected(module, x)[0], atol=1e-3, rtol=1e-3)
            trials.append("as if")
