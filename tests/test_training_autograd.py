"""What autograd users expect of the kernel path, beside torch.nn: graphs kept, reused, broken and differentiated twice.

In float32 through the interpreted kernels unless a test says otherwise.
"""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import holdfast
from holdfast.cells.call.decision import decide
from holdfast.cells.eager.recurrence import unroll
from holdfast.cells.eager.reference import FAMILIES, REFERENCES, reference_of
from holdfast.kernels.interpreter import interpret

CELLS = {
    "rnn_tanh": (holdfast.RNN, nn.RNN, {}),
    "rnn_relu": (holdfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, nn.GRU, {}),
    "lstm": (holdfast.LSTM, nn.LSTM, {}),
}
T, B, INPUT, H = 4, 2, 3, 5


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


@pytest.fixture(autouse=True)
def interpreter():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    with interpret(seed=0) as running, holdfast.backend("auto"):
        yield running
    torch.backends.cudnn.allow_tf32 = before


def pair(cell, dtype=torch.float32, **options):
    """holdfast's module, and torch.nn's with the same weights in `dtype`."""
    ours, theirs, more = CELLS[cell]
    a, b = ours(INPUT, H, **options, **more), theirs(INPUT, H, **options, **more)
    b.load_state_dict(a.state_dict())
    return a, b.to(dtype)


def inputs(module, batch=B):
    dtype = next(module.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    shape = (batch, T, INPUT) if module.batch_first else (T, batch, INPUT)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def close(ours, theirs, tolerance=2e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=tolerance * 10, atol=tolerance)


def gradients(module, x):
    return [x.grad, *(p.grad for p in module.parameters())]


def states(hx):
    return hx if isinstance(hx, tuple) else (hx,)


# The graph


def test_retain_graph_twice(cell, interpreter):
    a, b = pair(cell)
    found = []
    for module in (a, b):
        x = inputs(module)
        loss = module(x)[0].square().sum()
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        found.append(gradients(module, x))
    close(*found)
    assert interpreter.launches == 3


def test_backward_in_eval_mode(cell, interpreter):
    a, b = pair(cell, num_layers=2, dropout=0.5)
    found = []
    for module in (a.eval(), b.eval()):
        x = inputs(module)
        module(x)[0].square().sum().backward()
        found.append(gradients(module, x))
    close(*found)
    assert interpreter.launches == 4


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(cell, use_reentrant, interpreter):
    a, b = pair(cell)
    x, other = inputs(a), inputs(b)
    checkpoint(lambda x: a(x)[0].tanh(), x, use_reentrant=use_reentrant).square().sum().backward()
    b(other)[0].tanh().square().sum().backward()
    close(gradients(a, x), gradients(b, other))
    assert interpreter.launches == 3


def test_selective_checkpointing_may_keep_the_layer(cell, interpreter):
    """A policy names the op, and its results are kept: the time loop does not run a second time."""
    a, b = pair(cell)
    x, other = inputs(a), inputs(b)
    keep_layers = partial(create_selective_checkpoint_contexts, [torch.ops.holdfast.layer.default])
    y = checkpoint(lambda x: a(x)[0].tanh(), x, use_reentrant=False, context_fn=keep_layers)
    y.square().sum().backward()
    b(other)[0].tanh().square().sum().backward()
    close(gradients(a, x), gradients(b, other))
    assert interpreter.launches == 2


def test_nothing_is_kept_where_no_backward_can_follow(cell):
    a, _ = pair(cell)
    x = inputs(a).detach()
    for call in (torch.no_grad(), torch.inference_mode()):
        with call:
            assert a.explain(x).backward is None
            assert a(x)[0].grad_fn is None
    a.requires_grad_(False)
    assert a(x)[0].grad_fn is None


def test_the_graph_does_not_outlive_its_results(cell):
    """y is saved by the node that made it: no cycle that only the garbage collector would find."""
    a, _ = pair(cell)
    gc.disable()
    try:
        y, _ = a(inputs(a))
        gone = weakref.ref(y)
        del y, _
        assert gone() is None
    finally:
        gc.enable()


def test_tied_weights_have_one_gradient(cell):
    a, b = pair(cell, bidirectional=True)
    found = []
    for module in (a, b):
        module.weight_hh_l0_reverse = module.weight_hh_l0
        x = inputs(module)
        module(x)[0].square().sum().backward()
        found.append(gradients(module, x))
    close(*found)


def test_frozen_weights(cell):
    a, b = pair(cell)
    found = []
    for module in (a, b):
        module.requires_grad_(False).weight_hh_l0.requires_grad_()
        x = inputs(module)
        module(x)[0].square().sum().backward()
        assert module.weight_ih_l0.grad is None
        found.append([x.grad, module.weight_hh_l0.grad])
    close(*found)


@pytest.mark.parametrize("keep", ["save", "recompute"])
def test_autocast_casts_inside(cell, keep):
    """Gradients come back in the dtypes of what they belong to."""
    a, b = pair(cell, torch.float64)
    a.keep = keep
    x = inputs(a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = a(x)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    other = inputs(b)
    b(other)[0].sum().backward()
    assert all(g.dtype is torch.float32 for g in gradients(a, x))
    close(gradients(a, x), gradients(b, other), tolerance=0.08)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection(cell, interpreter):
    a, b = pair(cell)
    x, other = inputs(a), inputs(b)
    with torch.autograd.detect_anomaly(check_nan=True):
        a(x)[0].square().sum().backward()
    b(other)[0].square().sum().backward()
    close(gradients(a, x), gradients(b, other))
    assert interpreter.launches == 2


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_autograd_runs_the_backward_kernel(backend, interpreter):
    torch._dynamo.reset()
    a, b = pair("lstm")
    x, other = inputs(a), inputs(b)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend)):
        a(x)[0].square().sum().backward()
    b(other)[0].square().sum().backward()
    close(gradients(a, x), gradients(b, other))
    assert interpreter.launches == 2


