"""The heuristic, the constraints and the cost model: each can say no, they agree with each other and the compiler."""

from __future__ import annotations

import json
import random
import re
from dataclasses import fields, replace

import pytest
import torch

from holdfast.autotune.candidates import SPACE, Space, candidates, choose, configs, search
from holdfast.autotune.compile_many import Request, compile_many
from holdfast.autotune.constants import constants_for, known, load_constants, save_constants, weakest
from holdfast.autotune.constraints import CONSTRAINTS, TUNED_CONSTRAINTS, refusal
from holdfast.autotune.cost import estimate
from holdfast.autotune.counts import DEPENDS_ON, FILE, Counts, Features, counts_of, evaluate, fitted
from holdfast.autotune.files import SHIPPED
from holdfast.autotune.fit_counts import _lines
from holdfast.autotune.identity import effective_keep, fingerprint, keeps, key_of, source_digest
from holdfast.autotune.report import heuristic_quality
from holdfast.autotune.store import Entry, Store, Timing
from holdfast.autotune.tune import flaw
from holdfast.bench.output.compile_report import quick_grid
from holdfast.kernels import cell_spec
from holdfast.kernels.cell_spec import CELLS
from holdfast.kernels.config import Config
from holdfast.kernels.describe import directions_at_once
from holdfast.kernels.plan import Reason
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import A100, B200, H100, KNOWN, L4, MI300X

LSTM = Problem("lstm", torch.bfloat16, 768, 16)


