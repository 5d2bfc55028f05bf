"""No number is lost or invented: every bit pattern through publishing and polling, gates that saturate, special values,
and rows that do not hear of each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from holdfast.bench.check.layer import Case, Layer
from holdfast.bench.check.run import REGIMES
from holdfast.bench.method.floor import Exchange
from holdfast.bench.method.judge import compare_all, relative_error, worst
from holdfast.kernels import gemm
from holdfast.kernels import layer as kernel_layer
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.layer import backward_layer, forward_layer
from holdfast.kernels.loop.exchange import Sent, await_sent, numbers_in_word, publish, read_chunks
from holdfast.kernels.loop.groups import Team
from holdfast.kernels.loop.walk import this_member
from holdfast.kernels.problem import Problem
from holdfast.kernels.stall import check_stalled

pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY = [(cell, regime) for cell in CELLS for regime in REGIMES]


# Every bit pattern, through one exchange.


@triton.jit(do_not_specialize=["T", "B"])
def hand_on(given_ptr, channel_ptr, found_ptr, team, T, B, LOOP: tl.constexpr):
    """Each program publishes its units of a step, waits for everybody's and notes the words that it has read."""
    HIDDEN: tl.constexpr = LOOP.HIDDEN
    NUMBERS: tl.constexpr = numbers_in_word(channel_ptr.dtype.element_ty, LOOP.HEAD)
    WORDS: tl.constexpr = LOOP.BLOCK_K // NUMBERS
    CHUNKS: tl.constexpr = LOOP.CHUNKS
    me = this_member(0, LOOP)
    row = tl.arange(0, LOOP.BLOCK_B)
    row_ok = row < B
    mask = me.unit_ok[:, None] & row_ok[None, :]
    offsets = row[None, :] * HIDDEN + me.unit[:, None]
    for step in tl.range(T, disable_licm=True):
        start = tl.cast(step, tl.int64) * B * HIDDEN
        value = tl.load(given_ptr + start + offsets, mask=mask, other=0.0)
        publish(channel_ptr + start + offsets, (value,), mask, team, 1, LOOP)
        base = channel_ptr + start
        sent = Sent(base=base, row_offsets=row * HIDDEN, row_ok=row_ok, low=None, high=HIDDEN, kept=(), step=step)
        tiles, _ = await_sent(sent, True, (step + 1) * LOOP.MEMBERS, team.spin_limit, team, LOOP)
        if LOOP.EXCHANGE == "barrier":
            tiles = read_chunks(sent, NUMBERS, LOOP)
        for chunk in tl.static_range(CHUNKS):
            k = chunk * WORDS + tl.arange(0, WORDS)
            where = (tl.cast(step, tl.int64) * B + row[:, None]) * (HIDDEN // NUMBERS) + k[None, :]
            ok = row_ok[:, None] & (k < HIDDEN // NUMBERS)[None, :]
            tl.store(found_ptr + me.number * T * B * (HIDDEN // NUMBERS) + where, tiles[chunk], mask=ok)


@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_bit_pattern_is_handed_on(dtype, exchange, device):
    """All 65,536, each in a word beside another one: what is a number arrives bit for bit, and a NaN as one."""
    hidden, batch = 64, 64
    patterns = torch.arange(65536, dtype=torch.int32)
    order = torch.randperm(65536, generator=torch.Generator().manual_seed(1))
    bits = torch.stack([patterns, patterns[order]], 1).flatten().to(torch.int16)
    numbers = bits.view(dtype).view(-1, batch, hidden)
    given = _in_float32(bits, dtype).view(numbers.shape).to(device)
    steps = len(numbers)
    problem = Problem("rnn_tanh", dtype, hidden, batch)
    run = Exchange(problem, Config("cooperative", 64, 32, 32, exchange=exchange), device, steps)
    run.reset()
    loop = run.values["LOOP"]
    found = torch.zeros(loop.MEMBERS, steps, batch, hidden // 2, dtype=torch.int32, device=device)
    team = Team(
        arrivals=run.arrivals if exchange == "barrier" else None,
        status=torch.zeros(1, dtype=torch.int32, device=device),
        spin_limit=10**6 // 16 * 16,
        partial=None,
    )
    arguments = {"given_ptr": given, "channel_ptr": run.channel, "found_ptr": found, "team": team, "T": steps}
    run.launch(hand_on, loop.MEMBERS, arguments | {"B": batch, "LOOP": loop})
    check_stalled()
    assert not team.status.any()
    arrived = found.cpu().view(torch.int16).view(loop.MEMBERS, -1)
    nan = numbers.isnan().flatten()
    for words in arrived:
        assert torch.equal(words[~nan], bits[~nan])
        assert words[nan].view(dtype).isnan().all()
        if exchange == "dataflow":
            assert (words != -1).all(), "the sentinel is nobody's number"


def _in_float32(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers, the payloads of bfloat16's NaNs kept: all ones stay all ones."""
    if dtype == torch.bfloat16:
        low = torch.where(bits == -1, 0xFFFF, 0).to(torch.int32)
        return (bits.to(torch.int32) << 16 | low).view(torch.float32)
    return bits.view(dtype).float()


# Gates that saturate.


@pytest.mark.sampled
@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_saturated_gates(cell, regime, size, device):
    """|a| up to 1e4: exp overflows and nothing becomes NaN, forwards and backwards."""
    case = Case(cell, regime, torch.float32, hidden_size=20, batch_size=3, length=3)
    layer = Layer(case, seed=8)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        bias = layer.module.bias_ih_l0
        bias.copy_((torch.rand(bias.shape, generator=generator) * 2 - 1) * size)
    found, gradients = layer.kernels(device), layer.gradients(device, "save")
    assert all(tensor.isfinite().all() for tensor in (*found, *gradients.values()))
    # All is saturated, and gradients near 1e-13: torch's own error is taken from near by, too.
    near = [layer.neighbour(seed) for seed in range(8)]
    for ours, of in (
        ([*found], lambda one, dtype: [*one.torch_nn(dtype)]),
        ([*gradients.values()], lambda one, dtype: [one.torch_gradients(dtype)[name] for name in gradients]),
    ):
        elsewhere = max(relative_error(of(one, torch.float32), of(one, torch.float64)) for one in near)
        errors = compare_all(ours, of(layer, torch.float32), of(layer, torch.float64), torch.float32, elsewhere)
        assert worst(errors).ok


# Special values.

SPECIAL = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "denormal": 1e-40,
    "-0.0": -0.0,
}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_special_values_forwards(cell, regime, kind, device):
    """In x and in the first state: NaN and infinite where torch is, and nowhere else."""
    case = Case(cell, regime, torch.float32, hidden_size=20, batch_size=4, length=3)
    layer = Layer(case, seed=10)
    layer.x[1, 1, 2] = SPECIAL[kind]
    layer.hx[-1][0, 2, 3] = SPECIAL[kind]
    for ours, torchs in zip(layer.kernels(device), layer.torch_nn(torch.float64), strict=True):
        _same_kinds(ours, torchs)
        torch.testing.assert_close(ours[..., 0, :], torchs[..., 0, :].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_special_values_backwards(cell, regime, kind, device):
    """In the gradient of y: a row's own gradients may be NaN or infinite, and no other row's are."""
    case = Case(cell, regime, torch.float32, hidden_size=20, batch_size=4, length=3)
    layer = Layer(case, seed=11, away_from_kinks=cell == "rnn_relu")
    given = layer.loss_weights()
    given[0][1, 2, 3] = SPECIAL[kind]
    layer.loss_weights = lambda: given
    found, right = layer.gradients(device, "save"), layer.torch_gradients()
    for name in ("x", "hx[0]"):
        others = [0, 1, 3]
        assert found[name][:, others].isfinite().all()
        torch.testing.assert_close(found[name][:, others], right[name][:, others].float(), rtol=1e-3, atol=1e-4)
    if kind in ("denormal", "-0.0"):
        assert all(tensor.isfinite().all() for tensor in found.values())
    for name in found:  # of an infinity torch's formulas make NaN in other places
        assert torch.equal(found[name].isfinite(), right[name].isfinite()), name


def _same_kinds(ours: torch.Tensor, right: torch.Tensor) -> None:
    assert torch.equal(ours.isnan(), right.isnan())
    assert torch.equal(ours.isposinf(), right.isposinf())
    assert torch.equal(ours.isneginf(), right.isneginf())


# Rows do not hear of each other.


@pytest.fixture
def exact_projection(monkeypatch):
    """In float64: a library's GEMM rounds a row otherwise among more or fewer others."""

    def project_input(problem, x, weights, **options):
        double = [type(w)(*[None if t is None else t.double() for t in w]) for w in weights]
        return gemm.project_input(problem, x.double(), double, **options).to(x.dtype)

    monkeypatch.setattr(kernel_layer, "project_input", project_input)


def of_rows(case: Case, config: Config, layer: Layer, rows, device: torch.device) -> list[torch.Tensor]:
    """y, final states, gradients of both preactivations and of the initial states, of these rows as a batch."""
    x, hx = layer.x[:, rows].to(device), [state[:, rows].to(device) for state in layer.hx]
    weights = layer.weights(device)
    problem = replace(case.problem, batch_size=len(rows))
    y, final, residuals = forward_layer(problem, config, x, weights, hx, keep="save")
    dy, *d_final = [g[:, rows].to(device) for g in layer.loss_weights()]
    backward, noted = replace(problem, phase="backward"), []
    found = backward_layer(backward, config, x, weights, hx, y, residuals, dy, d_final, noted=noted)
    da = noted[0]["out"].da
    return [tensor.cpu() for tensor in (y, *final, *found.initial, da)]


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("cell", "regime"), EVERY)
def test_a_row_knows_neither_its_neighbours_nor_their_number(cell, regime, dtype, device, exact_projection):
    """The same config, alone, first or last of a batch of several tiles, beside NaN and infinity: the same bits."""
    case = Case(cell, regime, dtype, hidden_size=20, batch_size=19, length=3)
    layer = Layer(case, seed=12)
    alone = of_rows(case, case.config, layer, [4], device)
    few = of_rows(case, case.config, layer, [1, 4, 2], device)
    many = of_rows(case, case.config, layer, list(range(19)), device)
    others = torch.tensor([row != 4 for row in range(19)])
    layer.x[:, others] = float("nan")
    layer.x[0, 0] = float("inf")
    layer.hx[0][:, others] = 3e38
    among_nan = of_rows(case, case.config, layer, list(range(19)), device)
    for one, second, fifth, same in zip(alone, few, many, among_nan, strict=True):
        assert torch.equal(second[:, 1], one[:, 0])
        assert torch.equal(fifth[:, 4], one[:, 0])
        assert torch.equal(same[:, 4], one[:, 0])
