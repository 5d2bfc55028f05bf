"""Swap torch.nn's recurrent modules for holdfast's in a model, and back."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .base import RecurrentBase
from .gru import GRU
from .lstm import LSTM
from .recurrent import Recurrent
from .rnn import RNN
from .stateful import Stateful
from .step import GRUCell, LSTMCell, RNNCell

M = TypeVar("M", bound=nn.Module)

TO_HOLDFAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}
TO_TORCH = {ours: theirs for theirs, ours in TO_HOLDFAST.items()}


def convert(model: M) -> M:
    """Turn every torch.nn.RNN, GRU, LSTM, RNNCell, GRUCell and LSTMCell in `model` into holdfast's, in place.

    The module objects stay the same and only change class, so parameters, optimizers that hold them, tied weights,
    hooks, parametrizations, shared modules, training flags, devices and dtypes are untouched. Returns `model`,
    which may itself be one of these modules.

    Left alone: subclasses of them, since they may compute something else, and scripted modules. After this
    `isinstance(module, torch.nn.LSTM)` is False, so convert after code that looks for it, such as weight
    initialisation, and before torch.compile or FSDP, which note or replace the class.

    Raises TypeError where `model` is no module.
    """
    return _swap(model, TO_HOLDFAST)


def to_torch(model: M) -> M:
    """The inverse of `convert`: turn holdfast's modules in `model` into torch.nn's, in place. Returns `model`.

    Raises TypeError where `model` is no module; ValueError, with nothing changed, where a module or one of its options
    has no counterpart in torch.nn.
    """
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            missing = _beyond_torch(module)
            if missing:
                raise ValueError(f"torch.nn has nothing for {missing}{f' of {name!r}' if name else ''}")
    return _swap(model, TO_TORCH)


def _beyond_torch(module: nn.Module) -> str:
    """What of this module torch.nn lacks, or nothing."""
    if isinstance(module, (Recurrent, Stateful)):
        return f"holdfast.{type(module).__name__}"
    if isinstance(module, RecurrentBase):
        return ", ".join(f"{option}={value!r}" for option, value in module.chosen_options().items())
    return ""


def _swap(model: M, table: dict[type[nn.Module], type[nn.Module]]) -> M:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {model!r}")
    for module in model.modules():
        kind = type(module)
        if kind in table:
            module.__class__ = table[kind]
        elif parametrize.is_parametrized(module) and kind.__bases__[0] in table:
            module.__class__ = _rebased(kind, table[kind.__bases__[0]])
    return model


def _rebased(kind: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """The class that parametrize made for one module (its properties are the parametrized weights) on another base."""
    inherited_per_class = ("__dict__", "__weakref__", "__doc__", "__module__")
    members = {name: value for name, value in vars(kind).items() if name not in inherited_per_class}
    return type(kind.__name__, (base,), members)
