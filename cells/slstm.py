"""holdfast.SLSTM: xLSTM's scalar LSTM on persistent kernels."""

from __future__ import annotations

import torch

from .recurrent import Recurrent


class SLSTM(Recurrent):
    """sLSTM of one or more layers, the LSTM with an exponential input gate of xLSTM (Beck et al. 2024,
    arXiv:2405.04517, equations 8 to 17), with the gates in the order (i, f, z, o):

        c_t = f * c_{t-1} + i * tanh(z_),  n_t = f * n_{t-1} + i,  h_t = sigmoid(o_) * c_t / n_t,
        i = exp(i_ - m_t),  f = exp(log sigmoid(f_) + m_{t-1} - m_t),  m_t = max(i_, log sigmoid(f_) + m_{t-1}).

    As in the authors' code the forget gate is a sigmoid and m_t is i_ where nothing has been summed yet, n_{t-1} = 0,
    here asked of each unit of each row. FlashRNN's max(n_t, 1) is left out: no n reached from zeros is below 1.
    m is a scale that c / n does not depend on, so no gradient flows through it: those of a loss of c_n or n_n take it
    as fixed, and m_n's are zero.

    Arguments, options, parameters and results are those of `holdfast.LSTM`, but for the states: hx and the second
    result are (h, c, n, m), each [D*num_layers, B, hidden_size]; and zoneout, a number, is h's: c, n and m are one
    scaled sum. On a GPU the time loop of a layer is one persistent kernel where one can run (see `explain`); elsewhere
    it is plain steps, as torch has no op for it. There is no proj_size.

    Raises ValueError for a zoneout of several numbers; else as torch.nn's modules.
    """

    _rank_error = "SLSTM: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        learn_initial_state: bool = False,
        num_heads: int = 1,
    ) -> None:
        if isinstance(zoneout, (tuple, list)):
            raise ValueError(f"zoneout of an SLSTM should be one number, that of h, got {zoneout!r}")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        options = (recurrent_dropout, zoneout, learn_initial_state, device, dtype, num_heads)
        super().__init__("slstm", *sizes, *options)

    def extra_repr(self) -> str:
        return super().extra_repr().removeprefix("'slstm', ")
