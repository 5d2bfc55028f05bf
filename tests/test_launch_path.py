"""`launch` goes through Triton's own JIT and launcher, on a driver that takes notes (see stub_driver): what is compiled
is what the compile gate compiles, and what arrives at the driver is what the layer handed over.

Every value that a kernel would compute stays open here: nothing is executed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import stub_driver
import torch
from stub_driver import Journal, Launch, arguments_of
from torch import Tensor
from triton.compiler import ASTSource

import holdfast
from holdfast.autotune import select
from holdfast.bench.check.features import small_config
from holdfast.kernels import chunks, executor, launch
from holdfast.kernels.cell_spec import find_cell
from holdfast.kernels.config import Config
from holdfast.kernels.describe import (
    batch_tiles,
    describe,
    directions_at_once,
    kernel_of,
    least_grid,
    num_groups,
    team_size,
)
from holdfast.kernels.extras import Extras
from holdfast.kernels.kept import Keep
from holdfast.kernels.layer import LayerWeights, backward_layer, forward_layer
from holdfast.kernels.layouts import LayoutError
from holdfast.kernels.loop.groups import Team
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100, MI300X, DeviceLimits, resident_programs
from holdfast.kernels.stall import WAIT_LIMIT, StalledError, status_word

CPU = torch.device("cpu")
CELLS = ["rnn_tanh", "gru", "lstm", "gru_reset_before", "lstm_peephole"]
REGIMES = ["single_cta", "dataflow", "barrier"]
COOPERATIVE = REGIMES[1:]
FEATURES = [
    (),
    ("lengths",),
    ("lengths", "packed"),
    ("resets",),
    ("reset_state", "resets"),
    ("recurrent_dropout",),
    ("zoneout",),
    ("lengths", "recurrent_dropout", "reset_state", "resets", "zoneout"),
    ("lengths", "packed", "recurrent_dropout", "zoneout"),
]
EVERY_FEATURE = FEATURES[-2]
KEEPS: list[Keep] = ["nothing", "save", "recompute"]


@dataclass(frozen=True)
class Case:
    """One layer's call, in zeros."""

    cell: str = "lstm"
    regime: str = "dataflow"
    features: tuple[str, ...] = ()
    hidden: int = 32
    batch: int = 4
    steps: int = 3
    directions: int = 1
    bias: bool = True
    initial: bool = True
    keep: Keep = "save"
    batch_first: bool = False
    dtype: torch.dtype = torch.bfloat16
    heads: int = 1

    @property
    def config(self) -> Config:
        return small_config(self.regime, self.hidden // self.heads)

    @property
    def problem(self) -> Problem:
        sizes = (self.hidden, self.batch, self.directions)
        return Problem(self.cell, self.dtype, *sizes, features=self.features, num_heads=self.heads)

    def zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, dtype=self.dtype)

    def states(self) -> list[Tensor]:
        return [self.zeros(self.directions, self.batch, self.hidden) for _ in range(find_cell(self.cell).states)]

    def extras(self) -> Extras:
        lengths = torch.arange(self.steps + self.batch, self.steps, -1).clamp(max=self.steps)
        sizes = (lengths > torch.arange(self.steps)[:, None]).sum(1)
        y = self.zeros(*self.rows(), self.directions * self.hidden)
        resets = torch.zeros(self.steps, self.batch, dtype=torch.bool)
        every = {
            "lengths": lengths,
            "packed": sizes.cumsum(0) - sizes,
            "resets": resets,
            "reset_state": self.states(),
            "recurrent_dropout": self.states()[0],
            "zoneout": [y.clone() for _ in self.states()],
        }
        order = ("lengths", "packed", "resets", "reset_state", "recurrent_dropout", "zoneout")
        extras = Extras(*(every[name] if name in self.features else None for name in order))  # type: ignore[arg-type]
        assert extras.features == self.features
        return extras

    def rows(self) -> tuple[int, ...]:
        return (self.steps * self.batch,) if "packed" in self.features else (self.steps, self.batch)

    def weights(self) -> list[LayerWeights]:
        spec, H = find_cell(self.cell), self.hidden
        rows = spec.gates * H

        def of_one() -> LayerWeights:
            bias = [self.zeros(rows) if self.bias else None for _ in range(2)]
            own = self.zeros(spec.parameters, H) if spec.parameters else None
            return LayerWeights(self.zeros(rows, 8), self.zeros(rows, H // self.heads), *bias, own)

        return [of_one() for _ in range(self.directions)]

    def run(self, dy: Tensor | None = None) -> None:
        """Forwards and, unless nothing is kept, backwards."""
        x = self.zeros(*(reversed(self.rows()) if self.batch_first else self.rows()), 8)
        initial = self.states() if self.initial else None
        shared: Any = (self.config, x, self.weights(), initial)
        options: Any = {"batch_first": self.batch_first, "extras": self.extras()}
        y, _, residuals = forward_layer(self.problem, *shared, keep=self.keep, **options)
        if self.keep != "nothing":
            dy = torch.zeros_like(y) if dy is None else dy
            backward = replace(self.problem, phase="backward")
            backward_layer(backward, *shared, y, residuals, dy, self.states(), **options)

    def phases(self) -> Iterator[Problem]:
        yield self.problem
        if self.keep != "nothing":
            yield replace(self.problem, phase="backward")


# What is launched, against what is compiled without a GPU.


def described(case: Case, problem: Problem, limits: DeviceLimits, in_chunks: bool = False) -> ASTSource:
    options: Any = {"has_bias": case.bias, "has_initial": case.initial, "keep": case.keep, "in_chunks": in_chunks}
    kernel = describe(problem, case.config, limits, **options)
    return ASTSource(kernel.fn, kernel.signature, kernel.constexprs, kernel.attrs)


def differs_on_purpose(name: str) -> bool:
    """What `describe` says otherwise than `launch` does.

    A stride that is 1 is a constant at a launch, and one between directions is 64 bits wide only where it has to be.
    """
    return name in ("zones.row", "zones.unit", "gx.direction", "ga.direction")


def assert_as_described(
    case: Case, journal: Journal, limits: DeviceLimits = H100, launches_each: int = 1, in_chunks: bool = False
) -> None:
    problems = list(case.phases())
    assert len(journal.sources) == len(problems), "one compilation for each kernel"
    assert len(journal.launches) == launches_each * len(problems)
    for source, options, problem in zip(journal.sources, journal.options, problems, strict=True):
        expected = described(case, problem, limits, in_chunks)
        assert source.fn is expected.fn
        found, right = arguments_of(source), arguments_of(expected)
        assert list(found) == list(right)
        different = [name for name in found if found[name] != right[name]]
        different = [name for name in different if not differs_on_purpose(name)]
        assert not different, (case, {name: (found[name], right[name]) for name in different})
        kernel = describe(problem, case.config, limits)
        assert kernel.options.items() <= options.items()
        assert (options["num_warps"], options["num_stages"]) == (kernel.num_warps, kernel.num_stages)


EVERY = list(itertools.product(CELLS, REGIMES, FEATURES, (1, 2), KEEPS, (False, True), (False, True)))


def case_of(cell, regime, features, directions, keep, bias, initial):
    return Case(cell, regime, features, directions=directions, keep=keep, bias=bias, initial=initial)


def test_what_is_launched_is_what_the_compile_gate_compiles(monkeypatch):
    for choice in random.sample(EVERY, 200):
        with monkeypatch.context() as patch:
            case, journal = replace(case_of(*choice), heads=random.choice((1, 4))), stub_driver.trace(patch)
            case.run()
            assert_as_described(case, journal)


@pytest.mark.parametrize("features", [(), ("lengths",)], ids=["full", "lengths"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_call_in_chunks_has_kernels_of_its_own(cell, regime, features, monkeypatch):
    """One for each phase, whatever its length: states pass between chunks in float32. A call in one piece before it
    leaves none behind that would be taken for them."""
    case = Case(cell, regime, features, steps=40, directions=2, keep="recompute", initial=False)
    journal = stub_driver.trace(monkeypatch)
    case.run()
    assert_as_described(case, journal)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)
    journal.sources.clear(), journal.options.clear(), journal.launches.clear()
    case.run()
    assert_as_described(case, journal, launches_each=3 * 2, in_chunks=True)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "regime"), list(itertools.product(CELLS, REGIMES)))
def test_everything_launched_is_what_the_compile_gate_compiles(cell, regime, monkeypatch):
    for choice in (choice for choice in EVERY if choice[:2] == (cell, regime)):
        with monkeypatch.context() as patch:
            case, journal = case_of(*choice), stub_driver.trace(patch)
            case.run()
            assert_as_described(case, journal)


# What arrives at the driver.


def assert_arrived(problem: Problem, config: Config, found: Launch, given: dict[str, Any]) -> None:
    """A launch of the whole grid, with the layer's own tensors and numbers in the kernel's own order."""
    team, resident = team_size(problem, config), residents(config, found)
    cooperative = config.regime == "cooperative"
    at_once, groups = directions_at_once(problem, config, resident), num_groups(problem, config, resident)
    grid = at_once * groups * team if cooperative else problem.directions * batch_tiles(problem, config)
    assert found.kernel == problem.phase
    assert found.grid == (grid, 1, 1)
    assert found.block == (32 * config.num_warps, 1, 1)
    assert found.cooperative is cooperative
    assert found.stream == stub_driver.STREAM
    assert team <= resident or not cooperative

    *parameters, scratch, profile = found.parameters
    assert scratch == profile == ("", 8, 0), "Triton's own: no scratch memory is asked for"
    arrived: dict[str, list[int]] = {}
    widths: dict[str, set[int]] = {}
    for name, width, value in parameters:
        arrived.setdefault(name, []).append(value)
        widths.setdefault(name, set()).add(width)
    words = {"team": Team(status=status_word(CPU), spin_limit=WAIT_LIMIT) if cooperative else Team()}
    expected = by_name({name: (given | words)[name] for name in kernel_of(problem).arg_names if name in given | words})
    assert list(arrived) == [name for name in expected if name in arrived]
    for name, value in expected.items():
        values = value if isinstance(value, tuple) else (value,)
        if name in ("team.arrivals", "team.partial"):  # memory that `launch` adds for the team
            assert all(arrived.get(name, []))
            assert widths.get(name, {8}) == {8}
        elif value is None or (name.split(".")[-1] in ("direction", "time", "row", "unit") and value == 1):
            assert name not in arrived, "compiled in"
        elif isinstance(values[0], Tensor):
            assert arrived[name] == [tensor.data_ptr() for tensor in values], name
            assert widths[name] == {8}
        else:
            assert arrived[name] == [value], name
            assert widths[name] == {8 if value >= 2**31 else 4}, name


def by_name(groups: dict[str, Any]) -> dict[str, Any]:
    """The groups' fields, each under its own name: "gx.time"."""
    found: dict[str, Any] = {}
    for name, group in groups.items():
        fields = group._asdict().items() if hasattr(group, "_asdict") else ()
        found |= {f"{name}.{field}": value for field, value in fields} or {name: group}
    return found


def residents(config: Config, found: Launch) -> int:
    return resident_programs(H100, registers=found.registers, num_warps=config.num_warps, shared=found.shared)


def assert_all_arrived(journal: Journal, launches: int) -> None:
    assert len(journal.launches) == len(journal.calls) == launches
    for found, (problem, config, given) in zip(journal.launches, journal.calls, strict=True):
        assert_arrived(problem, config, found, given)


@pytest.mark.parametrize(
    "case",
    [
        Case("rnn_tanh", "single_cta", hidden=5, batch=1, initial=False),
        Case("gru", "single_cta", ("lengths", "packed", "recurrent_dropout", "zoneout"), directions=2),
        Case("lstm", "dataflow", directions=2, bias=False, batch_first=True),
        Case("gru", "dataflow", EVERY_FEATURE, keep="recompute", dtype=torch.float16),
        Case("lstm", "barrier", ("reset_state", "resets"), hidden=20, batch=33),
        Case("gru_reset_before", "barrier", steps=1, dtype=torch.float32),
        Case("lstm", "dataflow", hidden=80, heads=4),
    ],
    ids=lambda case: f"{case.cell} {case.regime}",
)
def test_what_arrives_is_what_the_layer_handed_over(case, monkeypatch):
    journal = stub_driver.run(monkeypatch)
    case.run()
    assert_all_arrived(journal, launches=2)
    assert journal.loaded == 2, "one kernel each, loaded once"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("cell", "regime"), list(itertools.product(CELLS, REGIMES)))
