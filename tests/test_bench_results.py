"""Results folders: suites beside each other, reports made again, comparisons that know the noise."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
import torch

from holdfast.autotune.constants import load_constants, save_constants
from holdfast.autotune.cost import estimate
from holdfast.bench.method import provenance
from holdfast.bench.method.case import Case, input_flops, recurrent_flops
from holdfast.bench.method.limits import Rates, gemm_us, loop_us_at_matrix_rate
from holdfast.bench.method.results import COLUMNS, Results, medians, read, shape_of
from holdfast.bench.output.compare import compare, differences
from holdfast.bench.output.report import overview, summary, write_report
from holdfast.bench.output.tables import duration
from holdfast.bench.suites import host
from holdfast.bench.suites.floors import _geometry, constants
from holdfast.kernels.resources import H100

CASE = Case("lstm", torch.float16, 768, 16, 1024)


def rows(p50s: list[float], provider: str = "holdfast", **more: object) -> list[dict[str, object]]:
    base = {"provider": provider, "phase": "forward", **CASE.columns(), "l2": "cold", "clock": "events", "status": "ok"}
    times = {"p20_us": 0.9, "p50_us": 1.0, "p80_us": 1.2, "us_per_step": 1 / 1024}
    return [
        {**base, "repeat": i, **{name: p50 * factor for name, factor in times.items()}, **more}
        for i, p50 in enumerate(p50s)
    ]


def folder(path, p50s, suite="home", **more):
    Results(path, suite).add(rows(p50s, **more))
    return path


def test_suites_lie_side_by_side_and_a_new_run_replaces_its_own(tmp_path):
    folder(tmp_path, [10.0, 11.0])
    folder(tmp_path, [20.0], suite="grid")
    folder(tmp_path, [30.0])
    assert read(tmp_path).groupby("suite")["p50_us"].apply(list).to_dict() == {"grid": [20.0], "home": [30.0]}


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path):
    results = Results(tmp_path, "home")
    for count in (1, 2, 3):
        results.add(rows([float(count)]))
        assert len(read(tmp_path)) == count
    assert os.listdir(tmp_path) == ["results.csv"]  # and nothing half-written beside them


def test_the_file_has_the_documented_columns(tmp_path):
    assert list(read(folder(tmp_path, [1.0])).columns) == COLUMNS


@pytest.mark.parametrize("content", [None, "a,b\n1,2\n"])
def test_a_folder_without_results_is_refused(content, tmp_path):
    if content:
        (tmp_path / "results.csv").write_text(content)
    with pytest.raises(ValueError, match=r"results\.csv"):
        read(tmp_path)


def test_noise_is_the_spread_of_the_repeats():
    table = pd.DataFrame([{"suite": "home", **row} for row in rows([10.0, 12.0, 11.0])], columns=COLUMNS)
    (found,) = medians(table).to_dict("records")
    assert found["p50_us"] == 11.0
    assert found["noise"] == pytest.approx(2 / 11)
    assert medians(table[:1])["noise"].isna().all()


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([10.0, 10.1], [8.0, 8.1], "faster"),
        ([10.0, 10.1], [12.0, 12.1], "slower"),
        ([10.0, 10.1], [10.1, 10.2], "same"),
        ([10.0, 14.0], [8.0, 8.1], "same"),
        ([10.0, 10.1], [6.0, 14.0], "same"),
        ([10.0], [5.0, 5.1], "unknown"),
    ],
)
def test_a_change_counts_beyond_the_noise_of_both(before, after, verdict, tmp_path):
    table = compare(folder(tmp_path / "a", before), folder(tmp_path / "b", after))
    assert table["verdict"].tolist() == [verdict]


def test_only_the_same_measurements_are_compared(tmp_path):
    a = folder(tmp_path / "a", [1.0, 1.0])
    for change in ({"provider": "torch.nn"}, {"H": 512}, {"phase": "training"}, {"l2": "warm"}):
        with pytest.raises(ValueError, match="no measurement in common"):
            compare(a, folder(tmp_path / f"b{len(os.listdir(tmp_path))}", [1.0, 1.0], **change))


def test_another_machine_is_told(tmp_path):
    for name, gpu in (("a", "H100"), ("b", "H200")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(json.dumps({"home": {"gpu": gpu, "torch": "2.13"}}))
    assert differences(tmp_path / "a", tmp_path / "b") == ["home: gpu was H100, is H200"]


def test_a_report_is_made_from_the_csv_alone(tmp_path):
    folder(tmp_path, [100.0, 101.0, 99.0], floor_us=50.0, floor_multiple=2.0, ratio=1.5, baseline="torch.nn")
    results = Results(tmp_path, "memory")
    results.add(
        [{"provider": "torch.nn", "phase": "training", **CASE.columns(), "bytes_held": 2.0**20, "status": "ok"}]
    )
    written = {path.name for path in write_report(tmp_path)}
    pictures = {f"{stem}.{kind}" for stem in ("home", "home_roofline", "memory_held") for kind in ("png", "pdf")}
    assert written == pictures | {"results.md", "results.tex"}
    text = (tmp_path / "results.md").read_text()
    assert "| lstm fp16 H=768 B=16 T=1024 | forward | holdfast | cold | 100.0 us |" in text
    assert "1.0 MiB" in text
    latex = (tmp_path / "results.tex").read_text()
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:holdfast-home}"))
    before = [(tmp_path / name).read_bytes() for name in ("results.md", "results.tex", "home.png")]
    write_report(tmp_path)
    assert before == [(tmp_path / name).read_bytes() for name in ("results.md", "results.tex", "home.png")]


def test_many_cases_are_drawn_over_the_hidden_size(tmp_path):
    results = Results(tmp_path, "grid")
    for hidden in range(32, 32 * 40, 32):
        results.add(rows([1.0, 2.0], H=hidden, ratio=1.5, baseline="torch.nn"))
    assert {path.name for path in write_report(tmp_path)} >= {"grid.png", "grid.pdf"}


def test_an_overview_has_a_line_a_case_and_a_column_a_provider():
    table = rows([1000.0], ratio=2.0) + rows([2000.0], provider="torch.nn", ratio=1.0)
    found = overview(pd.DataFrame([{"suite": "home", **row} for row in table], columns=COLUMNS))
    shown = {"case": shape_of(pd.Series(CASE.columns())), "phase": "forward"}
    assert found.to_dict("records") == [{**shown, "holdfast": "1.00 ms (2.00)", "torch.nn": "2.00 ms (1.00)"}]


def test_nothing_timed_is_an_empty_table():
    table = pd.DataFrame([{"suite": "x", "provider": "a", "status": "unavailable", "note": "why"}], columns=COLUMNS)
    assert summary(table).empty
    assert overview(table).empty


@pytest.mark.parametrize(("us", "shown"), [(0.25, "0.2 us"), (999.0, "999.0 us"), (1500.0, "1.50 ms"), (2e6, "2.00 s")])
def test_durations_are_in_units_that_read_well(us, shown):
    assert duration(us) == shown


def test_provenance_of_a_suite_stays_beside_the_others(tmp_path):
    provenance.write_provenance(tmp_path, "home")
    provenance.write_provenance(tmp_path, "grid")
    runs = provenance.read_provenance(tmp_path)
    assert runs.keys() == {"home", "grid"}
    assert {"time", "command", "commit", "dirty", "gpu", "torch", "triton", "host", "load", "threads"} <= runs[
        "home"
    ].keys()
    assert runs["home"]["torch"] == torch.__version__


def test_the_end_of_a_run_is_added_to_its_beginning(tmp_path):
    provenance.write_provenance(tmp_path, "home")
    began = provenance.read_provenance(tmp_path)["home"]
    provenance.write_provenance(tmp_path, "home", seconds=1.5)
    assert provenance.read_provenance(tmp_path)["home"] == began | {"seconds": 1.5}


def test_the_host_suite_says_what_holdfast_adds():
    def pair(case: Case, phase: str, ours: float, torchs: float) -> list[dict[str, object]]:
        base = {"suite": "host", "phase": phase, **case.columns(), "l2": "rotating", "clock": "wall", "repeat": 0}
        return [{**base, "provider": "holdfast", "p50_us": ours}, {**base, "provider": "torch.nn", "p50_us": torchs}]

    useful = host.USEFUL[0]
    table = [*pair(host.FIXED, "forward", 12.0, 10.0), *pair(host.FIXED, "training", 33.0, 30.0)]
    table += [*pair(useful, "forward", 101.0, 100.0), *pair(useful, "training", 306.0, 300.0)]
    said = host.verdict(medians(pd.DataFrame(table, columns=COLUMNS)))
    assert "+2.0 us forward, +3.0 us training" in said
    assert "1.015 in the median, at most 1.020 (lstm fp32 H=128 B=16 T=50, training)" in said


def test_operations_are_counted_by_hand():
    case = Case("gru", torch.float32, 10, 3, 7, input_size=4, directions=2, layers=2)
    steps = 7 * 3 * 2
    assert recurrent_flops(case) == 2 * steps * 30 * 10 * 2
    assert input_flops(case) == 2 * steps * 30 * (4 + 20)
    assert input_flops(Case("lstm", torch.float32, 8, 1, 1, heads=3)) == 2 * 3 * 32 * 24
    rates = Rates(copy=1e9, matrix=1e9)
    assert gemm_us(case, "forward", rates) == pytest.approx(input_flops(case) / 1e3)
    assert gemm_us(case, "training", rates) == pytest.approx((3 * input_flops(case) + recurrent_flops(case)) / 1e3)
    assert loop_us_at_matrix_rate(case, "training", rates) == pytest.approx(2 * recurrent_flops(case) / 1e3)


def test_measured_floors_become_the_cost_models_constants(tmp_path):
    exchange = [
        {"provider": f"exchange only, {name}, forward", "H": H, "us_per_step": us}
        for name, us in (("dataflow", 1.5), ("barrier", 4.0))
        for H in (768, 64)
    ]
    table = pd.DataFrame([{"provider": "copy", "rate": 3e12}, *exchange], columns=COLUMNS)
    save_constants(constants(table, H100), H100, tmp_path / "constants.json")
    found = load_constants(tmp_path / "constants.json", H100)
    assert set(found.measured) == {"failing_polls", "arrive_clocks", "dram_bytes_per_us"}
    assert found.dram_bytes_per_us.value == 3e6
    for exchange, us in (("dataflow", 1.5), ("barrier", 4.0)):
        cost = estimate(*_geometry(48, "forward", exchange), H100, found)
        assert cost.publish + cost.waits == pytest.approx(us, rel=0.01)


def test_a_command_line_is_kept_without_a_machines_folders():
    given = [
        "/some/where/holdfast/__main__.py",
        "bench",
        "auto",
        "--threads",
        "1",
        "--out",
        "/tmp/x/cpu",
        "--f=/a/b.csv",
    ]
    assert provenance._command(given) == "holdfast bench auto --threads 1 --out cpu --f=b.csv"
