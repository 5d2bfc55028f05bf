"""Tables for a terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..method.provenance import Environment


def print_table(table: pd.DataFrame, console: Console | None = None, title: str | None = None) -> None:
    """Print a DataFrame, numbers to the right, no wider than the terminal: what is too wide takes several lines."""
    console = console or Console()
    columns = [[Text(str(name)), *map(_text, table[name].tolist())] for name in table.columns]
    words = [max(map(_longest_word, column)) for column in columns]
    # One space between columns where two would break a word; one at each edge.
    gap = 2 if sum(words) + 2 * len(columns) <= console.width else 1
    widths = _widths(columns, words, console.width - gap * (len(columns) - 1) - 2)
    shown = Table(title=title, header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for (header, *cells), width in zip(columns, widths, strict=True):
        right = bool(cells) and all(map(_is_number, cells))
        shown.add_column(_broken(header, width), justify="right" if right else "left", width=width)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        shown.add_row(*map(_broken, row, widths))
    console.print(shown)


def _text(value: object) -> Text:
    return value if isinstance(value, Text) else Text(f"{value:,}" if isinstance(value, int) else str(value))


def _is_number(cell: Text) -> bool:
    try:
        float(cell.plain.replace(",", ""))
    except ValueError:
        return False
    return True


def _widths(columns: Sequence[Sequence[Text]], words: list[int], room: int) -> list[int]:
    """Of each column: its widest cell; where that is too much, the widest columns are folded between words, and where
    that is too little, inside them.

    words:  the longest of each column.
    """
    widths = [max(cell.cell_len for cell in column) for column in columns]
    for least in (words, [1] * len(columns)):
        while sum(widths) > room and widths != least:
            _, widest = max((width, i) for i, width in enumerate(widths) if width > least[i])
            widths[widest] -= 1
    return widths


def _longest_word(cell: Text) -> int:
    return max(map(cell_len, cell.plain.split()), default=0)


def _broken(cell: Text, width: int) -> Text:
    """The cell as it is, or broken after a comma and the like where a word is wider than its column."""
    if _longest_word(cell) <= width:
        return cell
    lines = [""]
    for piece in re.split(r"(?<=[ ,;/=(])", cell.plain):
        if cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return Text("\n".join(lines).lstrip("\n"), cell.style, overflow="fold")


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
