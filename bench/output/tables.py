"""Tables for a terminal and for Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from ..method.provenance import Environment

if TYPE_CHECKING:
    import pandas as pd


def print_table(table: pd.DataFrame, console: Console | None = None) -> None:
    """Print a DataFrame, numbers to the right."""
    console = console or Console()
    columns: list[list[str]] = []
    shown = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in table.columns:
        values = [f"{value:,}" if isinstance(value, int) else str(value) for value in table[name].tolist()]
        if table[name].dtype.kind in "iuf":
            # On a narrow terminal the header wraps: a number cut short would be worse than none.
            shown.add_column(str(name), justify="right", min_width=max(map(len, values), default=0))
        else:
            shown.add_column(str(name), overflow="fold")
        columns.append(values)
    for row in zip(*columns, strict=True):
        shown.add_row(*row)
    console.print(shown)


def to_markdown(table: pd.DataFrame, rule: str = " --- ") -> str:
    """A DataFrame as a Markdown table; missing values are left empty. (pandas' own needs one more package.)

    rule:  below each column's name.
    """
    lines = [f"| {' | '.join(map(str, table.columns))} |", f"|{'|'.join([rule] * len(table.columns))}|"]
    for row in table.astype(object).where(table.notna(), "").itertuples(index=False):
        cells = (str(value).replace("|", "\\|").replace("\n", " ") for value in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def duration(us: float) -> str:
    """Microseconds in a unit that reads well."""
    if us != us:
        return ""
    return f"{us:.1f} us" if us < 1e3 else f"{us / 1e3:.2f} ms" if us < 1e6 else f"{us / 1e6:.2f} s"


def print_environment(found: Environment, console: Console | None = None) -> None:
    """Print what `find_environment` found, a line a fact."""
    console = console or Console()
    shown = Table(show_header=False, box=None, pad_edge=False)
    for name, value in environment_lines(found):
        shown.add_row(name, value)
    console.print(shown)


def environment_lines(found: Environment) -> list[tuple[str, str]]:
    """The facts by name, in words."""
    build = f"CUDA {found.cuda}" if found.cuda else "CPU build"
    return [
        ("GPU", ", ".join(found.gpus) or "none that torch can use"),
        ("torch", f"{found.torch} ({build}; threads: {found.torch_threads})"),
        ("Triton", found.triton or "not installed: the kernels cannot run"),
        ("Python", f"{found.python} on {found.system}, {found.cpus} CPUs"),
    ]
