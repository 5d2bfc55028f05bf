"""Random masks of a call: variational recurrent dropout and zoneout."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..call.records import Call


class Noise(NamedTuple):
    """The masks of one layer, None for what is not asked for.

    dropout:  [D, B, H], 0 or 1/(1-p), for h on its way into W_hh, the same at every step: Gal and Ghahramani 2016,
              arXiv:1512.05287.
    zoneout:  per state [T, B, D*H], or [rows, D*H] where x is packed: the share of the state before the step in the
              state after it, Krueger et al. 2017, arXiv:1606.01305. In training 0 or 1, in eval mode p.
    """

    dropout: Tensor | None
    zoneout: tuple[Tensor | None, ...]


def draw(call: Call) -> list[Noise]:
    """The masks of every layer, in the dtype and on the device of x.

    They come from torch's generator of that device, layer by layer, dropout before zoneout, so that torch.manual_seed
    makes them reproducible, whichever path runs.
    """
    layers, x = call.layers, call.x
    if not layers.noisy:
        return [Noise(None, (None,) * layers.n_states)] * layers.num_layers
    batch, steps = call.batch_size, call.steps
    rows = x.shape[:1] if steps is None else (steps, batch)

    def dropout() -> Tensor | None:
        p = layers.recurrent_dropout
        if p == 0 or not layers.training:
            return None
        mask = x.new_empty(layers.directions, batch, layers.hidden_size).bernoulli_(1 - p)
        return mask / (1 - p) if p < 1 else mask

    def zoneout(p: float) -> Tensor | None:
        if p == 0:
            return None
        size = (*rows, layers.directions * layers.hidden_size)
        return x.new_empty(size).bernoulli_(p) if layers.training else x.new_full((), p).expand(size)

    return [Noise(dropout(), tuple(zoneout(p) for p in layers.zoneout)) for _ in range(layers.num_layers)]
