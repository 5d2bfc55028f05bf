"""The groups of a time loop's arguments with a Triton type in the place of every tensor and number, for compilers.

Twin of what `layer` builds; that a launch compiles the same kernel is tested (tests/test_launch_path.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton

from .cell_spec import find_cell
from .loop.groups import (
    Dropout,
    Layer,
    LayerGradients,
    Loop,
    Outputs,
    Past,
    Resets,
    Rows,
    States,
    StepGradients,
    Strided,
    Team,
    Zones,
)
from .problem import Problem

_POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_SIXTEEN = [["tt.divisibility", 16]]
_STRIDES = ("direction", "time", "row", "unit")
"""Fields of groups that hold a stride."""


def types_of(problem: Problem, loop: Loop, *, has_bias: bool, has_initial: bool, saves: bool) -> dict[str, Any]:
    """Argument -> type, a group's with None for what is absent. saves: as for `describe.describe`."""
    cell, has = find_cell(problem.cell), set(problem.features)
    pointer = _POINTER[problem.dtype]
    states = (pointer,) * cell.states
    per_direction = (pointer,) * problem.directions
    forward = problem.phase == "forward"
    saves = saves or cell.inner is not None
    to_state = {"resets", "reset_state"} <= has
    dropout = "recurrent_dropout" in has
    initial = states if has_initial else None
    saved = pointer if saves and loop.SAVED else None
    groups: dict[str, Any] = {
        "layer": Layer(
            w_hh=per_direction,
            b_hh=per_direction if has_bias and forward else None,
            parameters=per_direction if cell.parameters else None,
        ),
        "rows": Rows(
            lengths="*i32" if has & {"lengths", "packed"} else None, starts="*i64" if "packed" in has else None
        ),
        "resets": Resets(
            marks="*u8" if "resets" in has else None,
            state=states if to_state else None,
            sent=pointer if to_state and forward else None,
        ),
        "dropout": Dropout(
            factors=pointer if dropout else None, initial=pointer if dropout and has_initial and forward else None
        ),
        "zones": Zones(states, "i32", "i32") if "zoneout" in has else Zones(),
        "team": _team(loop),
        **dict.fromkeys(("T", "B", "walk_bits"), "i32"),
    }
    gx = Strided(pointer, "i64", "i32", "i32")
    if forward:
        return groups | {
            "gx": gx,
            "states": States(initial, states),
            "out": Outputs(
                y=pointer,
                later=states[1:] or None if saves else None,
                saved=saved,
                inner=pointer if cell.inner is not None else None,
                sent=pointer if dropout else None,
            ),
        }
    again = loop.SAVED > 0 and saved is None
    return groups | {
        "dy": Strided(pointer, None, "i32", "i32"),
        "gradients": LayerGradients(
            final=states,
            initial=initial,
            reset=states if to_state else None,
            parameters="*fp32" if cell.parameters else None,
        ),
        "past": Past(initial, pointer, states[1:] or None, saved),
        "gx": gx if again else Strided(),
        "ga": Strided(pointer, "i64") if again else Strided(),
        "out": StepGradients(pointer, pointer if cell.split_gradient else None),
    }


def _team(loop: Loop) -> Team:
    if loop.EXCHANGE == "registers":
        return Team()
    return Team(
        arrivals="*i32" if loop.EXCHANGE == "barrier" else None,
        status="*i32",
        spin_limit="i32",
        partial="*i32" if loop.SPLIT_K > 1 else None,
    )


def signature_of(
    fn: triton.JITFunction, types: Mapping[str, Any], constexprs: Mapping[str, Any], *, aligned: bool
) -> tuple[dict[str, Any], dict[Any, Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and attributes as `triton.compile` takes them, for tensors whose memory begins at a multiple
    of 16 bytes.

    aligned:  whether strides are multiples of 16 elements.
    """
    constants: dict[Any, Any] = dict(constexprs)
    attrs: dict[tuple[int, ...], Any] = {}

    def described(kind: Any, path: tuple[int, ...], name: str) -> Any:
        if kind is None:
            constants[path] = None
            return "constexpr"
        if isinstance(kind, tuple):
            names = getattr(kind, "_fields", (name,) * len(kind))
            leaves = [described(leaf, (*path, i), names[i]) for i, leaf in enumerate(kind)]
            return type(kind)(*leaves) if hasattr(kind, "_fields") else tuple(leaves)
        if kind.startswith("*") or name == "spin_limit" or (aligned and name in _STRIDES):
            attrs[path] = _SIXTEEN
        return kind

    signature = {
        name: "constexpr" if name in constexprs else described(types[name], (index,), name)
        for index, name in enumerate(fn.arg_names)
    }
    return signature, constants, attrs
