"""holdfast::layer and holdfast::layer_backward by themselves: schema, fake kernels, derivative, errors."""

from itertools import product

import pytest
import torch

import holdfast
from holdfast.bench.check.layer import Case, Layer
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.interpreter import interpret

T, B, SIZE, H = 3, 2, 4, 5
CPU = torch.device("cpu")
OPS = torch.ops.holdfast


def arguments(cell, keep, *, directions=1, bias=True, initial=True, batch_first=False, dtype="float32", grad=True):
    case = Case(cell, "single_cta", torch.float32, H, B, T, directions, bias, batch_first=batch_first, input_size=SIZE)
    layer = Layer(case, seed=0)
    weights = [w for of_direction in layer.weights(CPU) for w in of_direction if w is not None]
    states = list(layer.hx) if initial else [None] * len(layer.hx)
    for t in (layer.x, *weights, *states):
        if t is not None:
            t.requires_grad_(grad)
    return layer.x, weights, states, cell, directions, batch_first, dtype, "ieee", keep


SCHEMAS = {
    "layer": (
        "holdfast::layer(Tensor x, Tensor[] weights, Tensor?[] initial, str cell, SymInt directions, bool batch_first, "
        "str dtype, str precision, str keep, Tensor? lengths=None, Tensor? starts=None, Tensor? resets=None, "
        "Tensor[]? reset_state=None, Tensor? dropout=None, Tensor[]? zoneout=None) -> Tensor[]"
    ),
    "layer_backward": (
        "holdfast::layer_backward(Tensor x, Tensor[] weights, Tensor[] initial, Tensor y, Tensor[] residuals, "
        "Tensor? dy, Tensor?[] d_final, str cell, SymInt directions, bool batch_first, str dtype, str precision, "
        "bool needs_dx, Tensor? lengths=None, Tensor? starts=None, Tensor? resets=None, Tensor[]? reset_state=None, "
        "Tensor? dropout=None, Tensor[]? zoneout=None, SymInt wanted=-1) -> Tensor[]"
    ),
}

VARIANTS = [
    {},
    {"directions": 2, "batch_first": True},
    {"bias": False, "initial": False},
    {"dtype": "bfloat16", "directions": 2},
]


def each_cell():
    """Every cell and keep with every option; half a minute of opcheck is enough for each run of the tests."""
    for i, (cell, keep) in enumerate(product(CELLS, ["save", "recompute"])):
        for j, options in enumerate(VARIANTS):
            marks = [] if j == (i + i // 2) % 4 else [pytest.mark.slow]
            yield pytest.param(cell, keep, options, marks=marks, id=f"{cell}-{keep}-{options}")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "keep", "options"), list(each_cell()))
def test_opcheck_of_layer(cell, keep, options):
    with interpret():
        torch.library.opcheck(OPS.layer.default, arguments(cell, keep, **options))


IN_GENERAL = ("rnn_tanh", "gru", "lstm")  # an Elman network, one state with gates, two states


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=[] if cell in IN_GENERAL else [pytest.mark.thorough]) for cell in CELLS]
)
def test_opcheck_of_layer_for_inference(cell):
    with interpret():
        torch.library.opcheck(OPS.layer.default, arguments(cell, "nothing", grad=False))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("cell", "keep", "options"), list(each_cell()))
def test_opcheck_of_layer_backward(cell, keep, options):
    x, weights, initial, *more, _ = arguments(cell, keep, grad=False, **options)
    n = CELLS[cell].states
    states = [] if initial[0] is None else initial
    with interpret():
        y, *rest = OPS.layer.default(x, weights, initial, *more, keep)
        final, residuals = rest[:n], rest[n:]
        of_final = [torch.randn_like(s) for s in final]
        for dy, d_final, needs_dx in ((torch.randn_like(y), [None] * n, True), (None, of_final, False)):
            gradients = (x, weights, states, y, residuals, dy, d_final, *more, needs_dx)
            torch.library.opcheck(OPS.layer_backward.default, gradients)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_that_nobody_asked_for_are_not_computed(cell):
    """Frozen weights cost no product over all steps; what is left has the same bits."""
    x, weights, initial, *more, _ = arguments(cell, "save")
    results, products = [], []
    for frozen in ((), (0,), (1,), tuple(range(len(weights)))):
        for index, weight in enumerate(weights):
            weight.requires_grad_(index not in frozen).grad = None
        initial[0].grad = x.grad = None
        with interpret():
            y, *_ = OPS.layer.default(x, weights, initial, *more, "save")
            with torch.profiler.profile() as profile:
                y.sum().backward()
        products.append(sum(e.count for e in profile.key_averages() if e.key in ("aten::mm", "aten::addmm")))
        results.append([t.grad for t in (x, *initial, *weights)])
    everything = results.pop(0)
    # dW_hh takes two products: with h_0 and with h of the other steps, or one for each that the cell has in a step.
    assert [products[0] - number for number in products[1:]] == [1, 2, 3]
    for found in results:
        assert all(g is None or torch.equal(g, e) for g, e in zip(found, everything, strict=True))
        assert None not in found[:2]


def test_an_empty_batch():
    module = holdfast.GRU(SIZE, H)
    x = torch.zeros(T, 0, SIZE)
    weights = list(module.parameters())
    with interpret():
        y, h_n = OPS.layer.default(x, weights, [None], "gru", 1, False, "float32", "ieee", "recompute")
        (y.sum() + h_n.sum()).backward()
    assert y.shape == (T, 0, H)
    assert all(not p.grad.any() for p in weights)


def test_layer_that_kept_nothing_has_no_backward():
    with interpret():
        y, *_ = OPS.layer.default(*arguments("gru", "nothing"))
        with pytest.raises(RuntimeError, match='keep="nothing"'):
            y.sum().backward()


@pytest.mark.parametrize("op", SCHEMAS)
def test_the_schema_is_that_of_saved_programs(op):
    """An argument of another name, place, type or default: an exported program of before would not load."""
    assert str(getattr(OPS, op).default._schema) == SCHEMAS[op]


def test_on_a_cpu_without_the_interpreter():
    with pytest.raises(RuntimeError, match="run on a GPU, or on a CPU inside the interpreter; x is on cpu"):
        OPS.layer.default(*arguments("gru", "nothing", grad=False))


def test_no_dtype_is_a_scalar_type():
    """AOTInductor of torch 2.11.0 hands over another one: see cells/ops/options.py and the slow test_aot_inductor."""
    assert not any("ScalarType" in str(op.default._schema) for op in (OPS.layer, OPS.layer_backward))


def test_a_dtype_without_kernels():
    with interpret(), pytest.raises(ValueError, match=r"dtype should be one of 'float32', .*, got 'float64'"):
        OPS.layer.default(*arguments("gru", "nothing", dtype="float64", grad=False))


def test_no_gradient_of_x_where_none_is_needed():
    x, weights, initial, *more = arguments("lstm", "save")
    x.requires_grad_(False)
    with interpret():
        y, *_ = OPS.layer.default(x, weights, initial, *more)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            y.sum().backward()
    assert x.grad is None
    assert all(w.grad is not None for w in (*weights, *initial))
    assert [event.name for event in profile.events()].count("aten::mm") == 2  # of w_ih and w_hh


def test_backward_runs_under_the_settings_of_its_forward():
    """On a GPU autograd has its own thread; here the interpreter's block has simply ended."""
    with interpret() as interpreter:
        y, *_ = OPS.layer.default(*arguments("gru", "save"))
    y.sum().backward()
    assert interpreter.launches == 2
