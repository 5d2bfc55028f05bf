"""What `convert` did to the recurrent modules of a model: which are holdfast's, which are not and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from .both import closed
from .interop import Interop

TORCHS = (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
NAMES = tuple(kind.__name__ for kind in TORCHS)


@dataclass(frozen=True)
class Found:
    """A recurrent module of a model.

    name:    its path in the model, "" for the model itself.
    module:  the name of its class, such as "torch.nn.LSTM".
    left:    why it is not holdfast's, None where it is.
    """

    name: str
    module: str
    left: str | None


@dataclass(frozen=True)
class ConversionReport:
    """The recurrent modules of a model as they are now, in the model's order. It prints as a table."""

    found: tuple[Found, ...]

    @property
    def converted(self) -> tuple[Found, ...]:
        """Those that are holdfast's."""
        return tuple(each for each in self.found if each.left is None)

    @property
    def left(self) -> tuple[Found, ...]:
        """Those that are not."""
        return tuple(each for each in self.found if each.left is not None)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        if not self.found:
            return f"no {', '.join(NAMES[:-1])} or {NAMES[-1]} in this model"
        rows = [(each.name or "(the model)", each.module, f"left: {each.left}") for each in self.left]
        rows = [(each.name or "(the model)", each.module, "holdfast") for each in self.converted] + rows
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{name:{widths[0]}}  {module:{widths[1]}}  {says}" for name, module, says in rows)


def conversion_report(model: nn.Module) -> ConversionReport:
    """The recurrent modules of `model`: which are holdfast's, and why the others are not. Nothing is changed.

    Seen are modules that are registered, not those in plain Python lists, nor what will be built later.

    Raises TypeError where `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {model!r}")
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Interop):
            found.append(Found(name, class_name(type(module)), None))
        elif (reason := why_left(module)) is not None:
            found.append(Found(name, class_name(type(module)), reason))
    return ConversionReport(tuple(found))


def why_left(module: nn.Module) -> str | None:
    """Why this module is not holdfast's, None where it is not a recurrent one that torch has."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted = str(getattr(module, "original_name", ""))
        return "scripted: convert cannot look into TorchScript" if scripted in NAMES else None
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = kind.__bases__[0]
    if kind in TORCHS:
        return "holdfast.convert was not called since it was made"
    for theirs in TORCHS:
        if issubclass(kind, theirs):
            return (
                f"a subclass of torch.nn.{theirs.__name__}, which may compute something else; if it calls "
                f"super().forward, convert(model, subclasses=[{kind.__name__}]) takes it"
            )
    if kind.__name__ in NAMES and kind.__module__.startswith("torch.ao."):
        return "quantised: convert the model in floating point, or leave it to torch.ao"
    return None


def class_name(kind: type) -> str:
    """Where people import the class from: torch.nn.LSTM, holdfast.LSTM; for others its full path."""
    kind = closed(kind) or kind
    top = kind.__module__.split(".")[0]
    if kind.__module__.startswith("torch.nn.modules."):
        return f"torch.nn.{kind.__name__}"
    return f"{top if top == 'holdfast' else kind.__module__}.{kind.__name__}"