# Gradients of some results only


def used(name, y, final):
    return {"y": [y], "one step": [y[1]], "h_n": [final[0]], "last state": [final[-1]], "all": [y, *final]}[name]


@pytest.mark.parametrize("name", ["y", "one step", "h_n", "last state", "all"])
def test_gradient_of_some_results(cell, name):
    a, b = pair(cell, num_layers=2)
    found = []
    for module in (a, b):
        x = inputs(module)
        y, hx = module(x)
        sum(t.square().sum() for t in used(name, y, states(hx))).backward()
        found.append(gradients(module, x))
    close(*found)


@pytest.mark.parametrize("kind", ["expanded", "transposed", "strided"])
def test_strides_of_a_gradient(cell, kind):
    a, b = pair(cell)
    found = []
    for module in (a, b):
        x = inputs(module)
        y, _ = module(x)
        torch.manual_seed(2)
        g = {
            "expanded": lambda y=y: torch.ones(()).expand(y.shape),
            "transposed": lambda y=y: torch.randn(*reversed(y.shape)).permute(2, 1, 0),
            "strided": lambda y=y: torch.randn(*y.shape[:-1], 2 * H)[..., ::2],
        }[kind]()
        y.backward(g)
        found.append(gradients(module, x))
    close(*found)


def test_no_gradient_needed_for_x(cell):
    a, b = pair(cell)
    for module in (a, b):
        module(inputs(module).detach())[0].square().sum().backward()
    close([p.grad for p in a.parameters()], [p.grad for p in b.parameters()])


def test_gradients_of_the_initial_states(cell):
    a, b = pair(cell, bidirectional=True)
    found = []
    for module in (a, b):
        torch.manual_seed(3)
        hx = tuple(torch.randn(2, B, H, requires_grad=True) for _ in range(2 if cell == "lstm" else 1))
        y, final = module(inputs(module), hx if cell == "lstm" else hx[0])
        sum(t.square().sum() for t in (y, *states(final))).backward()
        found.append([state.grad for state in hx])
    close(*found)


# What torch refuses is refused in the same words


def refusal(break_, module):
    x = inputs(module) * 1
    y, _ = module(x)
    loss = y.square().sum()
    break_(module, x, y, loss)
    with pytest.raises(RuntimeError) as raised:
        loss.backward()
    return str(raised.value)


