"""What counts as the same problem, and where a result about it holds.

A `Key` names the problem, with batch and length in coarse classes; a `Fingerprint` names GPU, software and source.
`source_digest` is that of the code that a time loop is compiled from.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import triton
from triton.runtime.jit import JITCallable

from ..kernels.cell_spec import find_cell
from ..kernels.config import Config
from ..kernels.describe import constexprs, kernel_of
from ..kernels.kept import Keep, keeps_values
from ..kernels.problem import Phase, Precision, Problem
from ..kernels.resources import DeviceLimits

LengthClass = Literal["short", "long"]

SHORT = 32
"""Sequences of fewer steps are short: there the launch and the first read of W_hh weigh as much as the steps."""

SMALLEST_BATCH = 16
"""Batches up to this are one class: no tile has fewer rows."""


@dataclass(frozen=True)
class Key:
    """What a config is tuned for. Lengths and batch sizes of one class share one result; the dtype is its name."""

    cell: str
    phase: Phase
    dtype: str
    precision: Precision
    hidden_size: int
    directions: int
    features: tuple[str, ...]
    batch: int
    length: LengthClass
    num_heads: int = 1

    def asdict(self) -> dict[str, Any]:
        """Without num_heads where there is one: as before there were heads, so what was stored then is found."""
        found = asdict(self) | {"features": list(self.features)}
        if self.num_heads == 1:
            del found["num_heads"]
        return found

    @property
    def name(self) -> str:
        """Readable, short, and another for every other key: the digest covers what the words leave out."""
        heads = f"-n{self.num_heads}" if self.num_heads > 1 else ""
        text = f"{self.cell}-{self.phase}-{self.dtype}-h{self.hidden_size}{heads}-b{self.batch}-{self.length}"
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in text) + f"-{_digest(self.asdict(), 8)}"


def key_of(problem: Problem, length: int | None = None) -> Key:
    """The key of a problem; without a length, that of long sequences."""
    return Key(
        problem.cell,
        problem.phase,
        str(problem.dtype).removeprefix("torch."),
        problem.precision,
        problem.hidden_size,
        problem.directions,
        problem.features,
        batch_class(problem.batch_size),
        length_class(length),
        problem.num_heads,
    )


def batch_class(batch_size: int) -> int:
    """The largest batch of the class: 16, 32, 64, ... A result is tuned for that batch."""
    # int: torch.jit.trace has tensors for sizes.
    return max(SMALLEST_BATCH, 1 << (int(batch_size) - 1).bit_length()) if batch_size > 0 else SMALLEST_BATCH


def length_class(length: int | None) -> LengthClass:
    return "short" if length is not None and length < SHORT else "long"


def problem_of(key: Key) -> Problem:
    """The problem that stands for a class: its largest batch."""
    return Problem(
        key.cell,
        getattr(torch, key.dtype),
        key.hidden_size,
        key.batch,
        key.directions,
        key.precision,
        key.phase,
        key.features,
        key.num_heads,
    )


def keeps(problem: Problem) -> tuple[Keep, ...]:
    """The ways to keep values for the backward pass that make a difference to this loop, the usual one first."""
    save: tuple[Keep, ...] = ("save",) if keeps_values(problem, "save") else ()
    # A cell with two products keeps its values whatever is asked for.
    recompute: tuple[Keep, ...] = () if keeps_values(problem, "recompute") else ("recompute",)
    if problem.phase == "backward":
        return save + recompute
    # Kept are the later states, and h as it went through dropout.
    apart = find_cell(problem.cell).states > 1 or "recurrent_dropout" in problem.features
    return ("nothing", *save, *(recompute if apart else ()))


def usual_keep(problem: Problem) -> Keep:
    """What is tuned first, and looked for where nobody says otherwise: nothing forwards, "save" backwards."""
    return keeps(problem)[0]


def effective_keep(problem: Problem, keep: Keep) -> Keep:
    """The one of `keeps(problem)` that does the same as `keep`: an RNN has nothing to save beyond its outputs."""
    options = keeps(problem)
    if keep in options:
        return keep
    if keep == "recompute" and keeps_values(problem, keep):
        return "save"
    return "recompute" if problem.phase == "backward" else "nothing"


@dataclass(frozen=True)
class Fingerprint:
    """gpu:               name, as the driver reports it.
    arch:              "sm_90", "gfx942".
    num_sms:           SMs that the process may use.
    shared_per_block:  bytes of shared memory that a program may have.
    driver:            of the GPU; "none" where there is none.
    cuda:              that torch was built for; "none" for a CPU build.
    torch, triton:     versions.
    source:            digest of the kernels, see `source_digest`.
    """

    gpu: str
    arch: str
    num_sms: int
    shared_per_block: int
    driver: str
    cuda: str
    torch: str
    triton: str
    source: str

    def asdict(self) -> dict[str, str | int]:
        return asdict(self)

    @property
    def digest(self) -> str:
        return _digest(self.asdict(), 12)


SHIPPED_MAY_DIFFER = frozenset({"driver", "cuda", "torch"})
"""Fields in which a shipped result may differ: they change launches, not the kernel that Triton compiles."""


def fingerprint(problem: Problem, limits: DeviceLimits) -> Fingerprint:
    """The fingerprint of a problem's kernels on a GPU with this machine's software."""
    return Fingerprint(
        limits.name,
        limits.target,
        limits.num_sms,
        limits.shared_per_block,
        driver_version(),
        torch.version.cuda or "none",
        torch.__version__,
        triton.__version__,
        _source(replace(problem, hidden_size=64, batch_size=1, num_heads=1)),  # no code depends on these
    )


@cache
def driver_version() -> str:
    """NVIDIA's kernel driver, "580.82.07"; "none" without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "none"
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else "unknown"


def _digest(fields: dict[str, Any], digits: int) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:digits]


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
        for group in constexprs(replace(problem, hidden_size=64, num_heads=1), config, ("cuda", 90)).values():
            for field in fields(group):
                value = getattr(group, field.name)
                if isinstance(value, triton.JITFunction):
                    _collect(value, found)
                else:
                    found[f"{config.regime} {field.name}"] = repr(value)
    text = "\n".join(f"{name}\n{code}" for name, code in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_source = lru_cache(maxsize=1024)(source_digest)


def _collect(function: JITCallable, found: dict[str, str]) -> None:
    """Add a function and all that it calls, by their full names."""
    name = f"{function.fn.__module__}.{function.fn.__qualname__}"
    if name in found:
        return
    code, names = _parsed(function)
    found[name] = code
    for used in sorted(names):
        value = _find(used, function.fn.__globals__)
        if isinstance(value, JITCallable):  # a JITFunction or a constexpr_function
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
def _parsed(function: JITCallable) -> tuple[str, frozenset[str]]:
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