def test_every_combination_arrives(cell, regime, monkeypatch):
    options = itertools.cycle(itertools.product((1, 2), KEEPS, (False, True), (False, True)))
    for features, directions, keep, bias, initial in [(f, *next(options)) for f in FEATURES for _ in range(3)]:
        with monkeypatch.context() as patch:
            journal = stub_driver.run(patch)
            case = case_of(cell, regime, features, directions, keep, bias, initial)
            case.run()
            assert_all_arrived(journal, launches=1 if keep == "nothing" else 2)


@pytest.mark.parametrize("regime", REGIMES)
def test_the_layout_of_a_gradient_compiles_nothing(regime, monkeypatch):
    """Triton compiles a stride of 1 in, and one kernel each for strides and addresses that are in sixteens or not."""
    journal = stub_driver.run(monkeypatch)
    case = Case("gru", regime, hidden=16, batch=1)
    ones = torch.ones(100, dtype=case.dtype)
    layouts = [((16, 16, 1), 0), ((17, 1, 1), 0), ((16, 5, 1), 1), ((0, 0, 0), 0), ((0, 0, 1), 8), ((1, 1, 3), 0)]
    for strides, start in layouts:
        case.run(dy=ones.as_strided((3, 1, 16), strides, start))
    assert_all_arrived(journal, launches=2 * len(layouts))
    assert journal.loaded == 2


