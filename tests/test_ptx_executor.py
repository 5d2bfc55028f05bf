"""The kernels as ptxas would get them, run without a GPU, against torch.nn in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget, Language
from triton.compiler.compiler import make_backend

import holdfast
from holdfast.bench.check.features import draw_call, errors_of, most_units
from holdfast.bench.check.layer import Case, Layer, check_case, check_gradients, check_training
from holdfast.bench.check.run import KEEP
from holdfast.bench.method import fake_driver
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.interpreter import interpret
from holdfast.kernels.kept import Keep
from holdfast.kernels.ptx.executor import TARGETS, compiled, nvidia_up_to_ptx
from holdfast.kernels.ptx.machine import Behaviour
from holdfast.kernels.resources import NotResidentError
from holdfast.kernels.stall import StalledError
from holdfast.kernels.tolerance import worst

CPU = torch.device("cpu")
REGIMES = ("single_cta", "cooperative/dataflow", "cooperative/barrier")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def seed_of(*values: object) -> int:
    return sum(map(ord, "".join(map(str, values))))


def in_turn(cell: str, regime: str, dtype: torch.dtype) -> tuple[str, Keep]:
    """The target of this combination, and what its way there keeps for the way back. Each target stands with every two
    of a cell, a regime and a dtype."""
    number = [*CELLS].index(cell) + REGIMES.index(regime)
    return TARGETS[(number + DTYPES.index(dtype)) % 2], KEEP[number % 2]


def training(case: Case, seed: int = 0, target: str | None = None, **options: object) -> list[torch.Tensor]:
    """Outputs and gradients of a small layer, from the kernels that `test_kernels` compiles too."""
    quick, keep = in_turn(case.cell, case.regime, case.dtype)
    with compiled(target or quick, seed=seed, **options):
        found = Layer(case, 0).training(CPU, keep)
    return [tensor for part in found for tensor in part.values()]


def small(cell: str, regime: str, dtype: torch.dtype) -> Case:
    """Alone in one tile of 16 units, or a team of two programs and the tail of a tile."""
    return Case(cell, regime, dtype, 12 if regime == "single_cta" else 20, 3, 3)


def assert_right(case: Case, phase: str, target: str, seed: int = 0, **options: object) -> None:
    with compiled(target, seed=seed, **options):
        found = check_case(case, CPU, seed) if phase == "forward" else check_gradients(case, CPU, seed, "save")
    assert found.ok, found


def assert_trains(case: Case, target: str, keep: Keep, seed: int = 0) -> None:
    with compiled(target, seed=seed):
        forward, backward = check_training(case, CPU, seed, keep)
    assert forward.ok, forward
    assert backward.ok, backward


def both_targets() -> Iterator[object]:
    """The quick run takes each combination for the target whose turn it is, the thorough one for the other too."""
    for values in itertools.product(CELLS, REGIMES, DTYPES):
        for target in TARGETS:
            others = () if target == in_turn(*values)[0] else pytest.mark.thorough
            yield pytest.param(*values, target, id="-".join(map(str, (*values, target))), marks=others)


@pytest.mark.parametrize(("cell", "regime", "dtype", "target"), [*both_targets()])
def test_kernels(cell, regime, dtype, target):
    """Every cell, regime and dtype, forwards and backwards: 63 pairs of kernels in the quick run, sm_80 and sm_90 in
    turn. Both phases are of one pass of training, whose way there the way back needs anyway."""
    seed = seed_of(cell, regime, dtype)
    assert_trains(small(cell, regime, dtype), target, in_turn(cell, regime, dtype)[1], seed)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", CELLS)
def test_kernels_without_an_initial_state(cell, regime, dtype, keep, target):
    """They are kernels of their own."""
    seed = seed_of(cell, regime, dtype)
    assert_trains(replace(small(cell, regime, dtype), initial=False), target, keep, seed)


def test_peepholes_without_an_initial_state():
    """Triton 3.7.1 could not compile this one."""
    case = replace(small("lstm_peephole", "cooperative/dataflow", torch.float32), initial=False)
    assert_trains(case, "sm_90", "save")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtype", "hidden", "batch", "precision"),
    [(torch.float16, 33, 2, "ieee"), (torch.float32, 40, 17, "tf32")],
    ids=["words that are halves", "tf32, two teams"],
)
def test_odd_shapes(dtype, hidden, batch, precision, target):
    """An odd row of 16-bit numbers is no whole words; 17 rows are two teams, directions two more."""
    case = Case("lstm", "cooperative/dataflow", dtype, hidden, batch, 3, directions=2, precision=precision)
    assert_right(case, "forward", target)


@pytest.mark.parametrize("regime", REGIMES[1:])
def test_every_schedule_gives_the_same_bits(regime):
    results = [training(small("gru", regime, torch.bfloat16), seed) for seed in range(3)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("cell", "phase", "config"),
    [
        ("lstm_layer_norm", "forward", Config("cooperative", 16, 16, 32)),
        ("gru", "backward", Config("cooperative", 16, 4, 32, SPLIT_K=4)),
    ],
    ids=["means", "parts"],
)
def test_threads_that_share_a_word_all_wait_for_it(cell, phase, config, monkeypatch):
    """Odd rows of 16 bits are polled in the portable way, by fewer words than a program has threads: one that read a
    moment before the others had the round before, in two of three schedules."""
    monkeypatch.setattr(Case, "config", config)
    for seed in range(2):
        assert_right(Case(cell, "cooperative/dataflow", torch.bfloat16, 35, 3, 4), phase, "sm_90", seed)


def test_compiled_and_interpreted_kernels_agree():
    case = small("lstm", "cooperative/dataflow", torch.float32)
    with interpret():
        theirs = Layer(case, 0).training(CPU, in_turn(case.cell, case.regime, case.dtype)[1])
    for a, b in zip(training(case), [tensor for part in theirs for tensor in part.values()], strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("ptx_executor", ["sm_90"], indirect=True)
def test_random_features(ptx_executor):
    """Lengths, resets, dropout, zoneout, packed rows, directions, as a seed draws them."""
    found = errors_of(draw_call("gru", 5), "cooperative/dataflow", "recompute", CPU)
    assert worst(list(found.values())).ok
    assert ptx_executor.launches == 3, "forwards with and without keeping, and backwards"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", CELLS)
def test_many_random_features(cell, regime, target):
    seed = seed_of(cell, regime, target)
    for draw in range(seed, seed + 4):
        with compiled(target, seed=draw):
            found = errors_of(draw_call(cell, draw), regime, ("save", "recompute")[draw % 2], CPU)
        if cell == "rnn_relu":  # whose gradients have kinks in reach of rounding
            found = {name: errors for name, errors in found.items() if name == "y" or name.startswith("final")}
        assert worst(list(found.values())).ok, draw


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("cell", "regime", "dtype"), list(itertools.product(CELLS, REGIMES, DTYPES)), ids=str)
def test_many_random_cases(cell, regime, dtype, target):
    draw = np.random.default_rng(seed_of(cell, regime, dtype, target))
    for seed in range(3):
        hidden, batch, length = (
            int(draw.choice(values)) for values in ((1, 7, 16, 33, 64, 100), (1, 3, 17), (1, 2, 6))
        )
        directions, bias, initial, batch_first = (bool(draw.integers(2)) for _ in range(4))
        options = {"directions": 1 + directions, "bias": bias, "initial": initial, "batch_first": batch_first}
        case = Case(cell, regime, dtype, min(hidden, most_units(regime, dtype)), batch, length, **options)
        assert_right(case, "forward", target, seed)
        if cell != "rnn_relu" or bias:
            assert_right(case, "backward", target, seed)


@pytest.mark.parametrize("target", TARGETS)
def test_a_program_that_needs_more_shared_memory_than_there_is(target):
    """No GPU would start it: the weights of 128 units in float32, twice, are 540 KB. Seen first by numbers on sm_90,
    whose descriptors hold 18 bits of an address; on sm_80 they were right."""
    with pytest.raises(triton.OutOfResources, match="shared memory, Required: 540672"):
        assert_right(Case("gru", "single_cta", torch.float32, 100, 1, 1), "forward", target)


# ---- waits


@pytest.mark.parametrize("exchange", ["dataflow", "barrier"])
def test_a_team_without_one_of_its_programs_gives_up(exchange):
    """The limit of the wait ends it, by %globaltimer; what is missing is NaN, and the host is told."""
    with pytest.raises(StalledError):
        training(small("lstm", f"cooperative/{exchange}", torch.bfloat16), stalled=[1], raise_on_deadlock=False)


def test_too_few_programs_are_refused():
    layer = Layer(Case("lstm", "cooperative/dataflow", torch.bfloat16, 20, 3, 2), seed=0)
    with compiled("sm_80", resident_programs=1), pytest.raises(NotResidentError):
        layer.kernels(CPU)
    with compiled("sm_80", admitted_programs=1), pytest.raises(NotResidentError):
        layer.kernels(CPU)


def test_without_ptxas_kernels_have_names_of_their_own_in_the_cache():
    """Or a GPU would load what has no machine code."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    with patch.dict(backends, nvidia=nvidia_up_to_ptx()):
        without = make_backend(GPUTarget("cuda", 90, 32))
    assert without.hash() != backend.hash()
    stages: dict[str, object] = {}
    without.add_stages(stages, without.parse_options({"arch": "sm90"}), Language.TRITON)
    assert stages["cubin"]("a kernel's PTX", {}) == b""


