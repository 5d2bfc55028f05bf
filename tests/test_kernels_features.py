"""Lengths, packed rows, resets, dropout of h, zoneout and every cell in the time loops: values and gradients as those
of the plain recurrence in float64, for random combinations."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

import pytest
import torch

from holdfast.bench.tolerance import compare_all
from holdfast.cells.activations import ACTIVATIONS
from holdfast.cells.packed_rows import PackedRows
from holdfast.cells.unfused import unroll
from holdfast.kernels import gemm, layer
from holdfast.kernels.cell_spec import CELLS, find_cell
from holdfast.kernels.config import Config
from holdfast.kernels.extras import Extras
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.layer import LayerWeights, backward_layer, forward_layer
from holdfast.kernels.problem import FEATURES, Problem

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NAMES = [*CELLS, "lstm(softsign,hard_sigmoid)", "gru(elu,sigmoid)", "lstm_peephole(softsign,sigmoid)"]
REGIMES = ["single_cta", "dataflow", "barrier"]


@dataclass
class Call:
    """A layer and its arguments, padded and on the CPU, in float32."""

    cell: str
    x: torch.Tensor
    weights: list[list[torch.Tensor]]
    initial: list[torch.Tensor] | None = None
    lengths: torch.Tensor | None = None
    packed: bool = False
    resets: torch.Tensor | None = None
    reset_state: list[torch.Tensor] | None = None
    dropout: torch.Tensor | None = None
    zoneout: list[torch.Tensor] | None = None
    reverse: bool = False
    gradients: list[torch.Tensor] = field(default_factory=list)

    @property
    def hidden(self) -> int:
        return self.weights[0][1].shape[1]


def draw_call(cell: str, seed: int) -> Call:
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(*size, generator=generator)

    def states(chance):
        return [randn(D, B, H) for _ in range(spec.states)] if pick.random() < chance else None

    spec = find_cell(cell)
    H, B, T = pick.choice([5, 16, 20, 33]), pick.choice([1, 3, 4, 18]), pick.choice([1, 2, 5])
    D, inputs, bias, packed = pick.choice([1, 2]), 3, pick.random() < 0.7, pick.random() < 0.25
    rows = spec.gates * H

    def weights():
        found = [randn(rows, inputs) / 2, randn(rows, H) / H**0.5]
        found += [randn(rows) / 3, randn(rows) / 3] if bias else []
        return found + ([randn(spec.parameters, H) / 3] if spec.parameters else [])

    lengths = None
    if packed:
        lengths = torch.tensor(sorted((pick.randint(1, T) for _ in range(B)), reverse=True))
        lengths[0] = T
    elif pick.random() < 0.5:
        lengths = torch.tensor([pick.randint(0, T) for _ in range(B)])
    resets = torch.rand(T, B, generator=generator) < 0.4 if not packed and pick.random() < 0.6 else None
    zoneout = None
    if pick.random() < 0.4:
        drawn = [torch.rand(T, B, D * H, generator=generator).lt(0.3).float() for _ in range(spec.states)]
        constant = [torch.tensor(0.25 + 0.1 * k).expand(T, B, D * H) for k in range(spec.states)]
        zoneout = pick.choice([drawn, constant])
    return Call(
        cell,
        randn(T, B, inputs),
        [weights() for _ in range(D)],
        states(0.6),
        lengths,
        packed,
        resets,
        states(0.5) if resets is not None else None,
        torch.rand(D, B, H, generator=generator).lt(0.7).float() / 0.7 if pick.random() < 0.4 else None,
        zoneout,
        D == 1 and pick.random() < 0.5,
        [randn(T, B, D * H), *(randn(D, B, H) for _ in range(spec.states))],
    )


def plainly(call: Call, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Outputs, and the gradients of everything that has one, by the plain recurrence."""

    def leaf(tensor):
        return tensor.to(dtype, copy=True).requires_grad_()

    x, weights = leaf(call.x), [[leaf(w) for w in own] for own in call.weights]
    initial = None if call.initial is None else [leaf(state) for state in call.initial]
    reset_state = None if call.reset_state is None else [leaf(state) for state in call.reset_state]
    outputs, finals = [], []
    zeros = (x.new_zeros(x.shape[1], call.hidden),) * find_cell(call.cell).states
    for direction, own in enumerate(weights):
        units = slice(direction * call.hidden, (direction + 1) * call.hidden)
        y, final = unroll(
            call.cell,
            x,
            own,
            zeros if initial is None else tuple(state[direction] for state in initial),
            reverse=direction == 1 or call.reverse,
            lengths=call.lengths,
            resets=call.resets,
            reset_states=tuple(state[direction] for state in reset_state or ()),
            dropout=None if call.dropout is None else call.dropout[direction].to(dtype),
            zoneout=[zone[..., units].to(dtype) for zone in call.zoneout or ()],
        )
        outputs.append(y)
        finals.append(final)
    y = torch.cat(outputs, -1)
    final = [torch.stack(of_one) for of_one in zip(*finals, strict=True)]
    torch.autograd.backward(
        [out + 0 * x.sum() for out in (y, *final)], [gradient.to(dtype) for gradient in call.gradients]
    )
    found = {"y": y, "dx": x.grad}
    found |= {f"final {k}": state for k, state in enumerate(final)}
    found |= {f"d weight {d} {k}": w.grad for d, own in enumerate(weights) for k, w in enumerate(own)}
    found |= {f"d initial {k}": state.grad for k, state in enumerate(initial or ())}
    found |= {f"d reset {k}": state.grad for k, state in enumerate(reset_state or ())}
    return {k: torch.zeros_like(y).sum() if v is None else v.detach() for k, v in found.items()}


