"""Checks of the constructors' options that torch.nn's modules do not have."""

from __future__ import annotations

from numbers import Real
from typing import Any


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError where value is no probability."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1], got {value!r}")


def check_rates(name: str, value: Any, states: tuple[str, ...]) -> None:
    """Raise ValueError where value is neither a probability nor one for each of several states."""
    if len(states) > 1 and isinstance(value, (tuple, list)) and len(value) == len(states):
        for state, rate in zip(states, value, strict=True):
            check_rate(f"{name} of {state}", rate)
    elif len(states) > 1 and not isinstance(value, Real):
        each = f"({', '.join(f'{name}_{state}' for state in states)})"
        raise ValueError(f"{name} should be a number in range [0, 1], for h, or {each}, got {value!r}")
    else:
        check_rate(name, value)


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError where value is no bool, in torch.nn's words."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_number(name: str, value: Any) -> None:
    """Raise ValueError where value is no number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} should be a number, got {value!r}")
