"""holdfast.LSTM: torch.nn.LSTM on persistent kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import RecurrentBase
from .call.checks import check_bool, check_number
from .call.records import State
from .eager.activations import find_activation
from .eager.reference import name_of


class LSTM(RecurrentBase):
    """Long short-term memory of one or more layers, with torch's gate order (i, f, g, o) and formulas:
    `c_t = f * c_{t-1} + i * g`, `h_t = o * tanh(c_t)`.

    Takes the place of `torch.nn.LSTM`: same arguments, parameters, state_dict, results and errors. On a GPU the time
    loop of a layer is one persistent kernel where one can run (see `explain`); elsewhere it is torch's own fused op.

    forward(input, hx=None, *, lengths=None, resets=None, reset_state=None) -> (output, (h_n, c_n)),
    with D = 2 if bidirectional else 1 and P = proj_size or hidden_size
        input:  [T, B, input_size], [B, T, input_size] if batch_first, [T, input_size], or a PackedSequence;
                float32, bfloat16, float16 on the kernels, any dtype that torch takes on the eager path.
        hx:     (h_0 [D*num_layers, B, P], c_0 [D*num_layers, B, hidden_size]), without B for unbatched input;
                None is zeros.
        output: as input, with D*P features; h_n and c_n: as h_0 and c_0.
        lengths, resets, reset_state: see `forward`.

    Options that torch.nn does not have, keyword only:
        recurrent_dropout:    probability with which a unit of h is left out of the product with W_hh for a whole call,
                              the rest scaled by 1/(1-p); in training (Gal and Ghahramani 2016, arXiv:1512.05287).
        zoneout:              probability with which a unit's h keeps its value in a step; in eval mode the mean
                              (Krueger et al. 2017, arXiv:1606.01305). A pair (zoneout_h, zoneout_c) is for both states.
        learn_initial_state:  parameters initial_h, initial_c [D*num_layers, 1, P or hidden_size], zeros at first, in
                              place of the zeros that hx=None stands for.
        num_heads:            N recurrences beside each other: unit u belongs to head u // (hidden_size / N) and sees
                              that head's h alone. weight_hh_l{k} is [4*hidden_size, hidden_size / N]; the same as a
                              block-diagonal matrix (xLSTM, Beck et al. 2024, arXiv:2405.04517). 1 is torch.nn's.
        forget_bias:          what `reset_parameters` makes of the forget gate's bias (its part of bias_ih; that of
                              bias_hh becomes 0), unless 0.
        layer_norm:           W_ih x and W_hh h are normalised over all gates, of each head, and c before its tanh (Ba
                              et al. 2016, arXiv:1607.06450, equations 20 to 22). c is carried on as it is, as there;
                              PyTorch's benchmarks/fastrnns carries the normalised one. In place of bias_ih and bias_hh
                              stand parameters layer_norm_l{k} [14, hidden_size]: by gate the weights of W_ih x and of
                              W_hh h and the bias of their sum, then weight and bias of c. Not with proj_size,
                              peepholes, forget_bias or bias=False.
        peepholes:            i and f see c_{t-1}, o sees c_t, each unit its own (Gers et al. 2002), through parameters
                              weight_peephole_l{k} [3, hidden_size], for i, f and o.
        activation, recurrent_activation:  in place of tanh and sigmoid: one of tanh, sigmoid, relu, linear,
                              hard_sigmoid, softsign, elu, softplus, exponential, selu, as Keras names them.
    With proj_size > 0 only forget_bias and learn_initial_state may be given.
    """

    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    forget_bias: float = 0.0
    peepholes: bool = False
    _options = (*RecurrentBase._options, "activation", "recurrent_activation", "forget_bias", "peepholes", "layer_norm")
    _norm_at_first = (1.0,) * 8 + (0.0,) * 4 + (1.0, 0.0)
    state_names = ("h", "c")
    _rank_error = "LSTM: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        forget_bias: float = 0.0,
        peepholes: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        learn_initial_state: bool = False,
        num_heads: int = 1,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            False if layer_norm is True else bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        find_activation(activation)
        find_activation(recurrent_activation, "recurrent_activation")
        check_number("forget_bias", forget_bias)
        check_bool("peepholes", peepholes)
        if forget_bias != 0 and not bias:
            raise ValueError(f"forget_bias needs a bias to be set in, got forget_bias={forget_bias!r} with bias=False")
        self._set_options(
            device,
            dtype,
            activation=activation,
            recurrent_activation=recurrent_activation,
            forget_bias=forget_bias,
            peepholes=peepholes,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            learn_initial_state=learn_initial_state,
            num_heads=num_heads,
        )
        self._add_layer_norm(
            device, dtype, bias=(bias, True), peepholes=(peepholes, False), forget_bias=(forget_bias, 0.0)
        )
        self._reset_forget_bias()
        if peepholes:
            self._add_unit_weights("weight_peephole", 3, device, dtype)

    @property
    def cell(self) -> str:
        """The cell's name, such as "lstm", "lstm_peephole" or "lstm(relu,hard_sigmoid)"."""
        family = "lstm_peephole" if self.peepholes else "lstm_layer_norm" if self.layer_norm else "lstm"
        return name_of(family, self.activation, self.recurrent_activation)

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch.nn; then forget_bias and a learnt initial state take their values."""
        super().reset_parameters()
        self._reset_forget_bias()

    def flatten_parameters(self) -> None:
        """torch.nn's: lay the weights out for cuDNN, which has no peepholes."""
        if not self.peepholes:
            super().flatten_parameters()

    @torch.no_grad()
    def _reset_forget_bias(self) -> None:
        if self.forget_bias == 0:
            return
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("bias_"):
                parameter[forget] = self.forget_bias if name.startswith("bias_ih") else 0.0

    # torch's own methods for a state of two tensors.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def _check_rank(self, hx: Any, batched: bool) -> None:
        rank = 3 if batched else 2
        if hx[0].dim() != rank or hx[1].dim() != rank:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {rank}-D but got "
                f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )

    def _map_state(self, function: Callable[[Tensor], Tensor], hx: Any) -> State:
        return function(hx[0]), function(hx[1])

    def _check_packed(self, x: Tensor, hx: Any, batch_sizes: Tensor) -> None:
        """torch.nn.LSTM checks nothing of a packed call."""