def through_kernels(call: Call, regime: str, keep: str, device: torch.device) -> dict[str, torch.Tensor]:
    """The same from the kernels."""
    spec, D = find_cell(call.cell), len(call.weights)
    starts, rows, gradients, x, zoneout = None, None, call.gradients, call.x, call.zoneout
    if call.packed:
        sizes = (call.lengths > torch.arange(x.shape[0])[:, None]).sum(1)
        starts = sizes.cumsum(0) - sizes
        rows = PackedRows.of(starts, call.lengths, int(sizes.sum()))
        x, gradients = rows.packed(x), [rows.packed(gradients[0]), *gradients[1:]]
        zoneout = None if zoneout is None else [rows.packed(zone) for zone in zoneout]

    def there(value):
        if isinstance(value, list):
            return [there(v) for v in value]
        return None if value is None else value if is_expanded(value) else value.to(device)

    extras = Extras(*map(there, (call.lengths, starts, call.resets, call.reset_state, call.dropout, zoneout)))
    if regime == "single_cta":
        block = max(16, 1 << (call.hidden - 1).bit_length())
        config = Config("single_cta", 16, block, block)
    else:
        config = Config("cooperative", 16, 16, 32, exchange=regime)
    problem = Problem(call.cell, torch.float32, call.hidden, call.x.shape[1], D, features=extras.features)
    weights = []
    for own in call.weights:
        matrices, biases, parameters = own[:2], own[2:4], own[len(own) - 1 :] if spec.parameters else [None]
        weights.append(
            LayerWeights(*there(matrices), *(there(biases) if len(own) > 3 else (None, None)), *there(parameters))
        )
    arguments = (config, there(x), weights, there(call.initial))
    options = {"reverse": call.reverse, "extras": extras}
    y, final, residuals = forward_layer(problem, *arguments, keep=keep, **options)
    again, _, _ = forward_layer(problem, *arguments, keep="nothing", **options)
    assert torch.equal(y, again), "what a run keeps changes nothing"
    dy, *d_final = there(gradients)
    backward = replace(problem, phase="backward")
    gradient = backward_layer(backward, *arguments, y, residuals, dy, d_final, **options)
    unpacked = rows.padded if rows is not None else lambda t: t
    found = {"y": unpacked(y.cpu()), "dx": unpacked(gradient.x.cpu())}
    found |= {f"final {k}": state for k, state in enumerate(final)}
    of_weights = [[g for g in own if g is not None] for own in gradient.weights]
    found |= {f"d weight {d} {k}": g for d, own in enumerate(of_weights) for k, g in enumerate(own)}
    if call.initial is not None:
        found |= {f"d initial {k}": g for k, g in enumerate(gradient.initial)}
    found |= {f"d reset {k}": g for k, g in enumerate(gradient.reset_state)}
    return {name: value.cpu() for name, value in found.items()}


def is_expanded(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and all(stride == 0 for stride in tensor.stride())


def assert_right(call: Call, regime: str, keep: str, device: torch.device) -> None:
    found, torchs, exact = (
        through_kernels(call, regime, keep, device),
        plainly(call, torch.float32),
        plainly(call, torch.float64),
    )
    assert found.keys() == exact.keys()
    # A call of a few numbers may be exact by luck; three TF32 products keep 22 bits.
    each = [[one[name] for name in exact] for one in (found, torchs, exact)]
    for name, errors in zip(exact, compare_all(*each, torch.float32, 2.0**-22), strict=True):
        assert errors.ok, f"{name}: {errors}"


@pytest.mark.parametrize(("cell", "regime"), list(itertools.product(NAMES, REGIMES)))
def test_random_combinations(cell, regime, device):
    for seed in range(4):
        call = draw_call(cell, seed + sum(map(ord, cell + regime)))
        assert_right(call, regime, ("save", "recompute")[seed % 2], device)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "regime"), list(itertools.product(NAMES, REGIMES)))
def test_many_random_combinations(cell, regime, device):
    for _ in range(40):
        seed = random.randrange(2**31)
        try:
            assert_right(draw_call(cell, seed), regime, ("save", "recompute")[seed % 2], device)
        except Exception as error:
            raise AssertionError(f"draw_call({cell!r}, {seed})") from error


def test_the_draws_reach_every_feature():
    calls = [draw_call("lstm", seed) for seed in range(100)]
    given = {"lengths": "lengths", "resets": "resets", "reset_state": "reset_state", "recurrent_dropout": "dropout"}
    given |= {"zoneout": "zoneout", "packed": "packed"}
    assert set(given) == set(FEATURES)
    for name in given.values():
        assert (
            10
            < sum(
                getattr(call, name) not in (None, False) if name == "packed" else getattr(call, name) is not None
                for call in calls
            )
            < 90
        )


