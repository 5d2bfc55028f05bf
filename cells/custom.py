"""holdfast.define_cell: a cell of your own, for the kernels and for the eager path, under a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .call.checks import check_bool
from .eager.reference import FAMILIES, REFERENCES, Reference, Step

if TYPE_CHECKING:
    from triton import JITFunction

NAME = re.compile(r"[a-z][a-z0-9_]*")


def define_cell(
    name: str,
    *,
    gates: int,
    states: int,
    values: int,
    gates_of: JITFunction,
    update: JITFunction,
    gradients: JITFunction,
    reference: Step,
    gate_names: Sequence[str],
    saved: int | None = None,
    split_gradient: bool = False,
    parameters: int = 0,
    inner: JITFunction | None = None,
    outer_gradients: JITFunction | None = None,
    outer_gates: int = 0,
    normalised: int = 0,
) -> str:
    """Make a cell known under `name`: to `holdfast.Recurrent`, the tuner, `holdfast check` and the benchmark.

    name:            lower-case letters, digits and underscores.
    gates:           G; W_ih is [G*H, I], W_hh [G*H, H], gate by gate.
    states:          how many states of H units a step hands to the next, h first: the one that goes through W_hh and
                     that the module puts out.
    values:          how many tiles `gates_of` returns.
    gates_of, update, gradients:  the step and its derivative under @triton.jit, on tuples of float32 tiles
                     [units, batch]; `kernels/cell_math.py` has their arguments and those of torch's cells to look at.
                         gates_of(x, a, state, p) -> v
                         update(v, state, p) -> state
                         gradients(d, v, before, after, p) -> dx, da, d, dp
    reference:       the step in plain torch, `(x, product, states, parameters) -> (states, gates)`, as described at
                     `cells.eager.reference.Reference`. The eager path runs it, and the kernels are checked against it.
    gate_names:      what the gates that `reference` returns are called in `return_gates=True`.
    saved:           how many of v's first tiles the step backwards needs: `values`, which is the default, or 0 where
                     the states before and after the step are enough.
    split_gradient:  whether `gradients` returns different dx and da.
    parameters:      P, numbers that each unit has of its own: weight_unit_l{k} [P, H], p above.
    inner, outer_gradients, outer_gates:  of a cell that multiplies W_hh twice in a step: with h for its first
                     `outer_gates` gates, and for the rest with a tile that it makes of them (`cells/catalogue/mgu.py`):
                         inner(x, a, state, p) -> q
                         outer_gradients(d, v, before, after, p) -> da of the rest
                         gradients(d, dq, v, before, after, p) -> dx, da, d, dp
    normalised:      how many calls of `kernels/normalise.py` the functions have, which take means over all units of a
                     head, such as a layer norm's: each is given a number of its own below this, p is the pair of the
                     columns and what those calls are given, and the reference's parameters end with the number of
                     heads.

    Returns `name`. It is tried once on a few numbers, and nothing is defined where anything is wrong.

    Raises TypeError for an argument of the wrong type, ValueError for a name that is taken or malformed, for numbers
    out of range, and for a reference that fails or returns something else than it should.
    """
    _check_name(name)
    for argument, value, least in (
        ("gates", gates, 1),
        ("states", states, 1),
        ("values", values, 1),
        ("parameters", parameters, 0),
        ("normalised", normalised, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{argument} should be an int, got {value!r}")
        if value < least:
            raise ValueError(f"{argument} should be at least {least}, got {value}")
    if saved is not None and (not isinstance(saved, int) or not 0 <= saved <= values):
        raise ValueError(f"saved should be from 0 to values, {values}, got {saved!r}")
    check_bool("split_gradient", split_gradient)
    _check_jitted(gates_of=gates_of, update=update, gradients=gradients)
    if inner is not None or outer_gradients is not None or outer_gates:
        _check_jitted(inner=inner, outer_gradients=outer_gradients)
        if not isinstance(outer_gates, int) or not 0 < outer_gates < gates:
            raise ValueError(f"outer_gates should be from 1 to gates - 1, {gates - 1}, with inner, got {outer_gates!r}")
    if isinstance(gate_names, str) or not all(isinstance(gate, str) for gate in gate_names):
        raise TypeError(f"gate_names should be a sequence of strings, got {gate_names!r}")
    found = Reference(reference, gates, states, tuple(gate_names), parameters, normalised=normalised > 0)
    both = [gate for k, gate in enumerate(found.gate_names) if gate in (*found.gate_names[:k], *found.state_names)]
    if both:
        raise ValueError(f"gate_names should differ from each other and from the states' names, got {both[0]!r} twice")
    _try(found)

    from ..kernels.cell_spec import CELLS, CellSpec

    CELLS[name] = CellSpec(
        name,
        gates=gates,
        states=states,
        values=values,
        saved=values if saved is None else saved,
        split_gradient=split_gradient,
        gates_of=gates_of,
        update=update,
        gradients=gradients,
        parameters=parameters,
        inner=inner,
        outer_gradients=outer_gradients,
        outer_gates=outer_gates,
        gate_names=found.gate_names,
        normalised=normalised,
    )
    REFERENCES[name] = found
    return name


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name should be a string, got {name!r}")
    if not NAME.fullmatch(name):
        raise ValueError(f"name should be of lower-case letters, digits and underscores, a letter first, got {name!r}")
    if name in REFERENCES or name in FAMILIES:
        raise ValueError(f"name should be new, but there is a cell {name!r} already; choose another")


def _check_jitted(**functions: Any) -> None:
    import triton

    for argument, function in functions.items():
        if not isinstance(function, triton.JITFunction):
            raise TypeError(f"{argument} should be a function under @triton.jit, got {type(function).__name__}")


def _try(reference: Reference) -> None:
    """Run one step of 2 rows and 3 units, and refuse results of the wrong form."""
    rows, units = 2, 3
    x = torch.zeros(rows, reference.gates * units)
    states = tuple(torch.zeros(rows, units) for _ in range(reference.states))
    parameters = tuple(torch.zeros(units) for _ in range(reference.parameters))
    product: Callable[[torch.Tensor], torch.Tensor] = lambda h: h.repeat(1, reference.gates)  # noqa: E731
    try:
        with torch.no_grad():
            result = reference(x, product, states, parameters)
    except Exception as error:
        raise ValueError(
            f"reference failed on x {[*x.shape]}, {reference.states} states [{rows}, {units}] and "
            f"{reference.parameters} parameters [{units}]: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"reference should return (states, gates), got {_form(result)}")
    for what, given, count in (
        ("states", result[0], reference.states),
        ("gates", result[1], len(reference.gate_names)),
    ):
        if not isinstance(given, tuple) or [getattr(t, "shape", None) for t in given] != [(rows, units)] * count:
            expected = f"a tuple of {count} tensors of the states' shape [{rows}, {units}]"
            raise ValueError(f"reference should return as {what} {expected}, got {_form(given)}")


def _form(value: Any) -> str:
    """What to call a wrong result in an error."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {[*value.shape]}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(_form(each) for each in value)}"
    return type(value).__name__