def test_backward_twice(cell):
    ours, theirs = (refusal(lambda m, x, y, loss: loss.backward(), module) for module in pair(cell))
    assert ours == theirs
    assert "backward through the graph a second time" in ours


@torch.no_grad()
def _change_y(module, x, y, loss):
    y.zero_()


@torch.no_grad()
def _change_x(module, x, y, loss):
    x.zero_()


@torch.no_grad()
def _change_w_hh(module, x, y, loss):
    module.weight_hh_l0.zero_()


@torch.no_grad()
def _change_w_ih(module, x, y, loss):
    module.weight_ih_l0.zero_()


@pytest.mark.parametrize("change", [_change_y, _change_x, _change_w_hh, _change_w_ih])
def test_changing_what_backward_needs(cell, change):
    ours, theirs = (refusal(change, module).split(":")[0] for module in pair(cell))
    assert ours == theirs
    assert "modified by an inplace operation" in ours


def test_changing_after_backward_is_fine(cell):
    a, _ = pair(cell)
    y, _ = a(inputs(a))
    y.sum().backward()
    _change_w_hh(a, None, y, None)
    _change_y(a, None, y, None)


def test_an_optimizer_step_between_forward_and_backward_is_noticed(cell):
    for module in pair(cell):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        x = inputs(module)
        module(x)[0].sum().backward()
        loss = module(x)[0].sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_hooks_of_saved_tensors_see_them(cell):
    """Offloading (saved_tensors_hooks) works: everything that the backward pass reads goes through it."""
    a, b = pair(cell)
    packed = []

    def pack(t):
        packed.append(t)
        return t.clone()

    x, other = inputs(a), inputs(b)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y, _ = a(x)
    y.sum().backward()
    b(other)[0].sum().backward()
    close(gradients(a, x), gradients(b, other))
    assert len(packed) >= 6


# Beyond the kernels: the plain recurrence


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [*REFERENCES, *FAMILIES, "lstm(softsign,hard_sigmoid)", "gru(elu,softplus)"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradcheck_of_the_recurrence(name, reverse):
    reference = reference_of(name)
    gates = reference.gates
    shapes = [(3, 2, 2), (gates * 3, 2), (gates * 3, 3), (gates * 3,), (gates * 3,)]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    tensors += [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(reference.states)]
    if reference.parameters:
        tensors.append(torch.randn(reference.parameters, 3, dtype=torch.float64, requires_grad=True))

    def run(x, w_ih, w_hh, b_ih, b_hh, *rest):
        hx, own = rest[: reference.states], rest[reference.states :]
        if name == "slstm":  # c and n have a scale, m, that no gradient knows; n is a sum of exponentials
            hx = (*hx[:2], hx[2].exp(), torch.zeros_like(hx[3]))
        hs, final = unroll(name, x, [w_ih, w_hh, b_ih, b_hh, *own], hx, reverse=reverse)
        return (hs, final[0]) if name == "slstm" else (hs, *final)

    assert gradcheck(run, tensors)
    assert gradgradcheck(run, tensors)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
def test_double_backward(cell, options):
    """A gradient penalty: second derivatives for every parameter, x and the initial states, against float64."""
    a, b = pair(cell, torch.float64, **options)
    found = []
    for module in (a, b):
        x = inputs(module)
        torch.manual_seed(4)
        rows = module.num_layers * (2 if module.bidirectional else 1)
        hx = tuple(torch.randn(rows, B, H).to(x.dtype).requires_grad_() for _ in range(2 if cell == "lstm" else 1))
        y, final = module(x, hx if cell == "lstm" else hx[0])
        loss = sum(t.square().sum() for t in (y, *states(final)))
        first = torch.autograd.grad(loss, (x, *hx), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, *hx, *module.parameters()))
        found.append([*first, *second])
    close(*found, tolerance=2e-5)


def test_double_backward_adds_to_the_loss(cell):
    a, b = pair(cell, torch.float64)
    found = []
    for module in (a, b):
        x = inputs(module)
        loss = module(x)[0].square().sum()
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + g.square().sum()).backward()
        found.append(gradients(module, x))
    close(*found, tolerance=2e-5)


