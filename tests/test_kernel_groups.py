"""Groups as arguments of jitted code: what Triton gets wrong without a word is ruled out (see kernels/README.md)."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from triton.compiler import ASTSource

from holdfast.kernels import loop
from holdfast.kernels.cell_spec import find_cell
from holdfast.kernels.config import Config
from holdfast.kernels.describe import describe, loop_of
from holdfast.kernels.loop import backward_step, exchange, groups, walk
from holdfast.kernels.loop import forward as forward_loop
from holdfast.kernels.loop.backward import backward
from holdfast.kernels.loop.forward import forward
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100

MOMENTS = dict.fromkeys(("now", "earlier", "beyond", "ahead"), walk.Moment)
GROUP_OF = {
    **dict.fromkeys(("gx", "ga", "dy", "strided"), groups.Strided),
    **{"layer": groups.Layer, "states": groups.States, "rows": groups.Rows, "resets": groups.Resets},
    **{"dropout": groups.Dropout, "zones": groups.Zones, "team": groups.Team, "past": groups.Past},
    **{"gradients": groups.LayerGradients, "me": walk.Member, "tile": walk.Tile, **MOMENTS, "sent": exchange.Sent},
    **{"inputs": forward_loop.Inputs, "inputs_ahead": forward_loop.Inputs},
    **{"reads": backward_step.Reads, "reads_ahead": backward_step.Reads},
}
"""Under which names jitted code holds which group. `out` is two, one in each kernel, and is handed to no function."""

HOST_GROUPS = [g for g in vars(groups).values() if isinstance(g, type) and issubclass(g, tuple) and g is not NamedTuple]
IN_KERNEL = [walk.Member, walk.Tile, walk.Moment, exchange.Sent, forward_loop.Inputs, backward_step.Reads]


def jitted() -> dict[str, triton.JITFunction]:
    modules = [importlib.import_module(f"holdfast.kernels.loop.{m.name}") for m in pkgutil.iter_modules(loop.__path__)]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, triton.JITFunction)]
    return {function.__name__: function for function in found}


class Misuse(NamedTuple):
    function: str
    why: str


def misuses(function: triton.JITFunction, known: dict[str, triton.JITFunction]) -> Iterator[Misuse]:
    """What a jitted function does with groups that compiles and is wrong, or is right by luck."""
    made = {group.__name__: group for group in (*HOST_GROUPS, *IN_KERNEL)}
    for node in ast.walk(ast.parse(function.src)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in GROUP_OF:
            if node.attr not in GROUP_OF[node.value.id]._fields:
                yield Misuse(function.__name__, f"{node.value.id} has no {node.attr}")
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            if ast.unparse(node.value).startswith(("LOOP.", "CELL.")):
                yield Misuse(function.__name__, f"{ast.unparse(node)}: a tensor in the interpreter")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in made:
                given = [keyword.arg for keyword in node.keywords]
                if node.args or sorted(map(str, given)) != sorted(made[node.func.id]._fields):
                    yield Misuse(function.__name__, f"{node.func.id} is not made by keyword")
            elif node.func.id in known:
                for parameter, argument in zip(known[node.func.id].arg_names, node.args, strict=False):
                    if parameter in GROUP_OF and (
                        not isinstance(argument, ast.Name) or GROUP_OF.get(argument.id) is not GROUP_OF[parameter]
                    ):
                        yield Misuse(function.__name__, f"{node.func.id} takes {ast.unparse(argument)} as {parameter}")


def test_a_function_takes_one_kind_of_group_and_groups_are_made_by_keyword():
    """Triton tells calls of a function apart by the types of a tuple's elements and not by the names of its fields: a
    second kind of group would run the first one's code. And the field order of a group that is made inside a kernel is
    in no cache key."""
    known = jitted()
    assert not [misuse for function in known.values() for misuse in misuses(function, known)]


@triton.jit
def _first_row(now):
    return now.first


@triton.jit
def _another_group(sent):
    return _first_row(sent)


@triton.jit
def _no_such_field(now):
    return now.base


@triton.jit
def _made(t, first, here):
    return Moment(t, first, here)


Moment = walk.Moment


@triton.jit
def _number(LOOP: tl.constexpr):
    members = LOOP.MEMBERS
    return members


@pytest.mark.parametrize("bad", [_another_group, _no_such_field, _made, _number], ids=lambda f: f.__name__)
def test_a_misuse_is_found(bad):
    assert list(misuses(bad, {"_first_row": _first_row}))


@pytest.mark.parametrize("group", [*HOST_GROUPS, *IN_KERNEL], ids=lambda g: g.__name__)
def test_no_field_has_the_name_of_something_that_tuples_have(group):
    """`x.values` of a group is then the tuple's own; the interpreter takes it for the field."""
    assert not set(group._fields) & (set(vars(tl.core.tuple([]))) | {"values", "type"})


def test_what_changes_from_call_to_call_compiles_nothing():
    """`do_not_specialize` does not reach into a tuple: these are arguments of their own."""
    for kernel in (forward, backward):
        assert {p.name for p in kernel.params if p.do_not_specialize} == {"T", "B", "walk_bits"}


def test_no_jitted_function_is_wide():
    widths = {name: len(function.arg_names) for name, function in jitted().items()}
    assert widths.pop("forward") == 14
    assert widths.pop("backward") == 17
    assert max(widths.values()) <= 14


def test_every_number_of_a_loop_is_in_its_repr():
    """Triton's caches know a constexpr by its repr: what a property or a method worked out would not be in it."""
    own = {
        name for name, value in vars(groups.Loop).items() if isinstance(value, property) or inspect.isfunction(value)
    }
    assert {name for name in own if not name.startswith("__")} == set()
    numbers = loop_of(Problem("gru", torch.float16, 40, 3), Config("cooperative", 16, 16, 32), ("cuda", 90))
    assert all(f"{field.name}={getattr(numbers, field.name)!r}" in repr(numbers) for field in fields(numbers))


def update_of(sign: int) -> triton.JITFunction:
    """Two functions of one name."""
    if sign > 0:

        @triton.jit
        def update(v, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
            return (v[0],)

    else:

        @triton.jit
        def update(v, state, p, ACTIVATION: tl.constexpr, RECURRENT: tl.constexpr):
            return (-v[0],)

    return update


def keys(spec: Any) -> tuple[str, str]:
    """What Triton's caches on disk and in memory know the forward loop by, with this cell."""
    kernel = describe(Problem("rnn_tanh", torch.float16, 16, 1), Config("single_cta", 16, 16, 16), H100)
    source = ASTSource(kernel.fn, kernel.signature, kernel.constexprs | {"CELL": spec}, kernel.attrs)
    return source.hash(), str(spec)


def test_cells_whose_functions_have_the_same_names_have_kernels_of_their_own():
    """A jitted function's repr is its module and name; inside a dataclass nothing else of it would be in the key."""
    spec = find_cell("rnn_tanh")
    one, other = (replace(spec, update=update_of(sign)) for sign in (1, -1))
    assert repr(one.update) == repr(other.update)
    for mine, others in zip(keys(one), keys(other), strict=True):
        assert mine != others
    assert keys(one) == keys(replace(spec, update=update_of(1)))


def test_anything_else_of_a_cell_is_in_its_keys_too():
    spec = find_cell("gru")
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, (int, str)):
            other = replace(spec, **{field.name: value + type(value)("1")})
            assert all(a != b for a, b in zip(keys(spec), keys(other), strict=True)), field.name