def some_problem() -> Problem:
    dtype, precision = random.choice([(torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")])
    hidden, batch = random.randint(1, 1100), random.choice([1, 7, 16, 40, 128, 300])
    phase, directions = random.choice(["forward", "backward"]), random.choice([1, 2])
    return Problem(random.choice(list(CELLS)), dtype, hidden, batch, directions, precision, phase)


@pytest.mark.parametrize("limits", KNOWN, ids=lambda limits: limits.name)
def test_the_heuristics_choice_is_the_first_that_the_tuner_tries(limits):
    for problem in [*random.sample(quick_grid(), 6), *(some_problem() for _ in range(10))]:
        choice = choose(problem, limits)
        ranked, refused = search(problem, limits)
        if isinstance(choice, Config):
            assert ranked[0].config == choice
        costs = [r.estimate.step_us for r in ranked[1:]]
        assert costs == sorted(costs)
        assert len({r.config for r in ranked} | {r.config for r in refused}) == len(ranked) + len(refused)


@pytest.mark.parametrize("limits", KNOWN, ids=lambda limits: limits.name)
def test_two_directions_have_a_kernel_where_one_has(limits):
    for problem in (replace(some_problem(), directions=1) for _ in range(60)):
        one, both = choose(problem, limits), choose(replace(problem, directions=2), limits)
        assert isinstance(both, Config) == isinstance(one, Config), problem


def test_directions_in_turn_take_two_passes():
    one, both = replace(LSTM, hidden_size=1100), replace(LSTM, hidden_size=1100, directions=2)
    config = choose(both, H100)
    assert directions_at_once(both, config, H100.num_sms) == 1
    assert [estimate(problem, config, H100).passes for problem in (one, both)] == [1, 2]


def test_the_space_is_wider_than_the_heuristics_table():
    for problem in (LSTM, replace(LSTM, phase="backward"), replace(LSTM, cell="gru", batch_size=64)):
        ranked, _ = search(problem, H100)
        tilings = set(candidates(problem, H100))
        assert len({r.config for r in ranked} - tilings) > len(tilings)


def test_every_value_of_the_space_is_tried_somewhere():
    problems = [replace(LSTM, batch_size=64, hidden_size=h) for h in (64, 256, 512)] + [replace(LSTM, cell="rnn_tanh")]
    problems += [replace(problem, phase="backward") for problem in problems]
    tried = [r.config for problem in problems for r in search(problem, H100)[0]]
    for field in fields(Space):
        assert {getattr(config, field.name) for config in tried} >= set(getattr(SPACE, field.name)), field.name


@pytest.mark.parametrize(
    ("name", "config", "problem", "limits"),
    [
        ("is_matrix_shape", Config("cooperative", 16, 8, 128), replace(LSTM, phase="backward"), H100),
        ("shares_products", Config("cooperative", 16, 16, 128, SPLIT_K=4), LSTM, H100),
        ("is_matrix_shape", Config("cooperative", 16, 8, 128), replace(LSTM, cell="rnn_relu"), H100),
        ("reads_after_the_wait", Config("cooperative", 16, 16, 128, num_stages=2), LSTM, H100),
        ("polls_with_all_threads", Config("cooperative", 16, 16, 32, num_warps=8), LSTM, MI300X),
        ("fills_its_units", Config("cooperative", 16, 64, 64), replace(LSTM, hidden_size=64), H100),
        ("fills_its_rows", Config("cooperative", 32, 16, 128), LSTM, H100),
        ("fills_its_columns", Config("cooperative", 16, 16, 512), replace(LSTM, hidden_size=520), H100),
        ("may_fit_shared", Config("cooperative", 16, 64, 256), LSTM, H100),
        ("fits_registers", Config("cooperative", 64, 16, 128), replace(LSTM, batch_size=64, hidden_size=1024), H100),
        ("may_be_co_resident", Config("cooperative", 16, 8, 128), replace(LSTM, hidden_size=1024), L4),
    ],
)
def test_each_constraint_refuses_with_its_name_and_a_reason(name, config, problem, limits):
    constraint, reason = refusal(problem, config, limits, TUNED_CONSTRAINTS) or ("", "")
    assert constraint == name
    assert any(character.isdigit() for character in reason)


def test_what_the_heuristic_allows_the_tuner_allows():
    for _ in range(80):
        problem, limits = some_problem(), random.choice(KNOWN)
        for config in configs(problem, limits):
            if refusal(problem, config, limits, CONSTRAINTS) is None:
                broken = refusal(problem, config, limits, TUNED_CONSTRAINTS)
                assert broken is None or broken[0].startswith(("fills_", "reads_")), broken


def test_constraints_agree_with_the_compiler():
    """What `fits_shared` lets through fits; what `may_fit_shared` turns down does not."""
    refused = [
        config for config in (Config("cooperative", 16, 64, 128, 8),) if refusal(LSTM, config, H100, CONSTRAINTS)
    ]
    ranked, _ = search(LSTM, H100)
    fitting = [r.config for r in ranked if refusal(LSTM, r.config, H100, CONSTRAINTS) is None]
    chosen = random.sample(fitting, 1)
    requests = [Request(LSTM, config, "sm_90", device=H100) for config in (*chosen, *refused)]
    outcomes = compile_many(requests)
    for request in requests[:1]:
        report = outcomes[request].report
        assert report is not None, outcomes[request].error
        assert report.shared_bytes <= H100.shared_per_block, request
    for request in requests[1:]:
        assert "shared memory" in (flaw(request, outcomes[request]) or ""), request


def test_an_estimate_grows_with_the_work():
    for _ in range(50):
        problem, limits = some_problem(), random.choice(KNOWN)
        for ranked in search(problem, limits)[0][:5]:
            cost = ranked.estimate
            assert min(cost.product, cost.issue, cost.barriers, cost.stream, cost.once, cost.passes) > 0
            assert (cost.publish > 0) == (cost.waits > 0) == (ranked.config.regime == "cooperative")
            more = replace(problem, batch_size=8 * problem.batch_size)
            assert estimate(more, ranked.config, limits).step_us >= cost.step_us
            assert cost.total_us(100) == pytest.approx(cost.once + 100 * cost.step_us)


def test_measured_constants_change_the_order(tmp_path):
    path = tmp_path / "constants.json"
    save_constants({"failing_polls": (50.0, "made up here"), "arrive_clocks": (1.0, "made up here")}, H100, path)
    measured = load_constants(path, H100)
    assert measured.measured == ("failing_polls", "arrive_clocks")
    assert measured.clock_mhz == known(H100).clock_mhz
    by_flow = Config("cooperative", 16, 16, 256)
    by_barrier = replace(by_flow, exchange="barrier")
    assert estimate(LSTM, by_flow, H100).step_us < estimate(LSTM, by_barrier, H100).step_us
    assert estimate(LSTM, by_flow, H100, measured).step_us > estimate(LSTM, by_barrier, H100, measured).step_us


def test_every_constant_says_where_it_comes_from():
    for limits in (*KNOWN, replace(H100, name="another", arch=("cuda", 90)), replace(H100, arch=("cuda", 130))):
        constants = constants_for(limits)
        for field in fields(constants):
            constant = getattr(constants, field.name)
            assert constant.value > 0
            assert constant.unit
            assert constant.source
            assert constant.provenance in ("measured", "published", "assumed")
            assert (field.name in constants.measured) == (constant.provenance == "measured")
    # Published of a chip is published of that chip alone.
    assert known(H100).l2_clocks.provenance == "published"
    assert known(replace(H100, name="another")).l2_clocks.provenance == "assumed"
    assert known(H100).l2_clocks.value == known(replace(H100, name="another")).l2_clocks.value


def test_a_prediction_is_no_better_than_the_weakest_constant_in_it():
    assert weakest(()) == "measured"
    assert weakest(("measured", "published")) == "published"
    assert weakest(("assumed", "measured", "published")) == "assumed"
    one_program, team = Config("single_cta", 16, 64, 64), Config("cooperative", 16, 16, 256)
    small = replace(LSTM, hidden_size=64)
    assert estimate(small, one_program, H100).provenance == "published"
    assert estimate(LSTM, team, H100).provenance == "assumed"
    all_measured = {f.name: replace(getattr(known(H100), f.name), provenance="measured") for f in fields(known(H100))}
    assert estimate(LSTM, team, H100, replace(known(H100), **all_measured)).provenance == "measured"
    all_but_one = all_measured | {"l2_clocks": known(H100).l2_clocks}
    assert estimate(LSTM, team, H100, replace(known(H100), **all_but_one)).provenance == "published"
    assert estimate(small, one_program, H100, replace(known(H100), **all_but_one)).provenance == "measured"


def test_the_step_that_was_counted_by_hand():
    """The budget of LSTM bf16 H=768 B=16, worked out by hand from the same counts: 3,790 clocks, 1.91 us."""
    choice = choose(LSTM, H100)
    assert isinstance(choice, Config)
    assert estimate(LSTM, choice, H100).step_us == pytest.approx(1.91, rel=0.15)
    backward = replace(LSTM, phase="backward")
    choice = choose(backward, H100)
    assert isinstance(choice, Config)
    assert 2.2 < estimate(backward, choice, H100).step_us < 3.8


def test_what_the_cost_model_must_know():
    """Whatever the constants: more of anything costs more, and a team's wait costs more than none."""
    for limits in (A100, H100, B200):
        for cell in ("rnn_tanh", "gru", "lstm"):
            sizes = [replace(LSTM, cell=cell, hidden_size=h) for h in (256, 512, 768, 1024)]
            steps = [estimate(p, c, limits).step_us for p in sizes if isinstance(c := choose(p, limits), Config)]
            assert steps == sorted(steps)
            batches = [replace(LSTM, cell=cell, hidden_size=512, batch_size=b) for b in (16, 64, 256, 1024)]
            steps = [estimate(p, c, limits).step_us for p in batches if isinstance(c := choose(p, limits), Config)]
            assert steps == sorted(steps)
            both, one = (
                replace(LSTM, cell=cell, directions=2, hidden_size=512),
                replace(LSTM, cell=cell, hidden_size=512),
            )
            c = choose(both, limits)
            assert isinstance(c, Config)
            assert estimate(both, c, limits).step_us >= estimate(one, c, limits).step_us


@pytest.mark.parametrize("limits", [H100, A100, B200], ids=lambda limits: limits.name)
def test_obvious_choices(limits):
    """A small layer is one program; a large one a team that reads its tile's h by data, not behind a counter."""
    for cell in ("rnn_tanh", "gru", "lstm"):
        small = choose(replace(LSTM, cell=cell, hidden_size=64), limits)
        assert isinstance(small, Config)
        assert small.regime == "single_cta"
        large = choose(replace(LSTM, cell=cell), limits)
        assert isinstance(large, Config)
        assert (large.regime, large.exchange, large.BLOCK_B) == ("cooperative", "dataflow", 16)


def test_a_fit_finds_the_lines_that_counts_lie_on():
    """A slope below zero is none: more work never takes less."""
    true = {
        name: {feature: float(3 + index) for index, feature in enumerate(names)} for name, names in DEPENDS_ON.items()
    }
    true["operands"] = {"one": 100.0, "loads": -5.0}
    examples = []
    for _ in range(40):
        features = Features(1.0, *(random.uniform(0, 10) for _ in Features._fields[1:]))
        examples.append((features, Counts(*(evaluate(true[name], features) for name in Counts._fields))))
    found = _lines(examples)
    for name, slopes in true.items():
        if name != "operands":
            assert found["lines"][name] == pytest.approx(slopes, abs=0.01)
    assert "loads" not in found["lines"]["operands"]
    assert all(slope > 0 for slopes in found["lines"].values() for slope in slopes.values())
    assert found["kernels"] == 40
    assert 0 < found["off_by"][0] <= found["off_by"][1]


def test_the_lines_through_the_counts_cover_every_kernel():
    """A group nobody has counted would fail at selection time."""
    gpus = (*KNOWN, B200)
    for problem in quick_grid():
        for limits in random.sample(gpus, 2):
            for ranked in search(problem, limits)[0][:3]:
                assert counts_of(problem, ranked.config, limits).rest > 0
    for name, group in fitted().items():
        assert group.kernels >= 4, name
        assert group.off_by[0] <= 0.25, f"{name}: refit with python -m holdfast.autotune.fit_counts"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 1}, "schema should be 2, got 1"),
        ({"gpu": "NVIDIA L4"}, "gpu should be 'NVIDIA H100"),
        ({"measured": {"exchange": {"value": 1, "source": "x"}}}, "'exchange' is no constant; known: clock_mhz"),
        (
            {"measured": {"failing_polls": {"value": -1, "source": "x"}}},
            "failing_polls.value should be a positive number",
        ),
        ({"measured": {"failing_polls": {"value": 1, "source": ""}}}, "failing_polls.source should say"),
        ({"measured": [1]}, "measured should be an object"),
    ],
)
def test_a_constants_file_that_is_wrong_names_the_field(change, said, tmp_path):
    path = tmp_path / "constants.json"
    save_constants({"failing_polls": (0.5, "floor.py")}, H100, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said) as error:
        load_constants(path, H100)
    assert str(path) in str(error.value)


