"""Tables and pictures of a results folder: Markdown, LaTeX, PNG and PDF, all from its CSV and provenance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..method.provenance import read_provenance
from ..method.results import medians, read, shape_of
from .figures import FIGURES
from .tables import duration, to_markdown


def write_report(folder: Path) -> list[Path]:
    """Write results.md, results.tex and the pictures of every suite; their paths.

    Raises ValueError where the folder holds no results.
    """
    table = read(folder)
    runs = read_provenance(folder)
    suites = list(dict.fromkeys(table["suite"]))
    written = [folder / "results.md", folder / "results.tex"]
    written[0].write_text(
        "\n".join(_section(suite, table[table["suite"] == suite], runs.get(suite, {})) for suite in suites),
        encoding="utf-8",
    )
    tables = [_latex(suite, table[table["suite"] == suite]) for suite in suites]
    written[1].write_text("\n".join(["% \\usepackage{booktabs,longtable}", *tables]), encoding="utf-8")
    for suite in suites:
        rows = table[table["suite"] == suite]
        for name, draw in FIGURES.items():
            written += _drawn(draw, rows, folder / (suite if name == "times" else f"{suite}_{name}"))
    return written


def _drawn(draw: Callable[[pd.DataFrame, Path], bool], rows: pd.DataFrame, stem: Path) -> list[Path]:
    """The picture as PNG and PDF; nothing where these rows have none of its kind."""
    return [stem.with_suffix(".png"), stem.with_suffix(".pdf")] if draw(rows, stem) else []


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a measurement in words and short numbers, as the Markdown and the terminal show it."""
    found = medians(rows)
    if found.empty:
        return pd.DataFrame()
    found = found.dropna(subset=["cell"])
    return pd.DataFrame(
        {
            "case": [shape_of(row) for _, row in found.iterrows()],
            "phase": found["phase"],
            "provider": found["provider"],
            "L2": found["l2"],
            "time": [duration(us) for us in found["p50_us"]],
            "p20 to p80": [
                f"{duration(low)} to {duration(high)}" if low == low else ""
                for low, high in zip(found["p20_us"], found["p80_us"], strict=True)
            ],
            "us/step": [_short(us) for us in found["us_per_step"]],
            "ratio": [_short(ratio) for ratio in found["ratio"]],
            "x floor": [_short(multiple) for multiple in found["floor_multiple"]],
            "noise": ["" if noise != noise else f"{100 * noise:.1f} %" for noise in found["noise"]],
            "runs": found["algorithm"].fillna(""),
        }
    ).reset_index(drop=True)


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """For a terminal: a line a case and phase, a column a provider, with times and, in brackets, ratios."""
    found = medians(rows)
    found = found[found["cell"].notna()]
    if found.empty:
        return pd.DataFrame()
    lines: dict[tuple[str, str], dict[str, str]] = {}
    several = found["l2"].nunique() > 1
    for _, row in found.iterrows():
        phase = f"{row['phase']}, {row['l2']} L2" if several else row["phase"]
        ratio = f" ({_short(row['ratio'])})" if row["ratio"] == row["ratio"] else ""
        lines.setdefault((shape_of(row), phase), {})[row["provider"]] = duration(row["p50_us"]) + ratio
    cells = [{"case": case, "phase": phase, **times} for (case, phase), times in lines.items()]
    wide = pd.DataFrame(cells)
    if wide.notna().to_numpy().mean() > 0.7:
        return wide.fillna("")
    # Mostly holes: a line for each time.
    long = [
        {"case": case, "phase": phase, "provider": provider, "time (ratio)": time}
        for (case, phase), times in lines.items()
        for provider, time in times.items()
    ]
    return pd.DataFrame(long)


def others(rows: pd.DataFrame) -> pd.DataFrame:
    """What has no time: bytes, rates, and who could not run and why, each reason once."""
    untimed = rows[rows["p50_us"].isna()]
    keys = ["provider", "phase", "status", "note", "bytes_held", "bytes_peak", "rate"]
    with_shape = untimed.assign(case=[shape_of(row) for _, row in untimed.iterrows()])
    has_figure = with_shape[["bytes_held", "bytes_peak", "rate"]].notna().any(axis=1)
    figures = with_shape[has_figure]
    # A reason that holds for many cases is told once.
    reasons = with_shape[~has_figure & with_shape["status"].isin(["unavailable", "failed", "wrong"])]
    reasons = reasons.drop_duplicates(["provider", "status", "note"])
    shown = pd.concat([figures, reasons])[["case", *keys]].fillna({"note": ""})
    for name in ("bytes_held", "bytes_peak"):
        shown[name] = [f"{value / 2**20:,.1f} MiB" if value == value else "" for value in shown[name]]
    shown["rate"] = [f"{value:.3g}/s" if value == value else "" for value in shown["rate"]]
    return shown.loc[:, (shown != "").any()].reset_index(drop=True)


def _short(value: float) -> str:
    return "" if value != value else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def facts(run: dict[str, object]) -> str:
    """The provenance of a suite's figures in two lines."""
    if not run:
        return "No provenance was recorded."
    dirty = " with uncommitted changes" if run.get("dirty") else ""
    where = run.get("gpu") or "no GPU"
    versions = ", ".join(f"{name} {run[name]}" for name in ("torch", "triton", "cuda", "cudnn") if run.get(name))
    load = run.get("load")
    return (
        f"{run.get('time')}, commit {str(run.get('commit'))[:12]}{dirty}, {where}; {run.get('host')}, "
        f"{run.get('threads')} threads, load {load}; {versions}.\n`{run.get('command')}`"
    )


def _section(suite: str, rows: pd.DataFrame, run: dict[str, object]) -> str:
    parts = [f"## {suite}\n", facts(run) + "\n"]
    for shown in (summary(rows), others(rows)):
        if len(shown):
            parts.append(to_markdown(shown))
    return "\n".join(parts)


def _latex(suite: str, rows: pd.DataFrame) -> str:
    shown = summary(rows)
    if shown.empty:
        return f"% {suite}: nothing was timed.\n"
    columns = ["case", "phase", "provider", "L2", "time", "us/step", "ratio", "x floor"]
    table = shown[columns].rename(columns={"us/step": "us per step", "x floor": "times floor"})
    return table.to_latex(
        index=False,
        escape=True,
        longtable=True,
        column_format="llll" + "r" * 4,
        caption=f"Suite {suite}: medians; ratio is the baseline's time over this one's.",
        label=f"tab:holdfast-{suite}",
    )
