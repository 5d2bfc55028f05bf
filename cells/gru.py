"""holdfast.GRU: torch.nn.GRU on persistent kernels."""

from __future__ import annotations

from typing import Any

import torch

from .base import RecurrentBase
from .call.checks import check_bool
from .eager.activations import find_activation
from .eager.reference import name_of
from .rnn import refuse_projection


class GRU(RecurrentBase):
    """Gated recurrent unit of one or more layers, with torch's gate order (r, z, n) and formulas:
    `n = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))`, `h_t = (1 - z) * n + z * h_{t-1}`.

    Takes the place of `torch.nn.GRU`: same arguments, parameters, state_dict, results and errors. On a GPU the time
    loop of a layer is one persistent kernel where one can run (see `explain`); elsewhere it is torch's own fused op.

    forward(input, hx=None, *, lengths=None, resets=None, reset_state=None) -> (output, h_n),
    with D = 2 if bidirectional else 1
        input:  [T, B, input_size], [B, T, input_size] if batch_first, [T, input_size], or a PackedSequence;
                float32, bfloat16, float16 on the kernels, any dtype that torch takes on the eager path.
        hx:     [D*num_layers, B, hidden_size], [D*num_layers, hidden_size] for unbatched input; None is zeros.
        output: as input, with D*hidden_size features; h_n: as hx.
        lengths, resets, reset_state: see `forward`.

    Options that torch.nn does not have, keyword only:
        recurrent_dropout:    probability with which a unit of h is left out of the product with W_hh for a whole call,
                              the rest scaled by 1/(1-p); in training (Gal and Ghahramani 2016, arXiv:1512.05287).
        zoneout:              probability with which a unit's h keeps its value in a step; in eval mode the mean
                              (Krueger et al. 2017, arXiv:1606.01305).
        learn_initial_state:  parameters initial_h [D*num_layers, 1, hidden_size], zeros at first, in place of the
                              zeros that hx=None stands for.
        num_heads:            N recurrences beside each other: unit u belongs to head u // (hidden_size / N) and sees
                              that head's h alone. weight_hh_l{k} is [3*hidden_size, hidden_size / N]; the same as a
                              block-diagonal matrix (xLSTM, Beck et al. 2024, arXiv:2405.04517). 1 is torch.nn's.
        layer_norm:           W_ih x and W_hh h are normalised over all gates, of each head (Ba et al. 2016,
                              arXiv:1607.06450, equations 23 to 25); the reset gate scales the normalised sum. With
                              reset_after=False W_hn (r * h) is normalised by itself. In place of bias_ih and bias_hh
                              stand parameters layer_norm_l{k} [10, hidden_size]: by gate the weights of W_ih x and of
                              W_hh h and the bias of W_ih x, then the bias of W_hn h. Not with bias=False.
        reset_after:          False is the formula of Cho et al. 2014 (arXiv:1406.1078), `W_hn (r * h_{t-1}) + b_hn`.
        activation, recurrent_activation:  in place of tanh and sigmoid: one of tanh, sigmoid, relu, linear,
                              hard_sigmoid, softsign, elu, softplus, exponential, selu, as Keras names them.
    """

    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    _options = (*RecurrentBase._options, "reset_after", "activation", "recurrent_activation", "layer_norm")
    _norm_at_first = (1.0,) * 6 + (0.0,) * 4
    _rank_error = "GRU: Expected input to be 2D or 3D, got {}D instead"

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
        reset_after: bool = True,
        layer_norm: bool = False,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        learn_initial_state: bool = False,
        num_heads: int = 1,
        **options: Any,
    ) -> None:
        refuse_projection(options)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            False if layer_norm is True else bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **options,
        )
        check_bool("reset_after", reset_after)
        find_activation(activation)
        find_activation(recurrent_activation, "recurrent_activation")
        self._set_options(
            device,
            dtype,
            reset_after=reset_after,
            layer_norm=layer_norm,
            activation=activation,
            recurrent_activation=recurrent_activation,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            learn_initial_state=learn_initial_state,
            num_heads=num_heads,
        )
        self._add_layer_norm(device, dtype, bias=(bias, True))

    @property
    def cell(self) -> str:
        """The cell's name, such as "gru", "gru_reset_before" or "gru(relu,sigmoid)"."""
        family = "gru" if self.reset_after else "gru_reset_before"
        return name_of(
            f"{family}_layer_norm" if self.layer_norm else family, self.activation, self.recurrent_activation
        )