@pytest.mark.parametrize("regime", REGIMES)
def test_a_stride_beyond_31_bits(regime, monkeypatch):
    """A gradient inside a larger tensor, in memory that is reserved and not touched."""
    journal = stub_driver.run(monkeypatch)
    case = Case("rnn_tanh", regime, steps=2)
    case.run(dy=torch.empty_strided((2, 4, 32), (2**31, 2 * 32, 1), dtype=case.dtype))
    assert_all_arrived(journal, launches=2)
    assert ("dy.time", 8, 2**31) in journal.launches[1].parameters


@pytest.mark.parametrize("regime", REGIMES)
def test_gradients_that_nobody_asks_for(regime, monkeypatch):
    journal = stub_driver.run(monkeypatch)
    case = Case("lstm", regime)
    shared: Any = (case.config, case.zeros(3, 4, 8), case.weights(), None)
    y, _, residuals = forward_layer(case.problem, *shared, keep="save")
    backward = replace(case.problem, phase="backward")
    backward_layer(backward, *shared, y, residuals, torch.ones(32, dtype=y.dtype).expand_as(y), [None, None])
    backward_layer(backward, *shared, y, residuals, None, case.states())
    assert_all_arrived(journal, launches=3)
    of_y, of_final = ({name for name, *_ in found.parameters} for found in journal.launches[1:])
    assert of_y - of_final == {"dy.ptr", "dy.time", "dy.row"}
    assert of_final - of_y == {"gradients.final"}
    assert ("dy.time", 4, 0) in journal.launches[1].parameters


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("regime", REGIMES)
def test_another_length_and_batch_size_compile_nothing(regime, batch_first, monkeypatch):
    journal = stub_driver.run(monkeypatch)
    for steps, batch in [(3, 4), (7, 5), (1, 1), (2, 40)]:
        Case("gru", regime, steps=steps, batch=batch, batch_first=batch_first, keep="nothing").run()
    assert_all_arrived(journal, launches=4)
    assert len(journal.sources) == journal.loaded == 1


