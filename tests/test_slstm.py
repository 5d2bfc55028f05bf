"""holdfast.SLSTM: FlashRNN's numbers, its four states on every path, and what is refused."""

from __future__ import annotations

import copy
import pickle
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import holdfast
from holdfast.autotune.pin import pinned
from holdfast.bench.method.judge import compare_all
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret

FOLDER = Path(__file__).parent / "data" / "slstm"
RECORDED: dict[str, dict[str, Tensor]] = torch.load(FOLDER / "flashrnn.pt", weights_only=True)
CONFIGS = {
    "single_cta": Config("single_cta", 16, 32, 32),
    "dataflow": Config("cooperative", 16, 16, 32, exchange="dataflow"),
    "barrier": Config("cooperative", 16, 16, 32, exchange="barrier"),
}


@pytest.fixture
def products_in_float32():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def as_flashrnn(call: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The call by holdfast.SLSTM, in FlashRNN's layouts: all h, the last states, d Wx, d R, d b, d h, d c, d n.

    W_ih is the identity, so that x is Wx.
    """
    T, B, gates, heads, size = call["Wx"].shape
    H = heads * size
    module = holdfast.SLSTM(gates * H, H, num_heads=heads).to(dtype)
    with torch.no_grad():
        module.weight_ih_l0.copy_(torch.eye(gates * H))
        module.weight_hh_l0.copy_(call["R"].permute(2, 0, 3, 1).flatten(0, 2))
        module.bias_ih_l0.zero_()
        module.bias_hh_l0.copy_(call["b"].flatten())
    x = call["Wx"].flatten(2).to(dtype).requires_grad_()
    hx = [state.reshape(1, B, H).to(dtype).requires_grad_() for state in call["states"].unbind(2)]
    y, states = module(x, tuple(hx))
    sources = [x, module.weight_hh_l0, module.bias_hh_l0, *hx[:3]]
    dx, dw, db, *d_hx = torch.autograd.grad(y, sources, call["dh"].flatten(2).to(dtype))
    last = torch.stack(states, 2).view_as(call["last"])
    dw = dw.view(gates, heads, size, size).permute(1, 3, 0, 2)
    found = [y.view(T, B, heads, size), last, dx.view_as(call["Wx"]), dw, db.view_as(call["b"])]
    return [*found, *(d.view(1, B, heads, size) for d in d_hx)]


def theirs(call: dict[str, Tensor]) -> list[Tensor]:
    gradients = [call[f"d {name}"] for name in ("Wx", "R", "b", "h", "c", "n")]
    return [call["found"][:, :, 0], call["last"], *gradients]


@pytest.mark.parametrize("name", RECORDED)
def test_equals_flashrnn(name):
    """Values, and gradients though none flows through m: h does not depend on it."""
    call = RECORDED[name]
    expected = theirs(call)
    if name == "zeros":
        expected[-1] = 2 * expected[-1]  # torch halves the gradient of max(n, 1) where both are equal
    for found, right in zip(as_flashrnn(call, torch.float64), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("products_in_float32")
@pytest.mark.sampled(1)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", RECORDED)
def test_kernels_equal_flashrnn(name, config):
    call = RECORDED[name]
    if call["R"].shape[1] <= config.BLOCK_H and config.regime == "cooperative":
        call = wider(call)
    with interpret(), holdfast.backend("triton"), pinned(config):
        found = as_flashrnn(call, torch.float32)
    plain, right = as_flashrnn(call, torch.float32), as_flashrnn(call, torch.float64)
    for index, errors in enumerate(compare_all(found, plain, right, torch.float32, 2.0**-22)):
        assert errors.ok, f"{index}: {errors}"


def wider(call: dict[str, Tensor]) -> dict[str, Tensor]:
    """The call with each head's units four times over, so that a team of several has something to exchange."""
    many = {name: tensor.repeat_interleave(4, -1) for name, tensor in call.items()}
    many["R"] = many["R"].repeat_interleave(4, 1) / 4
    return many


def test_the_recorded_numbers_are_flashrnn_s():
    pytest.importorskip("flashrnn")
    for name, call in runpy.run_path(str(FOLDER / "record.py"))["all_calls"]().items():
        for key, tensor in call.items():
            torch.testing.assert_close(tensor, RECORDED[name][key], rtol=1e-12, atol=1e-12, msg=f"{name} {key}")


def module_and_x(**options):
    return holdfast.SLSTM(3, 8, **options), torch.randn(6, 4, 3)


def test_surface():
    module, x = module_and_x(num_layers=2, bidirectional=True, num_heads=2, learn_initial_state=True)
    assert repr(module) == "SLSTM(3, 8, num_layers=2, bidirectional=True, learn_initial_state=True, num_heads=2)"
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["weight_ih_l1_reverse"] == (32, 16)
    assert shapes["weight_hh_l0"] == (32, 4)
    assert {name for name in shapes if "initial" in name} == {f"initial_{state}" for state in "hcnm"}
    y, states, gates = module(x, return_gates=True)
    assert y.shape == (6, 4, 16)
    assert [tuple(state.shape) for state in states] == [(4, 4, 8)] * 4
    assert list(gates[0]) == ["i", "f", "z", "o", "h", "c", "n", "m"]
    torch.testing.assert_close(gates[1]["h"], y)
    torch.testing.assert_close(gates[1]["o"] * gates[1]["c"] / gates[1]["n"], y)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x)[0], y)


