"""Options that several commands share, and options in groups. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

DtypeName = Literal["fp32", "bf16", "fp16"]
Batch = Annotated[int, typer.Option(min=1, help="Sequences in a batch.")]
Heads = Annotated[int, typer.Option(min=1, help="num_heads of that layer: recurrences beside each other.")]
Bidirectional = Annotated[bool, typer.Option("--bidirectional", help="Both directions in one launch.")]
Load = Annotated[
    Path | None, typer.Option(metavar="FILE.py", help="A file that defines cells with holdfast.define_cell.")
]

GPUS = {
    "a100": "A100",
    "h100": "H100",
    "h200": "H200",
    "b200": "B200",
    "mi300x": "MI300X",
    "l4": "L4",
    "rtx4090": "RTX_4090",
}
"""A GPU's name on the command line, and that of its limits in `kernels.resources`."""


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of every parameter that is a dataclass.

    Typer makes an option of each parameter of a signature; a group takes a few of them through as one.
    """
    groups: dict[str, Any] = {}
    options: list[Parameter] = []
    for name, parameter in signature(command, eval_str=True).parameters.items():
        group = parameter.annotation
        if not is_dataclass(group):
            options.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        groups[name], types = group, get_type_hints(group, include_extras=True)
        options += [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
            for field in fields(group)
        ]

    @wraps(command)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    flat.__signature__ = Signature(options)  # type: ignore[attr-defined]
    flat.__annotations__ = {option.name: option.annotation for option in options}
    return flat
