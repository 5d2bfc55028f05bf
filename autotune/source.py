"""A digest of the code that a time loop is compiled from, the injected cell functions included."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import triton

from ..kernels.config import Config
from ..kernels.describe import constexprs, kernel_of
from ..kernels.problem import Problem

_EXAMPLES = (Config("single_cta", 16, 16, 16), Config("cooperative", 16, 16, 32))


def source_digest(problem: Problem) -> str:
    """12 hex digits that change with any jitted function that the problem's kernels, of either regime, consist of.

    Comments, docstrings and layout do not count: they change no kernel. Triton's own key of a kernel names a function
    that is passed as a constexpr, but does not read it, so an edited cell would look like the old one.
    """
    functions: dict[str, str] = {}
    for config in _EXAMPLES:
        kernel = kernel_of(problem, config)
        _collect(kernel, functions)
        for value in constexprs(problem, config, "cuda").values():
            for function in _functions_in(value):
                _collect(function, functions)
    text = "\n".join(f"{name}\n{code}" for name, code in sorted(functions.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _functions_in(value: Any) -> Iterator[triton.JITFunction]:
    if isinstance(value, triton.JITFunction):
        yield value
    elif isinstance(value, (tuple, list)):
        for element in value:
            yield from _functions_in(element)


def _collect(function: triton.JITFunction, found: dict[str, str]) -> None:
    """Add a function and all that it calls, by their full names."""
    name = f"{function.fn.__module__}.{function.fn.__qualname__}"
    if name in found:
        return
    code, names = _parsed(function)
    found[name] = code
    scope = function.fn.__globals__
    for used in sorted(names & scope.keys()):
        value = scope[used]
        if isinstance(value, triton.JITFunction):
            _collect(value, found)
        elif isinstance(value, (bool, int, float, str)) or type(value).__name__ == "constexpr":
            found[f"{function.fn.__module__}.{used}"] = repr(value)


@cache
def _parsed(function: triton.JITFunction) -> tuple[str, frozenset[str]]:
    """The function without docstring and comments, and the names that it uses."""
    tree = ast.parse(function.src)
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    if ast.get_docstring(definition) is not None:
        del definition.body[0]
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return ast.dump(tree), names
