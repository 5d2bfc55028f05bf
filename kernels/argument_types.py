"""The groups of a time loop's arguments with a Triton type in the place of every tensor and number, for compilers.

Twin of `arguments` and of what `layer` makes of them; that a launch compiles the same kernel is tested
(tests/test_launch_path.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton

from .cell_spec import find_cell
from .config import Config
from .kept import Keep, keeps_values, writes_operands
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
_ALIGNED = ":16"
"""Behind the type of a number that is a multiple of 16, as Triton writes it for ahead-of-time compilation."""


def types_of(
    problem: Problem, config: Config, loop: Loop, *, has_bias: bool, has_initial: bool, keep: Keep, in_chunks: bool
) -> dict[str, Any]:
    """Argument -> type, a group's with None for what is absent. keep and in_chunks: as for `describe.describe`."""
    cell, has = find_cell(problem.cell), set(problem.features)
    pointer = _POINTER[problem.dtype]
    states = (pointer,) * cell.states
    per_direction = (pointer,) * problem.directions
    forward = problem.phase == "forward"
    to_state = {"resets", "reset_state"} <= has
    dropout = "recurrent_dropout" in has
    initial = states if has_initial or in_chunks else None
    carried = ("*fp32",) * cell.states if in_chunks else states
    saved = pointer if keeps_values(problem, keep) else None
    operands = writes_operands(config, keep)
    width = "i32:16" if problem.directions * problem.hidden_size % 16 == 0 else "i32"
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
        "dropout": Dropout(factors=pointer if dropout else None),
        "zones": Zones(states, width, "i32") if "zoneout" in has else Zones(),
        "team": _team(loop, cell.normalised),
        **dict.fromkeys(("T", "B", "walk_bits"), "i32"),
    }
    gx = Strided(pointer, "i64:16", "i32:16", "i32:16")
    if forward:
        return groups | {
            "gx": gx,
            "states": States(
                carried if initial else None,
                carried,
                sent=pointer if in_chunks or (dropout and has_initial) else None,
            ),
            "out": Outputs(
                y=pointer,
                later=None if keep == "nothing" else states[1:] or None,
                saved=saved,
                inner=pointer if operands and cell.inner is not None else None,
                sent=pointer if operands and dropout else None,
            ),
        }
    again = loop.SAVED > 0 and saved is None
    return groups | {
        "dy": Strided(pointer, None, "i32:16", "i32:16"),
        "gradients": LayerGradients(
            final=carried,
            initial=carried if initial else None,
            reset=states if to_state else None,
            parameters="*fp32" if cell.parameters else None,
        ),
        "past": Past(initial, pointer, states[1:] or None, saved),
        "gx": gx if again else Strided(),
        "ga": Strided(pointer, "i64:16") if again else Strided(),
        "out": StepGradients(pointer, pointer if cell.split_gradient else None),
    }


def _team(loop: Loop, normalised: int) -> Team:
    if loop.EXCHANGE == "registers":
        return Team()
    return Team(
        arrivals="*i32" if loop.EXCHANGE == "barrier" else None,
        status="*i32",
        spin_limit="i32:16",
        partial="*i32" if loop.SPLIT_K > 1 or (normalised and loop.MEMBERS > 1) else None,
    )


def signature_of(
    fn: triton.JITFunction, types: Mapping[str, Any], constexprs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Any, Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and attributes as `triton.compile` takes them, for tensors whose memory begins at a multiple
    of 16 bytes.
    """
    constants: dict[Any, Any] = dict(constexprs)
    attrs: dict[tuple[int, ...], Any] = {}

    def described(kind: Any, path: tuple[int, ...]) -> Any:
        if kind is None:
            constants[path] = None
            return "constexpr"
        if isinstance(kind, tuple):
            leaves = [described(leaf, (*path, i)) for i, leaf in enumerate(kind)]
            return type(kind)(*leaves) if hasattr(kind, "_fields") else tuple(leaves)
        if kind.startswith("*") or kind.endswith(_ALIGNED):
            attrs[path] = _SIXTEEN
        return kind.removesuffix(_ALIGNED)

    signature = {
        name: "constexpr" if name in constexprs else described(types[name], (index,))
        for index, name in enumerate(fn.arg_names)
    }
    return signature, constants, attrs
