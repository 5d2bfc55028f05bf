"""How a page makes its cell: of functions by the names that `define_cell` has for them, under the page's own name."""

from __future__ import annotations

from typing import Any

from ..custom import define_cell

FUNCTIONS = ("gates_of", "update", "gradients", "reference", "inner", "outer_gradients")


def define(page: dict[str, Any], *, gate_names: tuple[str, ...], **counts: Any) -> None:
    """page: its globals; gate_names: of all that `gates_of` returns; counts: the other arguments of `define_cell`."""
    functions = {name: page[name] for name in FUNCTIONS if name in page}
    name = page["__name__"].rpartition(".")[2]
    define_cell(name, **functions, values=len(gate_names), gate_names=gate_names, **counts)