@pytest.mark.parametrize("options", [(), EVERY_FEATURE, ("lengths", "packed")], ids=["plain", "features", "packed"])
@pytest.mark.parametrize("keep", ["save", "recompute"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_an_odd_hidden_size_has_one_kernel_a_phase(cell, keep, options, monkeypatch):
    """Where a step is no multiple of 16 wide, strides would be at some batch sizes and lengths, and not at others."""
    journal = stub_driver.trace(monkeypatch)
    for steps, batch in itertools.product(range(1, 18), (1, 2, 3, 16)):
        Case(cell, features=options, hidden=5, steps=steps, batch=batch, directions=2, keep=keep).run()
    assert len(journal.sources) == 2


def test_later_layers_compile_nothing_for_another_batch_size(monkeypatch):
    """Their initial states and those states' gradients lie behind the first layer's in memory."""
    journal = stub_driver.trace(monkeypatch)
    on_the_launch_path(monkeypatch)
    module = holdfast.LSTM(8, 5, num_layers=3)
    with holdfast.backend("triton"):
        for batch in range(1, 9):
            hx = torch.zeros(3, batch, 5, requires_grad=True), torch.zeros(3, batch, 5, requires_grad=True)
            y, (h, c) = module(torch.zeros(2, batch, 8), hx)
            (y.sum() + h.sum() + c.sum()).backward()
    assert len(journal.sources) == 2


# The residency check.


@pytest.mark.parametrize("regime", COOPERATIVE)
def test_the_kernel_that_is_checked_is_the_one_that_is_launched(regime, monkeypatch):
    journal = stub_driver.run(monkeypatch)
    case = Case("lstm", regime, hidden=40, batch=20, directions=2, keep="nothing")
    case.run()
    case.run()
    assert len(journal.sources) == journal.loaded == 1, "the check and both launches compile one kernel"
    (fit,) = launch._fits.values()
    assert fit.resident == residents(case.config, journal.launches[0])
    assert least_grid(case.problem, case.config) <= fit.resident <= 32 * H100.num_sms


def test_another_alignment_is_another_kernel_to_check(monkeypatch):
    """What Triton compiles anew needs other registers: fewer programs may be resident."""

    def registers(source: ASTSource) -> int:
        return 64 if arguments_of(source)["layer.w_hh"] == [("*bf16", True)] else 255

    journal = stub_driver.trace(monkeypatch, registers=registers)
    case = Case("gru", hidden=40, batch=3200, steps=1, keep="nothing")
    x, (weights,) = case.zeros(1, case.batch, 8), case.weights()
    apart = case.zeros(weights.w_hh.numel() + 1)[1:].view_as(weights.w_hh)
    for w_hh in (weights.w_hh, apart):
        forward_layer(case.problem, case.config, x, [weights._replace(w_hh=w_hh)])
    team, tiles = least_grid(case.problem, case.config), batch_tiles(case.problem, case.config)
    in_all = [resident_programs(H100, registers=number, num_warps=4, shared=0) for number in (64, 255)]
    assert [found.grid[0] for found in journal.launches] == [min(tiles, number // team) * team for number in in_all]
    assert journal.launches[0].grid > journal.launches[1].grid


def test_a_kernel_with_a_wrong_layout_is_not_launched(monkeypatch):
    def refuse(ttgir: str) -> None:
        raise LayoutError(ttgir)

    journal = stub_driver.trace(monkeypatch)
    monkeypatch.setattr(launch, "check_layouts", refuse)
    with pytest.raises(LayoutError):
        Case().run()
    assert journal.sources
    assert not journal.launches


@pytest.mark.parametrize("regime", COOPERATIVE)
def test_a_team_that_does_not_fit_is_not_launched(regime, monkeypatch):
    journal = stub_driver.run(monkeypatch)
    monkeypatch.setattr(launch, "from_device", lambda device: replace(H100, num_sms=1, max_blocks_per_sm=2))
    with pytest.raises(launch.NotResidentError, match=r"lstm with hidden_size=40 needs 3 programs .* holds 2"):
        Case("lstm", regime, hidden=40).run()
    assert not journal.launches


@pytest.mark.parametrize("regime", COOPERATIVE)
def test_directions_that_do_not_fit_at_once_take_turns(regime, monkeypatch):
    """One kernel, launched for each of them with memory of its own."""
    journal = stub_driver.trace(monkeypatch)
    case = Case("lstm", regime, hidden=40, directions=2, keep="nothing")
    for sms in (2, 1):
        # The third of a team's programs must fit, the fourth of two teams' must not.
        limits = replace(H100, num_sms=sms, max_blocks_per_sm=3)
        monkeypatch.setattr(launch, "from_device", lambda device, limits=limits: limits)
        launch._fits.clear()
        launch.launcher_of.cache_clear()
        case.run()
    assert len(journal.sources) == 1
    together, *in_turn = [(found.grid[0], found.arguments["walk_bits"]) for found in journal.launches]
    assert together == (6, 0b10)
    assert in_turn == [(3, 0b110), (3, 0b1010)]
    memory = [found.arguments["team"].arrivals for found in journal.launches[1:]]
    assert regime == "dataflow" or memory[0].data_ptr() != memory[1].data_ptr()


@pytest.mark.parametrize("regime", COOPERATIVE)
def test_a_stall_is_told_once_before_the_next_launch(regime, monkeypatch):
    journal = stub_driver.trace(monkeypatch)
    case = Case("lstm", regime, keep="nothing")
    case.run()
    status_word(CPU).fill_(1)  # as a kernel whose wait ran out
    with pytest.raises(StalledError):
        case.run()
    case.run()
    assert len(journal.launches) == 2


# From the modules down; and the other platform.


def on_the_launch_path(monkeypatch):
    """A CPU is in reach of the kernels."""
    monkeypatch.setattr(executor, "interpreting", lambda: True)
    monkeypatch.setattr(select, "interpreting", lambda: True)


@pytest.mark.parametrize("module", [holdfast.GRU(8, 32, bidirectional=True), holdfast.LSTM(8, 32, num_layers=2)])
def test_a_module_trains_through_the_launch_path(module, monkeypatch):
    journal = stub_driver.run(monkeypatch)
    on_the_launch_path(monkeypatch)
    with holdfast.backend("triton"):
        y, _ = module(torch.zeros(3, 4, 8))
        y.sum().backward()
    assert_all_arrived(journal, launches=2 * module.num_layers)
    phases = [problem.phase for problem, *_ in journal.calls]
    assert phases == ["forward"] * module.num_layers + ["backward"] * module.num_layers
    assert len(journal.sources) == 2, "both layers run the same kernels"


@pytest.mark.parametrize(("cell", "regime"), list(itertools.product(["gru", "lstm"], REGIMES)))
def test_on_amd_too_the_arguments_are_those_of_the_gate(cell, regime, monkeypatch):
    """Except that Triton also compiles in, there, that a tensor is smaller than 2 GiB."""
    journal = stub_driver.trace(monkeypatch, MI300X)
    case = Case(cell, regime, EVERY_FEATURE, directions=2)
    case.run()
    assert_as_described(case, journal, MI300X)
