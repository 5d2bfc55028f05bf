"""holdfast.backend, explain() and the choice of path, the kernel path itself included (in the interpreter)."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn.utils.rnn import pack_sequence

import holdfast
from holdfast.cells import base
from holdfast.cells.call.decision import decide
from holdfast.cells.eager.fused import cudnn_backward_wants_training_mode
from holdfast.kernels.interpreter import interpret

torch.set_num_threads(1)

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


def names(plan):
    return [reason.name for reason in plan.reasons]


# The setting


@pytest.fixture(autouse=True)
def _auto():
    """Each test starts from "auto", whatever HOLDFAST_BACKEND says, and leaves nothing behind."""
    with holdfast.backend("auto"):
        yield


def test_plain_call_holds_until_the_next():
    holdfast.backend("eager")
    assert holdfast.current_backend() == "eager"
    holdfast.backend("triton")
    assert holdfast.current_backend() == "triton"


def test_with_blocks_nest_and_put_back():
    with holdfast.backend("eager"):
        with holdfast.backend("triton"):
            assert holdfast.current_backend() == "triton"
            holdfast.backend("auto")
        assert holdfast.current_backend() == "eager"
    assert holdfast.current_backend() == "auto"
    with pytest.raises(KeyError), holdfast.backend("eager"):
        raise KeyError
    assert holdfast.current_backend() == "auto"


def test_one_object_may_be_entered_again():
    eager = holdfast.backend("eager")
    for _ in range(2):
        with eager:
            assert holdfast.current_backend() == "eager"
        assert holdfast.current_backend() == "auto"


def test_other_threads_and_tasks_are_not_touched():
    seen = []
    with holdfast.backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(holdfast.current_backend()))
        thread.start()
        thread.join()
    assert seen == [os.environ.get("HOLDFAST_BACKEND", "auto")]

    async def task(name):
        with holdfast.backend(name):
            await asyncio.sleep(0)
            return holdfast.current_backend()

    async def both():
        return await asyncio.gather(task("eager"), task("triton"))

    assert asyncio.run(both()) == ["eager", "triton"]


@pytest.mark.parametrize("name", ["cuda", "", "Auto", None, 3, ["auto"]], ids=str)
def test_unknown_name_lists_the_valid_ones(name):
    with pytest.raises(ValueError, match="'auto', 'triton', 'eager'") as raised:
        holdfast.backend(name)
    assert repr(name) in str(raised.value)
    assert holdfast.current_backend() == "auto"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_environment_variable():
    environment = {name: value for name, value in os.environ.items() if name != "HOLDFAST_BACKEND"}
    code = [sys.executable, "-c", "import holdfast; print(holdfast.current_backend())"]
    assert subprocess.run(code, env=environment, capture_output=True, text=True, check=True).stdout.strip() == "auto"
    done = python("import holdfast; print(holdfast.current_backend())", HOLDFAST_BACKEND="eager")
    assert done.stdout.strip() == "eager", done.stderr
    done = python("import holdfast", HOLDFAST_BACKEND="fast")
    assert done.returncode != 0
    assert "HOLDFAST_BACKEND should be one of 'auto', 'triton', 'eager', got 'fast'" in done.stderr


def test_import_loads_neither_triton_nor_dynamo_and_a_cpu_forward_does_not_either():
    code = (
        "import sys, torch; before = set(sys.modules); import holdfast\n"
        "holdfast.LSTM(3, 4)(torch.randn(5, 2, 3))\n"
        "print([m for m in ('triton', 'torch._dynamo', 'pandas', 'rich') if m in set(sys.modules) - before])"
    )
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr


# Why a call runs eager


def test_every_reason_is_named():
    module = holdfast.LSTM(3, 4, proj_size=2).double()
    x = pack_sequence([torch.randn(4, 3).double(), torch.randn(2, 3).double()])
    with holdfast.backend("eager"):
        plan = module.explain(x)
    assert plan.regime == "eager"
    assert plan.config is None
    expected = {"no_gpu", "unsupported_dtype", "backend_eager"}
    assert set(names(plan)) == expected
    assert all(name in str(plan) for name in expected)
    assert plan.problem.batch_size == 2


@pytest.mark.parametrize(
    ("module", "mode", "cell"),
    [
        (holdfast.RNN(3, 4), "RNN_TANH", "rnn_tanh"),
        (holdfast.RNN(3, 4, nonlinearity="relu"), "RNN_RELU", "rnn_relu"),
        (holdfast.GRU(3, 4, bidirectional=True), "GRU", "gru"),
        (holdfast.LSTM(3, 4), "LSTM", "lstm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_problem_of_a_plan(module, mode, cell):
    assert module.mode == mode
    problem = module.explain(X).problem
    assert (problem.cell, problem.dtype, problem.hidden_size, problem.batch_size) == (cell, torch.float32, 4, 2)
    assert problem.directions == (2 if module.bidirectional else 1)
    assert module.explain(X[:, 0]).problem.batch_size == 1


def test_explain_runs_nothing():
    module = holdfast.GRU(3, 4, 2, dropout=0.5)
    state = torch.get_rng_state()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module.explain(X, torch.zeros(2, 2, 4))
    assert not [event.name for event in profile.events() if "gru" in event.name]
    assert torch.equal(state, torch.get_rng_state())


def test_tf32_setting_of_torch():
    module = holdfast.LSTM(3, 4)
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    try:
        for value, expected in (("tf32", "tf32"), ("ieee", "ieee")):
            rnn.fp32_precision = value
            assert module.explain(X).problem.precision == expected
            assert module.bfloat16().explain(X.bfloat16()).problem.precision == "ieee"
            module.float()
    finally:
        rnn.fp32_precision = before


def test_triton_raises_with_every_reason():
    module = holdfast.GRU(3, 4)
    with holdfast.backend("triton"), pytest.raises(RuntimeError) as raised:
        module(X)
    message = str(raised.value)
    assert message.startswith('GRU: holdfast.backend is "triton"')
    for part in ("no_gpu", 'holdfast.backend("auto")', "explain"):
        assert part in message


def test_triton_lets_an_empty_batch_pass():
    module = holdfast.LSTM(3, 4)
    with holdfast.backend("triton"):
        assert module(X[:, :0])[0].shape == (5, 0, 4)


@pytest.mark.parametrize("name", ["auto", "eager"])
def test_auto_and_eager_give_torch_result_on_a_cpu(name):
    module = holdfast.LSTM(3, 4)
    reference = holdfast.to_torch(holdfast.LSTM(3, 4))
    reference.load_state_dict(module.state_dict())
    with holdfast.backend(name):
        assert torch.equal(module(X)[0], reference(X)[0])


# The kernel path, in the interpreter

CELLS = {
    "rnn_tanh": (holdfast.RNN, nn.RNN, {}),
    "rnn_relu": (holdfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, nn.GRU, {}),
    "lstm": (holdfast.LSTM, nn.LSTM, {}),
}
SHAPES = [
    {},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]


def pair(cell, **options):
    ours, theirs, more = CELLS[cell]
    a, b = ours(3, 7, **options, **more), theirs(3, 7, **options, **more)
    a.load_state_dict(b.state_dict())
    return a.eval(), b.eval()


def states(hx):
    return hx if isinstance(hx, tuple) else (hx,)


def close(result, expected):
    torch.testing.assert_close(result[0], expected[0], rtol=0, atol=1e-5, equal_nan=True)
    assert result[0].stride() == expected[0].stride()
    assert type(result[1]) is type(expected[1])
    for ours, theirs in zip(states(result[1]), states(expected[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, equal_nan=True)


@pytest.fixture
def _ieee():
    """The interpreter rounds the operands of a tf32 dot, as a GPU does."""
    rnn = torch.backends.cudnn.rnn
    before, rnn.fp32_precision = rnn.fp32_precision, "ieee"
    yield
    rnn.fp32_precision = before


@pytest.mark.usefixtures("_ieee")
@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_kernel_path_matches_torch(cell, options):
    a, b = pair(cell, **options)
    rows = a.num_layers * (2 if a.bidirectional else 1)
    h = torch.randn(rows, 2, 7)
    hx = (h, torch.randn(rows, 2, 7)) if cell == "lstm" else h
    x = X.transpose(0, 1) if a.batch_first else X
    unbatched = tuple(s[:, 0] for s in states(hx))
    with torch.no_grad(), holdfast.backend("triton"), interpret() as interpreter:
        assert a.explain(x).regime in ("single_cta", "cooperative")
        close(a(x), b(x))
        close(a(x, hx), b(x, hx))
        close(a(X[:, 0]), b(X[:, 0]))
        one = unbatched if cell == "lstm" else unbatched[0]
        close(a(X[:, 0], one), b(X[:, 0], one))
        assert interpreter.launches == 4 * a.num_layers


@pytest.mark.usefixtures("_ieee")
def test_kernel_path_with_dropout_between_layers():
    a, b = pair("lstm", num_layers=2, dropout=1.0)
    a.train(), b.train()
    with torch.no_grad(), holdfast.backend("triton"), interpret():
        close(a(X), b(X))
        a.dropout = b.dropout = 0.0
        close(a(X), b(X))


def test_kernel_path_under_autocast():
    """Everything is cast to the autocast dtype, and that is what comes out, as from cuDNN."""
    a, b = pair("lstm", bidirectional=True)
    hx = (torch.randn(2, 2, 7), torch.randn(2, 2, 7))
    with torch.no_grad(), holdfast.backend("triton"), interpret():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, final = a(X, hx)
            assert a.explain(X, hx).problem.dtype is torch.bfloat16
        assert output.dtype is torch.bfloat16
        assert all(state.dtype is torch.bfloat16 for state in final)
    torch.testing.assert_close(output.float(), b(X, hx)[0], rtol=0, atol=0.03)


@pytest.mark.usefixtures("_ieee")
def test_kernel_path_uses_weights_as_they_are_now():
    a, b = pair("gru")
    with torch.no_grad(), holdfast.backend("triton"), interpret():
        close(a(X), b(X))
        for module in (a, b):
            module.weight_hh_l0 = nn.Parameter(torch.ones(21, 7) / 7)
            nn.utils.parametrizations.weight_norm(module, "weight_ih_l0")
        close(a(X), b(X))
        weights = {"bias_hh_l0": torch.randn(21)}
        close(torch.func.functional_call(a, weights, (X,)), torch.func.functional_call(b, weights, (X,)))


@pytest.mark.usefixtures("_ieee")
@pytest.mark.parametrize("where", ["x", "h_0", "weights"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_kernel_path_spreads_nan_and_inf_as_torch(where, value):
    a, b = pair("lstm")
    x, hx = X.clone(), (torch.zeros(1, 2, 7), torch.zeros(1, 2, 7))
    with torch.no_grad(), holdfast.backend("triton"), interpret():
        if where == "x":
            x[2, 0, 1] = value
        elif where == "h_0":
            hx[0][0, 1, 3] = value
        else:
            a.weight_hh_l0[1, 1] = b.weight_hh_l0[1, 1] = value
        close(a(x, hx), b(x, hx))


@pytest.mark.usefixtures("_ieee")
def test_kernel_path_in_inference_mode():
    a, b = pair("lstm", num_layers=2, bidirectional=True)
    with torch.inference_mode(), holdfast.backend("triton"), interpret():
        close(a(X), b(X))
        assert a(X)[0].is_inference()


def test_auto_takes_the_kernel_where_it_can():
    a, _ = pair("gru")
    with interpret() as interpreter:
        a(X)[0].sum().backward()
        assert interpreter.launches == 2
        with torch.no_grad():
            a(X)
            assert interpreter.launches == 3
            assert a.explain(X).reasons == ()
            with holdfast.backend("eager"):
                a(X)
                assert names(a.explain(X)) == ["backend_eager"]
        assert interpreter.launches == 3


def test_plan_of_a_call_that_trains():
    a, _ = pair("gru", num_layers=2)
    with interpret():
        plan = a.explain(X)
        assert plan.backward.problem.phase == "backward"
        assert (plan.keep, plan.kept_bytes) == ("save", 2 * 5 * 2 * 4 * 7 * 4)
        assert all(part in str(plan) for part in ("backward: ", "keep: save", "double backward: eager"))
        a.keep = "recompute"
        assert (a.explain(X).keep, a.explain(X).kept_bytes) == ("recompute", 0)
        with torch.no_grad():
            assert a.explain(X).backward is None
            assert a.explain(X).keep == ""
        a.requires_grad_(False)
        assert a.explain(X).backward is None
        assert a.explain(X.clone().requires_grad_()).backward is not None


def test_plan_names_the_op_of_an_eager_call():
    a, _ = pair("lstm")
    assert a.explain(X).op == "fused"
    plans = []

    def explained(x):
        plans.append(a.explain(x))
        return x

    vmap(explained)(X[None])
    assert plans[0].op == "recurrence"
    assert "plain torch ops" in str(plans[0])


@pytest.mark.parametrize(
    ("reason", "call"),
    [
        ("transform", lambda m: vmap(lambda x: m(x)[0])(X[None])),
        ("transform", lambda m: jvp(lambda x: m(x)[0], (X,), (X,))),
        ("forward_ad", lambda m: with_tangent(m)),
        ("mixed_dtypes", lambda m: m(X, torch.zeros(1, 2, 7, dtype=torch.bfloat16))),
        ("mixed_devices", lambda m: m(X, torch.zeros(1, 2, 7, device="meta"))),
        ("tracing", lambda m: torch.jit.trace(m, X)),
        ("unsupported_dtype", lambda m: m.double()(X.double())),
        ("not_plain_tensors", lambda m: m(X.as_subclass(Subclass))),
        ("not_plain_tensors", lambda m: m(X, torch.zeros(1, 2, 7, dtype=torch.complex64).conj().imag)),
        ("misshapen_weights", lambda m: (setattr(m, "weight_hh_l0", nn.Parameter(torch.zeros(21, 6))), m(X))),
        ("misshapen_weights", lambda m: (setattr(m, "bias_hh_l0", nn.Parameter(torch.zeros(1))), m(X))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_reason_against_a_kernel(reason, call):
    a, _ = pair("gru")
    with torch.no_grad(), holdfast.backend("triton"), interpret(), pytest.raises(RuntimeError) as raised:
        call(a)
    listed = [line.split(":")[0].strip() for line in str(raised.value).splitlines()[1:-1]]
    assert listed == [reason]


def with_tangent(module):
    with forward_ad.dual_level():
        module(forward_ad.make_dual(X, X))


def test_hidden_size_that_cannot_be_resident():
    module = nn.utils.skip_init(holdfast.LSTM, 1, 8192)  # 1 GB that nobody touches
    x = torch.randn(5, 2, 1)
    with torch.no_grad(), interpret():
        plan = module.explain(x)
        assert plan.regime == "eager"
        (name,) = names(plan)
        with holdfast.backend("triton"), pytest.raises(RuntimeError, match=f"{name}: "):
            module(x)


CALLS = {
    "plain": {},
    "gates": {"return_gates": True},
    "lengths": {"lengths": [5, 2]},
    "nothing to walk": {"lengths": [0, 0]},
    "resets": {"resets": torch.ones(5, 2, dtype=torch.bool)},
}


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kernels", [False, True])
def test_a_call_is_decided_once_and_explain_says_how(arguments, kernels, monkeypatch):
    decisions = []

    def watched(call):
        decisions.append(decide(call))
        return decisions[-1]

    monkeypatch.setattr(base, "decide", watched)
    for module in (holdfast.LSTM(3, 4), holdfast.GRU(3, 4, 2, zoneout=0.1), holdfast.RNN(3, 4).eval()):
        module.keep = "recompute"
        with interpret() if kernels else nullcontext():
            plan = module.explain(X, **arguments)
            module(X, **arguments)
        (decision,) = decisions
        assert (decision.path == "kernels") is (plan.regime != "eager") is kernels
        if kernels:
            assert decision.keep == plan.keep
        else:
            assert (decision.path == "recurrence") is (plan.op == "recurrence")
        decisions.clear()


class Subclass(torch.Tensor):
    pass


def test_eval_mode_backward_takes_cudnn_training_mode():
    """On CUDA tensors only, and only where a backward may follow. Fake tensors: the decision needs no GPU."""
    module = holdfast.LSTM(3, 4).eval()

    def wants_training_mode(x):
        call = module._checked(x, None)
        return cudnn_backward_wants_training_mode(call, decide(call))

    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu, on_cpu = torch.empty(5, 2, 3, device="cuda"), torch.empty(5, 2, 3)
        assert wants_training_mode(on_gpu)
        assert not wants_training_mode(on_cpu)
        module.train()
        assert not wants_training_mode(on_gpu)
        module.eval()
        with torch.no_grad():
            assert not wants_training_mode(on_gpu)
