"""The pictures of a suite: times by provider, bytes held, and the roofline of its time loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from ..method.case import gates
from ..method.results import SHAPE, medians, shape_of
from .drawing import new_figure, styles

MANY = 24
"""More cases than this do not fit on an axis by name; they are drawn over the hidden size."""


def times(rows: pd.DataFrame, stem: Path) -> bool:
    """Time by provider with p20 to p80 and the floor, a panel a phase; False where nothing was timed."""
    found = medians(rows[rows["cell"].notna()])
    if found.empty:
        return False
    found = found[found["l2"] != "warm"] if (found["l2"] != "warm").any() else found
    cases = found[SHAPE].drop_duplicates()
    if len(cases) > MANY:
        return ratios(found, stem)
    phases = list(dict.fromkeys(found["phase"]))
    figure = new_figure(5.2 * len(phases) + 2.2, 1.6 + 0.42 * len(cases))
    panels = figure.subplots(1, len(phases), sharey=True, squeeze=False)[0]
    names = [shape_of(case) for _, case in cases.iterrows()]
    places = {tuple(case): len(cases) - i for i, case in enumerate(cases.astype(str).itertuples(index=False))}
    for axes, phase in zip(panels, phases, strict=True):
        of_phase = found[found["phase"] == phase]
        for provider, colour, marker in styles(found["provider"]):
            chosen = of_phase[of_phase["provider"] == provider]
            y = [places[tuple(case)] for case in chosen[SHAPE].astype(str).itertuples(index=False)]
            errors = [chosen["p50_us"] - chosen["p20_us"], chosen["p80_us"] - chosen["p50_us"]]
            drawn = {"color": colour, "marker": marker, "linestyle": "", "markersize": 5, "label": provider}
            axes.errorbar(chosen["p50_us"], y, xerr=[e.fillna(0) for e in errors], elinewidth=1, **drawn)
        floors = of_phase[of_phase["floor_us"].notna() & (of_phase["provider"] == "holdfast")]
        y = [places[tuple(case)] for case in floors[SHAPE].astype(str).itertuples(index=False)]
        axes.plot(floors["floor_us"], y, linestyle="", marker="|", markersize=12, color="black", label="floor")
        axes.set(xscale="log", xlabel="time of a call", title=phase)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda us, _: plain_duration(us))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
    panels[0].set_yticks(list(places.values()), names, fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return _save(figure, stem)


def ratios(found: pd.DataFrame, stem: Path) -> bool:
    """Of many cases: baseline's time over holdfast's, over the hidden size, a panel a cell and phase."""
    ours = found[found["provider"] == "holdfast"]
    cells, phases = (list(dict.fromkeys(ours[name])) for name in ("cell", "phase"))
    figure = new_figure(3.6 * len(cells), 3.0 * len(phases) + 0.6)
    grid = figure.subplots(len(phases), len(cells), sharex=True, sharey=True, squeeze=False)
    for line, phase in zip(grid, phases, strict=True):
        for axes, cell in zip(line, cells, strict=True):
            chosen = ours[(ours["cell"] == cell) & (ours["phase"] == phase)]
            for dtype, colour, marker in styles(ours["dtype"]):
                points = chosen[chosen["dtype"] == dtype]
                size = 8 + 6 * points["B"].astype(float) ** 0.5
                axes.scatter(points["H"], points["ratio"], s=size, color=colour, marker=marker, label=dtype, alpha=0.7)
            axes.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
            axes.set(xscale="log", yscale="log", title=f"{cell}, {phase}")
            axes.grid(alpha=0.25)
    for axes in grid[-1]:
        axes.set_xlabel("hidden size")
    for line in grid:
        line[0].set_ylabel(f"time of {ours['baseline'].iloc[0]} / ours")
    grid[0][0].legend(frameon=False, fontsize=8, title="larger marks: larger batches", title_fontsize=7)
    return _save(figure, stem)


def held(rows: pd.DataFrame, stem: Path) -> bool:
    """Bytes held for the backward pass by provider; False where none are known."""
    found = rows[rows["bytes_held"].notna()]
    if found.empty:
        return False
    names = list(dict.fromkeys(shape_of(row) for _, row in found.iterrows()))
    providers = styles(found["provider"])
    figure = new_figure(8, 1.4 + 0.55 * len(names))
    axes = figure.subplots()
    for i, (provider, colour, _) in enumerate(providers):
        chosen = found[found["provider"] == provider]
        y = [len(names) - names.index(shape_of(row)) - 0.25 * i for _, row in chosen.iterrows()]
        axes.barh(y, chosen["bytes_held"] / 2**20, height=0.22, color=colour, label=provider)
    axes.set_yticks([len(names) - i - 0.25 for i in range(len(names))], names, fontsize=8)
    axes.set_xlabel("MiB held between forward and backward")
    axes.grid(alpha=0.25, axis="x")
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, stem)


def roofline(rows: pd.DataFrame, stem: Path) -> bool:
    """The rate that the recurrence reaches, over the operations of a step, under this machine's measured limits.

    The limits: the matrix rate; W_hh read from memory every step at the copy bandwidth, for the smallest and the
    largest batch; and an exchange a step, where one was measured.
    """
    found = medians(rows[rows["cell"].notna()])
    found = found[(found["phase"] == "forward") & (found["T"] > 1) & (found["cell"].map(gates) > 0)]
    if found.empty:
        return False
    flops = 2 * found["B"] * found["cell"].map(gates) * found["H"] ** 2
    flops = flops * found["directions"] * found["layers"] * found["heads"]
    figure = new_figure(6.8, 5.4)
    axes = figure.subplots()
    for provider, colour, marker in styles(found["provider"]):
        chosen = found["provider"] == provider
        reached = flops[chosen] / found["us_per_step"][chosen] / 1e3
        axes.plot(flops[chosen], reached, color=colour, marker=marker, linestyle="", markersize=5, label=provider)
    for index, (name, rate) in enumerate(_limits(rows, found).items()):
        dashes = ("-", "--", ":", "-.")[index % 4]
        axes.plot(rate.index, rate, color="black", linewidth=0.9, linestyle=dashes, label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="floating-point operations of a step's recurrent product",
        ylabel="GFLOP/s, the input projection's time included",
    )
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return _save(figure, stem)


def _limits(rows: pd.DataFrame, found: pd.DataFrame) -> dict[str, pd.Series]:
    """GFLOP/s by the operations of a step, of each measured limit."""
    flops = 2 * found["B"] * found["cell"].map(gates) * found["H"] ** 2
    x = pd.Index(sorted({float(flops.min()) / 2, float(flops.max()) * 2}))
    limits = {}
    for dtype in dict.fromkeys(found["dtype"]):
        rate = rows[(rows["provider"] == "product") & (rows["dtype"] == dtype)]["rate"]
        if len(rate):
            limits[f"matrix rate {dtype}"] = pd.Series(rate.iloc[0] / 1e9, index=x)
    copy = rows[rows["provider"] == "copy"]["rate"]
    bytes_each = 4 if set(found["dtype"]) == {"fp32"} else 2
    if len(copy):
        for batch in sorted({int(found["B"].min()), int(found["B"].max())}):
            name = f"W_hh from memory every step, B={batch}"
            limits[name] = pd.Series(2 * batch * copy.iloc[0] / bytes_each / 1e9, index=x)
    exchange = rows[(rows["provider"] == "exchange only") & (rows["phase"] == "forward") & (rows["us_per_step"] > 0)]
    if len(exchange):
        us = exchange["us_per_step"].median()
        limits[f"an exchange a step, {us:.2f} us"] = pd.Series(x / us / 1e3, index=x)
    return limits


FIGURES = {"times": times, "held": held, "roofline": roofline}
"""What may be drawn of a suite; each returns False where its rows have nothing of the kind."""


def plain_duration(us: float) -> str:
    """A tick's microseconds: "300 us", "1 ms"."""
    return f"{us:g} us" if us < 1e3 else f"{us / 1e3:g} ms" if us < 1e6 else f"{us / 1e6:g} s"


def _save(figure: Any, stem: Path) -> bool:
    figure.savefig(stem.with_suffix(".png"), dpi=130)
    figure.savefig(stem.with_suffix(".pdf"))
    return True