def test_a_target_that_it_does_not_know():
    with pytest.raises(ValueError, match="sm_80, sm_90"), compiled("sm_100"):
        pass


# ---- from module(x), over Triton's launcher and a driver's parameters, to the result


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA driver is here")
@pytest.mark.parametrize(
    ("module", "hidden", "dtype"),
    [(holdfast.LSTM, 48, torch.bfloat16), pytest.param(holdfast.GRU, 20, torch.float32, marks=pytest.mark.thorough)],
    ids=["wgmma", "mma"],
)
def test_a_module_through_the_launcher_to_its_result(module, hidden, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if why := fake_driver.missing():
        pytest.skip(why)
    torch.manual_seed(0)
    ours = module(6, hidden, bidirectional=True, dtype=dtype)
    exact = getattr(torch.nn, module.__name__)(6, hidden, bidirectional=True).double()
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 6, dtype=dtype)
    x_ours, x_exact = x.clone().requires_grad_(), x.double().requires_grad_()
    with fake_driver.fake_gpu(behaviour=Behaviour(seed=2)) as driver, holdfast.backend("triton"):
        y = ours(x_ours)[0]
        y.float().square().sum().backward()
        # A call like one before takes a path of its own, which hands over addresses alone.
        again = ours(x_ours)[0]
        executed = driver.executed
    assert executed == 3
    assert torch.equal(y, again)
    y_exact = exact(x_exact)[0]
    y_exact.square().sum().backward()
    # Beside torch's own error in this dtype.
    plain = getattr(torch.nn, module.__name__)(6, hidden, bidirectional=True).to(dtype)
    plain.load_state_dict(ours.state_dict())
    x_plain = x.clone().requires_grad_()
    y_plain = plain(x_plain)[0]
    y_plain.float().square().sum().backward()
    pairs = [(y, y_plain, y_exact), (x_ours.grad, x_plain.grad, x_exact.grad)]
    pairs += [
        (a.grad, b.grad, c.grad)
        for a, b, c in zip(ours.parameters(), plain.parameters(), exact.parameters(), strict=True)
    ]
    for found, by_torch, right in pairs:
        scale = right.abs().max()
        allowed = 2 * (by_torch.double() - right).abs().max() / scale + 2 * torch.finfo(dtype).eps
        assert (found.double() - right).abs().max() / scale <= allowed