def test_a_sequence_in_parts_is_the_whole():
    module, x = module_and_x()
    whole, last = module(x)
    first, states = module(x[:2])
    second, states = module(x[2:], states)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(states, last)
    stream = holdfast.Stateful(module)
    torch.testing.assert_close(torch.cat([stream(x[:2]), *(stream.step(row)[None] for row in x[2:])]), whole)


@pytest.mark.parametrize("path", ["eager", "kernels"])
def test_a_reset_is_a_new_call_row_by_row(path):
    """n = 0 is asked of each row: the others' scale is not thrown away. FlashRNN asks it of the whole batch."""
    module, x = module_and_x()
    resets = torch.zeros(6, 4, dtype=torch.bool)
    resets[3, 1] = True
    with interpret() if path == "kernels" else holdfast.backend("eager"):
        y, states = module(x, resets=resets)
        whole, last = module(x)
        tail, end = module(x[3:, 1:2])
    others = [0, 2, 3]
    torch.testing.assert_close(y[:, others], whole[:, others])
    torch.testing.assert_close(y[3:, 1:2], tail)
    for state, of_whole, of_tail in zip(states, last, end, strict=True):
        torch.testing.assert_close(state[:, others], of_whole[:, others])
        torch.testing.assert_close(state[:, 1:2], of_tail)


@pytest.mark.parametrize("shift", [-200.0, 200.0])
@pytest.mark.parametrize("path", ["eager", "kernels"])
def test_a_shift_of_the_input_gate_changes_m_alone(shift, path):
    """exp of it alone is 0 or infinite in float32. After the first step h depends on f - i: both begin at i here."""
    module, x = module_and_x()
    with torch.no_grad():
        module.bias_ih_l0[8:16] = 100.0  # a forget gate of 1, so that nothing but the first step's m differs
    with interpret() if path == "kernels" else holdfast.backend("eager"):
        y, (_, c, n, m) = module(x)
        with torch.no_grad():
            module.bias_ih_l0[:8] += shift
        shifted, (_, c_shifted, n_shifted, m_shifted) = module(x)
    torch.testing.assert_close(shifted, y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(m_shifted, m + shift)
    torch.testing.assert_close((c_shifted, n_shifted), (c, n), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["eager", "kernels"])
def test_no_gradient_flows_through_m(path):
    module, x = module_and_x()
    hx = [torch.rand(1, 4, 8).requires_grad_() for _ in range(4)]
    with interpret() if path == "kernels" else holdfast.backend("eager"):
        _, states = module(x, tuple(hx))
        of_m = torch.autograd.grad(states[3].sum(), [*hx, module.weight_ih_l0], retain_graph=True)
        of_n = torch.autograd.grad(states[2].sum(), [hx[3], hx[2]], materialize_grads=True)
    assert all((gradient == 0).all() for gradient in of_m)
    assert (of_n[0] == 0).all()
    assert (of_n[1] != 0).any()


def test_a_gradient_of_a_gradient():
    """Twice through h, checked by differences: m is not in the way."""
    module = holdfast.SLSTM(2, 3).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)


def test_compiled_and_exported():
    module, x = module_and_x()
    right = module(x)[0]
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x)[0], right)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x)[0], right)


def test_explain():
    module, x = module_and_x()
    assert module.explain(x).op == "recurrence"
    with interpret():
        assert module.explain(x).regime in ("single_cta", "cooperative")


def test_refusals():
    with pytest.raises(ValueError, match=r"zoneout of an SLSTM should be one number, that of h, got \(0.1, 0, 0, 0\)"):
        holdfast.SLSTM(3, 8, zoneout=(0.1, 0, 0, 0))
    with pytest.raises(ValueError, match="num_heads"):
        holdfast.SLSTM(3, 8, num_heads=3)
    with pytest.raises(ValueError, match="a tuple of 4 tensors, got 2 of them"):
        module_and_x()[0](torch.randn(6, 4, 3), (torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)))
    with pytest.raises(TypeError):
        holdfast.SLSTM(3, 8, proj_size=2)


def test_the_benchmark_has_flashrnn_beside_it():
    pytest.importorskip("flashrnn")
    from holdfast.bench.method.case import Case
    from holdfast.bench.method.judge import Judge
    from holdfast.bench.method.numbers import Numbers
    from holdfast.bench.providers.flashrnn import FlashRNN

    numbers = Numbers(Case("slstm", torch.float32, 8, 2, 5), torch.device("cpu"))
    prepared = FlashRNN("vanilla").prepare(numbers, "training")
    prepared.call(0)
    verdict = Judge(numbers)(prepared.results(), torch.float32, factor=2)
    assert verdict.ok, verdict
