"""Swap torch.nn's recurrent modules for holdfast's in a model, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from ..kernels.heads import block_diagonal
from .base import RecurrentBase
from .both import BOTH, check_subclasses, closed, opened
from .gru import GRU
from .lstm import LSTM
from .recurrent import Recurrent
from .report import conversion_report
from .rnn import RNN
from .stateful import Stateful

M = TypeVar("M", bound=nn.Module)
Counterpart = Callable[[type[nn.Module]], "type[nn.Module] | None"]
"""The class that takes the place of a class, or None."""

# Cells are torch.nn's to isinstance anyway: theirs is the one class of both tables.
TO_HOLDFAST: dict[type[nn.Module], type[nn.Module]] = BOTH | {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
# Made of holdfast's own too: a model that was converted without keep_isinstance may be converted again with it.
TO_BOTH = BOTH | {TO_HOLDFAST[theirs]: both for theirs, both in BOTH.items()}
TO_TORCH = {made: theirs for table in (TO_HOLDFAST, BOTH) for theirs, made in table.items()}


def convert(
    model: M,
    *,
    keep_isinstance: bool = False,
    subclasses: Collection[type[nn.Module]] = (),
    report: bool = False,
) -> M:
    """Turn every torch.nn.RNN, GRU, LSTM, RNNCell, GRUCell and LSTMCell in `model` into holdfast's, in place.

    The module objects stay the same and only change class, so parameters, optimizers that hold them, tied weights,
    hooks, parametrizations, shared modules, training flags, devices and dtypes are untouched. Returns `model`,
    which may itself be one of these modules.

    keep_isinstance:  make modules for which `isinstance(module, torch.nn.LSTM)` stays True, for code that asks (weight
                      initialisation, torchrl's LSTMModule). The price: torch.compile breaks its graph at them, as at
                      torch.nn's, and with fullgraph=True refuses them, unless torch._dynamo.config.allow_rnn is True.
                      By default isinstance is False afterwards, so convert after code that asks.
    subclasses:       subclasses of torch.nn's classes to convert too, though they may compute something else. Only
                      right for those that compute through super().forward: that becomes holdfast's, all else stays
                      theirs. isinstance stays True for them, at the price above.
    report:           print what is holdfast's now, and what was left and why (`holdfast.conversion_report` returns it).

    Left alone: other subclasses, scripted and quantised modules. Warns where nothing in the model is holdfast's in
    the end. Convert before torch.compile or FSDP, which note or replace the class.

    Raises TypeError where `model` is no module, or `subclasses` holds what is no subclass of torch.nn's.
    """
    swap(_modules_of(model), holdfasts(keep_isinstance, subclasses))
    found = conversion_report(model)
    if report:
        print(found)
    if not found.converted:
        warnings.warn(f"holdfast.convert swapped nothing: {found}\n{NOT_REACHED}", stacklevel=2)
    return model


NOT_REACHED = (
    "It sees registered submodules: not what a plain list holds, nor what a later call builds (see holdfast.patch)."
)


def to_torch(model: M) -> M:
    """The inverse of `convert`: turn holdfast's modules in `model` into torch.nn's, in place. Returns `model`.

    A module of several heads gets the block-diagonal W_hh that they stand for, as new parameters: whatever holds the
    old ones, an optimizer, has to be told. In training torch.nn also changes what lies outside of the blocks.

    Raises TypeError where `model` is no module; ValueError, with nothing changed, where a module or one of its options
    has no counterpart in torch.nn.
    """
    modules = _modules_of(model)
    for name, module in model.named_modules():
        missing = _beyond_torch(module)
        if missing:
            raise ValueError(f"torch.nn has nothing for {missing}{f' of {name!r}' if name else ''}")
    _join_heads(modules)
    swap(modules, lambda kind: TO_TORCH.get(kind) or closed(kind))
    return model


def holdfasts(keep_isinstance: bool, subclasses: Collection[type[nn.Module]]) -> Counterpart:
    """The classes that `convert` and `patch` put in place of others."""
    table = TO_BOTH if keep_isinstance else TO_HOLDFAST
    chosen = check_subclasses(subclasses)
    return lambda kind: opened(kind) if kind in chosen else table.get(kind)


def swap(modules: Collection[nn.Module], counterpart: Counterpart) -> None:
    """Give each of these modules, where its class has a counterpart, that class."""
    for module in modules:
        kind = type(module)
        if (other := counterpart(kind)) is not None:
            module.__class__ = other
        elif parametrize.is_parametrized(module) and (other := counterpart(kind.__bases__[0])) is not None:
            module.__class__ = _rebased(kind, other)


def _modules_of(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {model!r}")
    return list(model.modules())


def _beyond_torch(module: nn.Module) -> str:
    """What of this module torch.nn lacks, or nothing."""
    if isinstance(module, (Recurrent, Stateful)):
        return f"holdfast.{type(module).__name__}"
    if isinstance(module, RecurrentBase):
        options = module.chosen_options()
        if not parametrize.is_parametrized(module):  # its weights are made anew at every call
            options.pop("num_heads", None)  # torch.nn has the matrix that they stand for
        return ", ".join(f"{option}={value!r}" for option, value in options.items())
    return ""


def _join_heads(modules: Collection[nn.Module]) -> None:
    """Give modules of several heads the dense weights of one; what was tied stays tied."""
    dense: dict[tuple[int, int], nn.Parameter] = {}
    for module in modules:
        if not isinstance(module, RecurrentBase) or module.num_heads == 1:
            continue
        for names in module._all_weights:
            weight, key = getattr(module, names[1]), (id(getattr(module, names[1])), module.num_heads)
            if key not in dense:
                joined = block_diagonal(weight.detach(), module.num_heads)
                dense[key] = nn.Parameter(joined, requires_grad=weight.requires_grad)
            setattr(module, names[1], dense[key])
        del module.num_heads
        module._init_flat_weights()


def _rebased(kind: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """The class that parametrize made for one module (its properties are the parametrized weights) on another base."""
    inherited_per_class = ("__dict__", "__weakref__", "__doc__", "__module__")
    members = {name: value for name, value in vars(kind).items() if name not in inherited_per_class}
    return type(kind.__name__, (base,), members)
