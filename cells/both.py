"""Modules that are holdfast's and, to isinstance, torch.nn's: what `convert(model, keep_isinstance=True)` makes.

They compute as holdfast's and are built as torch.nn's, without holdfast's options. torch.compile refuses torch.nn's
classes and their subclasses, so these break its graph where `torch._dynamo.config.allow_rnn` is False.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import new_class
from typing import Any

from torch import nn

from . import gru, lstm, rnn
from .step import GRUCell, LSTMCell, RNNCell


class RNN(rnn.RNN, nn.RNN):  # type: ignore[misc]
    """holdfast.RNN that is a torch.nn.RNN as well."""

    __init__ = nn.RNN.__init__


class GRU(gru.GRU, nn.GRU):  # type: ignore[misc]
    """holdfast.GRU that is a torch.nn.GRU as well."""

    __init__ = nn.GRU.__init__


class LSTM(lstm.LSTM, nn.LSTM):  # type: ignore[misc]
    """holdfast.LSTM that is a torch.nn.LSTM as well."""

    __init__ = nn.LSTM.__init__


BOTH: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    # These are torch.nn's to isinstance anyway.
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}


_opened: dict[type[nn.Module], type[nn.Module]] = {}


def opened(subclass: type[nn.Module]) -> type[nn.Module]:
    """The class for somebody's subclass of torch.nn's: where its methods call super(), holdfast's run."""
    if subclass in _opened:
        return _opened[subclass]
    ours = next(both for theirs, both in BOTH.items() if issubclass(subclass, theirs))

    def body(members: dict[str, Any]) -> None:
        members.update(
            __module__=__name__, __doc__=subclass.__doc__, __reduce_ex__=_reduce_opened, opened_class=subclass
        )

    return _opened.setdefault(subclass, new_class(subclass.__name__, (subclass, ours), exec_body=body))


def closed(kind: type) -> type[nn.Module] | None:
    """The subclass that `opened` made this class of, or None."""
    return vars(kind).get("opened_class")


def check_subclasses(subclasses: Iterable[Any]) -> frozenset[type[nn.Module]]:
    """Raise TypeError where one of them is no subclass of torch.nn's recurrent modules."""
    known = tuple(BOTH)
    for each in subclasses:
        if not (isinstance(each, type) and issubclass(each, known) and each not in known):
            raise TypeError(f"subclasses should be subclasses of torch.nn's recurrent modules, got {each!r}")
    return frozenset(subclasses)


def _reduce_opened(module: nn.Module, protocol: object) -> tuple[Any, ...]:
    """To copy and pickle it: nobody can import a class that was made here by its name."""
    state = module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__
    return _empty_opened, (closed(type(module)),), state


def _empty_opened(subclass: type[nn.Module]) -> nn.Module:
    kind = opened(subclass)
    return kind.__new__(kind)