def dense(cell="lstm", T=6, B=3, H=20, **arguments):
    generator = torch.Generator().manual_seed(7)
    spec = find_cell(cell)
    rows = spec.gates * H

    def randn(*size):
        return torch.randn(*size, generator=generator)

    weights = [[randn(rows, 3) / 2, randn(rows, H) / H**0.5, randn(rows) / 3, randn(rows) / 3]]
    gradients = [randn(T, B, H), *(randn(1, B, H) for _ in range(spec.states))]
    return Call(cell, randn(T, B, 3), weights, gradients=gradients, **arguments)


def forward(call, regime, **extras):
    block = max(16, 1 << (call.hidden - 1).bit_length())
    config = (
        Config("cooperative", 16, 16, 32, exchange=regime)
        if regime != "single_cta"
        else Config(regime, 16, block, block)
    )
    given = Extras(**extras)
    problem = Problem(call.cell, torch.float32, call.hidden, call.x.shape[1], features=given.features)
    weights = [LayerWeights(*own) for own in call.weights]
    return forward_layer(problem, config, call.x, weights, extras=given)[:2]


@pytest.mark.parametrize("regime", REGIMES)
def test_the_steps_past_the_longest_row_are_not_walked(regime):
    """A tile ends with its longest row: with one step each, no program has more turns than a sequence of one step."""
    call = dense(T=40)
    lengths = torch.ones(3, dtype=torch.int64)
    with interpret() as few:
        forward(call, regime, lengths=lengths)
    call.x = call.x[:1]
    with interpret() as one:
        forward(call, regime, lengths=lengths)
    assert len(few.trace) <= len(one.trace) + 20


@pytest.mark.parametrize("regime", REGIMES)
def test_lengths_out_of_range_are_clamped(regime):
    """On a device nobody can check them without waiting for it; they must not read or write out of bounds."""
    call = dense(T=4)
    with interpret():
        found = forward(call, regime, lengths=torch.tensor([9, -3, 2]))
        expected = forward(call, regime, lengths=torch.tensor([4, 0, 2]))
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize("regime", REGIMES)
def test_a_reset_state_may_hold_the_sentinel(regime):
    """The NaN whose bits mean "not yet written" in a user's reset state is a NaN and nobody waits for it."""
    call = dense(T=3)
    state = torch.zeros(1, 3, 20)
    state[0, 1, 4] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    resets = torch.tensor([[False] * 3, [True] * 3, [False] * 3])
    with interpret():
        y, _ = forward(call, regime, resets=resets, reset_state=[state, torch.zeros_like(state)])
    assert y[1:, 1].isnan().all()
    assert not y[:, [0, 2]].isnan().any()
    assert not y[0].isnan().any()


@pytest.mark.parametrize("regime", REGIMES)
def test_a_row_that_has_ended_leaves_the_others_alone(regime):
    """NaN past a row's end reaches nothing."""
    call = dense(T=5)
    lengths = torch.tensor([2, 5, 3])
    with interpret():
        clean = forward(call, regime, lengths=lengths)
        call.x[2:, 0] = float("nan")
        call.x[3:, 2] = float("nan")
        dirty = forward(call, regime, lengths=lengths)
    assert torch.equal(clean[0], dirty[0])
    assert (dirty[0][2:, 0] == 0).all()
    assert (dirty[0][3:, 2] == 0).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("cell", ["gru({},sigmoid)", "lstm(tanh,{})"])
def test_activations(cell, name, device):
    call = dense(cell.format(name), T=2, H=16)
    call.x = call.x / 2
    assert_right(call, "single_cta", "save", device)


@pytest.mark.parametrize("regime", ["single_cta", "barrier"])
def test_offsets_beyond_31_bits(regime, monkeypatch):
    """Rows of a packed sequence 2^27 apart, offsets beyond 2^31, in memory reserved but hardly touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    call, apart = dense("rnn_tanh", T=3, B=2, H=16), 2**27
    lengths, far = torch.tensor([3, 3]), torch.arange(3) * apart
    rows = (far[:, None] + torch.arange(2)).flatten()
    with interpret():
        projected = gemm.project_input(problem_of(call), call.x, [LayerWeights(*call.weights[0])], batch_first=False)
        expected = forward(call, regime)
        gx = torch.empty(1, 2 * apart + 2, 16)
        gx[0, rows] = projected.flatten(1, 2)[0]
        monkeypatch.setattr(layer, "project_input", lambda *arguments, **options: gx)
        found = forward(call, regime, lengths=lengths, starts=far)
    assert far[-1] * 16 >= 2**31
    assert torch.equal(found[0][rows], expected[0].flatten(0, 1))
    assert torch.equal(found[1][0], expected[1][0])


def problem_of(call, **options):
    return Problem(call.cell, torch.float32, call.hidden, call.x.shape[1], **options)