def test_third_derivative(cell):
    a, b = pair(cell, torch.float64)
    found = []
    for module in (a, b):
        x = inputs(module)
        g = module(x)[0].pow(3).sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
        found.append([g])
    close(*found, tolerance=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_batched_gradients(cell):
    """is_grads_batched, and with it jacobian(vectorize=True), runs the backward pass under autograd's older vmap."""
    a, b = pair(cell, torch.float64)
    x, other = inputs(a), inputs(b)
    ours = torch.autograd.functional.jacobian(lambda x: a(x)[0], x, vectorize=True)
    theirs = torch.autograd.functional.jacobian(lambda x: b(x)[0], other)
    close([ours], [theirs])
    y, _ = a(x)
    rows = torch.eye(y.numel()).view(-1, *y.shape)
    (new,) = vmap(lambda row: torch.autograd.grad(y, x, row))(rows)
    close([new.view(*y.shape, *x.shape)], [theirs])


def test_hessian(cell):
    a, b = pair(cell, torch.float64)
    hessian = torch.autograd.functional.hessian
    close(
        [hessian(lambda x: a(x)[0].square().sum(), inputs(a))],
        [hessian(lambda x: b(x)[0].square().sum(), inputs(b))],
        tolerance=2e-5,
    )


def test_transforms_take_the_eager_path_by_themselves(cell, interpreter):
    """vmap of grad: per-sample gradients. torch.nn's GRU and RNN raise here."""
    a, b = pair(cell, torch.float64)
    weights = {name: p.detach() for name, p in a.named_parameters()}

    def loss(weights, x):
        return functional_call(a, weights, (x,))[0].square().sum()

    x = inputs(a, batch=3).detach()
    per_sample = vmap(grad(loss), in_dims=(None, 1))(weights, x)
    assert interpreter.launches == 0
    for i in range(3):
        b.zero_grad()
        b(x[:, i].double())[0].square().sum().backward()
        close([per_sample[name][i] for name, _ in b.named_parameters()], [p.grad for p in b.parameters()])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["jacrev", "jacfwd", "hessian"])
def test_function_transforms_against_autograd(cell, name, interpreter):
    """Of a module in float64, where no kernel runs, as in torch.nn; in float32 the kernels stand aside."""
    a, b = pair(cell, torch.float64)
    x = inputs(b).detach()
    transform, reference = getattr(torch.func, name), torch.autograd.functional
    expected = (reference.hessian if name == "hessian" else reference.jacobian)(lambda x: b(x)[0].square().sum(), x)
    close([transform(lambda x: a(x)[0].square().sum())(x.float())], [expected], tolerance=2e-5)
    a.double()
    close([transform(lambda x: a(x)[0].square().sum())(x)], [expected], tolerance=1e-12)
    assert interpreter.launches == 0


def test_nested_grad_on_a_gpu_leaves_cudnn(cell):
    """Fake tensors: the decision needs no GPU."""
    a, _ = pair(cell)
    needed = []

    def loss(x):
        with FakeTensorMode(allow_non_fake_inputs=True):
            call = a._checked(torch.empty(T, B, INPUT, device="cuda"), None)
            needed.append(decide(call).path == "recurrence")
        return x.square().sum()

    grad(loss)(torch.ones(()))
    grad(grad(loss))(torch.ones(()))
    assert needed == [False, True]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_jvp_and_forward_ad_take_the_eager_path_by_themselves(cell, interpreter):
    a, _ = pair(cell)
    x, v = inputs(a), torch.randn(T, B, INPUT)
    _, tangent = torch.func.jvp(lambda x: a(x)[0], (x.detach(),), (v,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), v)
        assert a.explain(dual).op == "recurrence"
        other = torch.autograd.forward_ad.unpack_dual(a(dual)[0]).tangent
    assert interpreter.launches == 0
    y, _ = a(x)
    w = torch.randn_like(y)
    (g,) = torch.autograd.grad(y, x, w)
    for t in (tangent, other):
        torch.testing.assert_close((t * w).sum(), (g * v).sum(), rtol=1e-4, atol=1e-5)
