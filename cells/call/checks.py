"""Checks of what torch.nn does not have: constructors' options, `lengths` and `resets`. What is wrong is said before
anything is made or run."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .surroundings import in_transform

Lengths = Tensor | Sequence[int] | int


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


def check_heads(num_heads: Any, hidden_size: int) -> None:
    """Raise ValueError where hidden_size units are not so many heads of one size."""
    if not isinstance(num_heads, Integral) or isinstance(num_heads, bool) or num_heads < 1:
        raise ValueError(f"num_heads should be a positive integer, got {num_heads!r}")
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size should be a multiple of num_heads, got hidden_size={hidden_size}, num_heads={num_heads}"
        )


def refuse_with_packed(**arguments: Any) -> None:
    """Raise ValueError for the first argument that is given: a PackedSequence has lengths of its own."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{name} does not go with a PackedSequence, which has lengths of its own: "
                f"leave {name} out, or pass the padded tensor with lengths"
            )


def checked_lengths(lengths: Lengths, T: int, B: int, *, batched: bool, device: torch.device) -> Tensor:
    """lengths as [B] int64 on `device`, each in [0, T].

    The range is checked where that waits for no GPU: in a list, and in a CPU tensor outside of tracers and vmap.
    Elsewhere a length is clamped to [0, T].

    Raises ValueError for anything that is no tensor or list of integers, for another shape, or out of range.
    """
    if not isinstance(lengths, Tensor):
        lengths = _tensor_of(lengths, batched)
    if lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths should be of dtype torch.int64 or torch.int32, got {lengths.dtype}")
    if not batched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.shape != (B,):
        expected = f"({B},), one length per row of the batch" if batched else "(1,) or () for unbatched input"
        raise ValueError(f"lengths should be of shape {expected}, got {tuple(lengths.shape)}")
    if not _readable_at_no_cost(lengths):
        return lengths.to(device, torch.int64).clamp(0, T)
    numbers = lengths.tolist()  # 2 us of a CPU core for 16 rows, where comparisons of tensors take 8
    if numbers and not (min(numbers) >= 0 and max(numbers) <= T):
        row, number = next((row, number) for row, number in enumerate(numbers) if not 0 <= number <= T)
        raise ValueError(f"lengths should lie in [0, {T}], as x has {T} steps, got {number} for row {row}")
    as_asked = lengths.dtype is torch.int64 and lengths.device == device
    return lengths if as_asked else lengths.to(device, torch.int64)


def _tensor_of(lengths: Any, batched: bool) -> Tensor:
    if isinstance(lengths, Integral) and not isinstance(lengths, bool) and not batched:
        lengths = [int(lengths)]
    if not isinstance(lengths, (list, tuple)):
        raise ValueError(f"lengths should be an integer tensor or a list of ints, got {type(lengths).__name__}")
    wrong = [n for n in lengths if not isinstance(n, Integral) or isinstance(n, bool)]
    if wrong:
        raise ValueError(f"lengths should be a list of ints or an integer tensor, got a list with {wrong[0]!r}")
    return torch.tensor(lengths, dtype=torch.int64)


def checked_resets(resets: Tensor, T: int, B: int, *, batched: bool, batch_first: bool, device: torch.device) -> Tensor:
    """resets as [T, B] bool on `device`.

    Raises ValueError where it is no tensor, complex, or of another shape than x without its features, or with one.
    """
    if not isinstance(resets, Tensor):
        raise ValueError(f"resets should be a tensor, got {type(resets).__name__}")
    if resets.is_complex():
        raise ValueError(f"resets should be bool, integer or floating point, got {resets.dtype}")
    batch_first = batched and batch_first
    expected = (B, T) if batch_first else (T, B) if batched else (T,)
    if resets.shape == (*expected, 1):
        resets = resets.squeeze(-1)
    if resets.shape != expected:
        names = "[B, T]" if batch_first else "[T, B]" if batched else "[T]"
        raise ValueError(f"resets should be of shape {expected}, {names} of x, got {tuple(resets.shape)}")
    if resets.dtype is not torch.bool:
        resets = resets != 0
    resets = resets if batched else resets.unsqueeze(1)
    resets = resets.t() if batch_first else resets
    return resets if resets.device == device else resets.to(device)  # .to takes 10 us to find out, when cold


def _readable_at_no_cost(t: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._is_tracing() or in_transform():
        return False
    return type(t) in (Tensor, Parameter) and t.is_cpu