def test_saving_wrong_constants_leaves_the_file(tmp_path):
    path = tmp_path / "constants.json"
    save_constants({"failing_polls": (0.5, "floor.py")}, H100, path)
    before = path.read_text()
    with pytest.raises(ValueError, match="positive number"):
        save_constants({"failing_polls": (float("nan"), "floor.py")}, H100, path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["constants.json"]


def test_what_is_shipped_can_be_read():
    """Entries and constants of the package; there may be none yet."""
    for path, entry in Store(SHIPPED).entries():
        assert isinstance(entry, Entry), (path, entry)
        assert entry.best(keeps(Problem(entry.key.cell, torch.bfloat16, 1, 1, phase=entry.key.phase))[0]), path
    for limits in (*KNOWN, A100, B200):
        constants_for(limits)


def test_what_is_shipped_goes_into_the_wheel():
    packed = re.search(r'"holdfast.autotune" = (\[.*\])', (SHIPPED.parents[1] / "pyproject.toml").read_text())
    assert packed is not None
    found = {path for pattern in json.loads(packed.group(1)) for path in SHIPPED.parent.glob(pattern)}
    assert found == {FILE, *SHIPPED.rglob("*.*")}


def test_keeps_that_make_no_difference_are_one():
    for cell, spec in CELLS.items():
        forward, backward = (replace(LSTM, cell=cell, phase=phase) for phase in ("forward", "backward"))
        assert keeps(forward)[0] == "nothing"
        for keep in ("save", "recompute"):
            assert effective_keep(backward, keep) in keeps(backward)
            assert effective_keep(forward, keep) in keeps(forward)
        assert ("save" in keeps(forward)) == ("save" in keeps(backward)) == (spec.saved > 0)


def timed(config: Config, us: float) -> Timing:
    return Timing(config, "nothing", "warm", False, us, us, us, 5, 512, 16, 100, 1000, "2026-11-21")


def test_quality_is_the_heuristics_time_over_the_best():
    choice = Config("cooperative", 16, 16, 256)
    other = replace(choice, BLOCK_H=8)

    def entry(hidden: int, own: float, best: float) -> Entry:
        problem = replace(LSTM, hidden_size=hidden)
        return Entry(key_of(problem), fingerprint(problem, H100), choice, (timed(choice, own), timed(other, best)))

    quality = heuristic_quality([entry(256, 200.0, 100.0), entry(512, 100.0, 100.0), entry(768, 100.0, 300.0)])
    assert quality is not None
    assert quality.problems == 3
    assert quality.geometric_mean == pytest.approx(2 ** (1 / 3))
    assert quality.worst == 2.0
    assert "h256" in quality.where
    assert heuristic_quality([]) is None
    untimed = Entry(key_of(LSTM), fingerprint(LSTM, H100), choice, (timed(other, 1.0),))
    assert heuristic_quality([untimed]) is None


def test_the_digest_knows_the_injected_cell_functions(monkeypatch):
    before = source_digest(LSTM)
    assert before == source_digest(replace(LSTM, hidden_size=100, batch_size=3))
    assert len({source_digest(replace(LSTM, cell=cell)) for cell in ("rnn_tanh", "rnn_relu", "gru", "lstm")}) == 4
    assert before != source_digest(replace(LSTM, phase="backward"))
    other = replace(CELLS["lstm"], update=CELLS["gru"].update)
    monkeypatch.setitem(cell_spec.CELLS, "lstm", other)
    assert source_digest(LSTM) != before


def test_the_digest_sees_helpers_and_constants_but_no_comments(tmp_path, monkeypatch):
    import importlib.util

    def digest(body: str, name: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text("import triton\nimport triton.language as tl\nSCALE = tl.constexpr(2)\n" + body)
        spec = importlib.util.spec_from_file_location("edited_cell", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(cell_spec.CELLS, "lstm", replace(CELLS["lstm"], update=module.update))
        return source_digest(LSTM)

    helper = "@triton.jit\ndef half(x):\n    return x / SCALE\n"
    update = "@triton.jit\ndef update(v, state):\n    return half(v[0]), state[1]\n"
    first = digest(helper + update, "first")
    commented = update.replace("    return", '    """Words."""\n    # more words\n    return')
    assert digest(helper + commented, "commented") == first
    assert digest(helper.replace("x /", "x *") + update, "helper") != first
    assert digest((helper + update).replace("SCALE", "4.0"), "constant") != first


def test_no_kernel_gives_the_reason():
    assert isinstance(choose(replace(LSTM, hidden_size=4000), H100), Reason)
