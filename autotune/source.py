"""A digest of the code that a time loop is compiled from, the injected cell functions included."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import fields, replace
from functools import cache
from types import ModuleType
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
    found: dict[str, str] = {}
    _collect(kernel_of(problem), found)
    for config in _EXAMPLES:
        # Of any size, which the key has.
        for group in constexprs(replace(problem, hidden_size=64), config, "cuda").values():
            for field in fields(group):
                value = getattr(group, field.name)
                if isinstance(value, triton.JITFunction):
                    _collect(value, found)
                else:
                    found[f"{config.regime} {field.name}"] = repr(value)
    text = "\n".join(f"{name}\n{code}" for name, code in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _collect(function: triton.JITFunction, found: dict[str, str]) -> None:
    """Add a function and all that it calls, by their full names."""
    name = f"{function.fn.__module__}.{function.fn.__qualname__}"
    if name in found:
        return
    code, names = _parsed(function)
    found[name] = code
    for used in sorted(names):
        value = _find(used, function.fn.__globals__)
        if isinstance(value, triton.JITFunction):
            if not value.fn.__module__.startswith("triton."):  # the fingerprint has Triton's version
                _collect(value, found)
        elif isinstance(value, (bool, int, float, str)) or type(value).__name__ == "constexpr":
            found[f"{function.fn.__module__}.{used}"] = repr(value)


def _find(name: str, scope: dict[str, Any]) -> Any:
    """What a name of the code, "tanh" or "activations.tanh", stands for; None where that is nothing global."""
    first, _, rest = name.partition(".")
    value = scope.get(first)
    return getattr(value, rest, None) if rest and isinstance(value, ModuleType) else value


@cache
def _parsed(function: triton.JITFunction) -> tuple[str, frozenset[str]]:
    """The function without docstring and comments, and the names that it uses, those of a module's content dotted."""
    tree = ast.parse(function.src)
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    if ast.get_docstring(definition) is not None:
        del definition.body[0]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    dotted = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return ast.dump(tree), frozenset(names | dotted)
