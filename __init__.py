"""holdfast: recurrent layers whose weights stay on chip for the whole sequence."""

from . import autotune
from .autotune import first_use
from .cells.backend import backend, current_backend
from .cells.convert import convert, to_torch
from .cells.custom import define_cell
from .cells.gru import GRU
from .cells.lstm import LSTM
from .cells.ops import layer as _layer  # noqa: F401  registers holdfast::layer, for saved programs too
from .cells.patch import patch
from .cells.plot import plot_gates
from .cells.recurrent import Recurrent
from .cells.report import conversion_report
from .cells.rnn import RNN
from .cells.slstm import SLSTM
from .cells.stateful import Stateful
from .cells.step import GRUCell, LSTMCell, RNNCell
from .kernels.setting import check_when_imported as _check_environment
from .kernels.stall import StalledError, check_stalled

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "StalledError",
    "Stateful",
    "autotune",
    "backend",
    "check_stalled",
    "conversion_report",
    "convert",
    "current_backend",
    "define_cell",
    "first_use",
    "patch",
    "plot_gates",
    "to_torch",
]

_check_environment()
