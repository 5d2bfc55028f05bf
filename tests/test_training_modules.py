"""Gradients through whole modules on the kernel path against torch.nn in float64, and what else training touches."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import holdfast
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.tolerance import compare_all, worst

CELLS = {
    "rnn_tanh": (holdfast.RNN, nn.RNN, {}),
    "rnn_relu": (holdfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (holdfast.GRU, nn.GRU, {}),
    "lstm": (holdfast.LSTM, nn.LSTM, {}),
}
T, B, INPUT, HIDDEN = 4, 3, 5, 11


@pytest.fixture(autouse=True)
def interpreter():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    with interpret(seed=0) as running, holdfast.backend("triton"):
        yield running
    torch.backends.cudnn.allow_tf32 = before


def results_and_gradients(module, batched, dtype, path):
    """Outputs, and gradients of x, hx and every parameter, in `dtype`, of a random weighing of all outputs."""
    module = copy.deepcopy(module).to(dtype)
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    batch = (B,) if batched else ()
    x = numbers(*((*batch, T, INPUT) if module.batch_first else (T, *batch, INPUT))).requires_grad_()
    rows = module.num_layers * (2 if module.bidirectional else 1)
    hx = [numbers(rows, *batch, HIDDEN).requires_grad_() for _ in range(2 if module.mode == "LSTM" else 1)]
    with holdfast.backend(path):
        y, final = module(x, tuple(hx) if len(hx) == 2 else hx[0])
        outputs = [y, *(final if isinstance(final, tuple) else (final,))]
        torch.autograd.backward(outputs, [numbers(*t.shape) for t in outputs])
    return [t.detach() for t in outputs] + [t.grad for t in (x, *hx, *module.parameters())]


def away_from_kinks(module):
    """Preactivations of relu near 1 or -1: near 0 a rounding error picks the other derivative."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.startswith("weight"):
                p.mul_(0.2)
            elif name.startswith("bias_ih"):
                p.copy_(torch.randint(2, p.shape) * 2 - 1)


SHAPES = [
    {"num_layers": layers, "bidirectional": both, "batch_first": first, "dropout": dropout}
    for layers, both, first, dropout in [
        (1, False, True, 0.0),
        (1, True, False, 0.0),
        (2, False, False, 0.0),
        (3, True, True, 0.0),
        (2, True, False, 1.0),
        (2, False, True, 1.0),
    ]
]


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("options", SHAPES, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
@pytest.mark.parametrize("cell", CELLS)
def test_as_torch_in_float64(cell, options, batched, interpreter):
    ours, theirs, more = CELLS[cell]
    a, b = ours(INPUT, HIDDEN, **options, **more), theirs(INPUT, HIDDEN, **options, **more)
    if cell == "rnn_relu":
        away_from_kinks(a)
    b.load_state_dict(a.state_dict())
    a.keep = "save" if batched else "recompute"
    found = results_and_gradients(a, batched, torch.float32, "triton")
    assert interpreter.launches == 2 * options["num_layers"]
    torchs, exact = (results_and_gradients(b, batched, dtype, "eager") for dtype in (torch.float32, torch.float64))
    errors = worst(compare_all(found, torchs, exact, torch.float32))
    assert errors.ok, errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_half_precision_as_torch_in_float64(cell, dtype):
    ours, theirs, _ = CELLS[cell]
    a, b = ours(INPUT, HIDDEN, 2, bidirectional=True), theirs(INPUT, HIDDEN, 2, bidirectional=True)
    b.load_state_dict(a.to(dtype).state_dict())
    found = results_and_gradients(a, True, dtype, "triton")
    torchs, exact = (results_and_gradients(b, True, kind, "eager") for kind in (dtype, torch.float64))
    errors = worst(compare_all(found, torchs, exact, dtype))
    assert errors.ok, errors


# module.keep

X = torch.ones(T, B, INPUT)


def test_keep_is_the_modules_choice():
    module = holdfast.LSTM(INPUT, HIDDEN)
    assert module.keep is None
    assert module.explain(X).keep == "save"
    module.keep = "recompute"
    assert module.explain(X).keep == "recompute"
    module.keep = None
    assert module.explain(X).keep == "save"
    with pytest.raises(ValueError, match="'save', 'recompute', None, got 'all'"):
        module.keep = "all"


def test_default_of_keep_is_by_bytes(monkeypatch):
    module = holdfast.GRU(INPUT, HIDDEN, 2, bidirectional=True)
    plan = module.explain(X)
    assert plan.kept_bytes == 2 * 2 * T * B * 4 * HIDDEN * 4
    monkeypatch.setattr("holdfast.cells.call.decision.SAVE_AT_MOST", plan.kept_bytes - 1)
    assert module.explain(X).keep == "recompute"


@pytest.mark.parametrize("cell", CELLS)
def test_bytes_that_are_kept(cell):
    """What explain() says is what autograd holds beyond inputs, weights and outputs; "recompute" halves it at least."""
    ours, _, more = CELLS[cell]
    module = ours(INPUT, HIDDEN, **more)
    held = {}
    for keep in ("save", "recompute"):
        module.keep = keep
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.setdefault(t.data_ptr(), t), lambda t: t
        ):
            y, _ = module(X)
        known = {t.data_ptr() for t in (X, y, *module.parameters())}
        held[keep] = sum(t.nbytes for pointer, t in saved.items() if pointer not in known)
        assert held[keep] == module.explain(X).kept_bytes
    assert held["recompute"] <= held["save"] / 2


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: saved_and_loaded(m)],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_keep_is_copied_with_the_module(copied):
    module = holdfast.GRU(INPUT, HIDDEN)
    module.keep = "recompute"
    other = copied(module)
    assert other.keep == "recompute"
    assert module.state_dict().keys() == nn.GRU(INPUT, HIDDEN).state_dict().keys()
    assert repr(module) == repr(nn.GRU(INPUT, HIDDEN))
    for m in (module, other):
        m(X)[0].sum().backward()
    assert torch.equal(module.weight_hh_l0.grad, other.weight_hh_l0.grad)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_converted_module_and_an_old_pickle_have_a_keep():
    module = holdfast.convert(nn.GRU(INPUT, HIDDEN))
    assert module.keep is None
    module.keep = "recompute"
    assert module.keep == "recompute"
    assert holdfast.to_torch(module)(X)[0].shape == (T, B, HIDDEN)


def test_weights_only_load():
    a, b = holdfast.LSTM(INPUT, HIDDEN), holdfast.LSTM(INPUT, HIDDEN)
    a.keep = "recompute"
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    b.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(a(X)[0], b(X)[0])


def test_the_same_gradients_every_time():
    """No atomics: bit for bit, whatever the schedule, in deterministic mode too."""
    module = holdfast.LSTM(INPUT, HIDDEN, 2, bidirectional=True)
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for seed in range(3):
            module.zero_grad()
            with interpret(seed=seed):
                module(X)[0].square().sum().backward()
            found.append([p.grad.clone() for p in module.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    for other in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(found[0], other, strict=True))
