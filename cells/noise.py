"""Random masks of a call: variational recurrent dropout and zoneout."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .call import Call

if TYPE_CHECKING:
    from .base import RecurrentBase


class Noise(NamedTuple):
    """The masks of one layer, None for what is not asked for.

    dropout:  [D, B, H], 0 or 1/(1-p), for h on its way into W_hh, the same at every step: Gal and Ghahramani 2016,
              arXiv:1512.05287.
    zoneout:  per state [T, B, D*H], or [rows, D*H] where x is packed: the share of the state before the step in the
              state after it, Krueger et al. 2017, arXiv:1606.01305. In training 0 or 1, in eval mode p.
    """

    dropout: Tensor | None
    zoneout: tuple[Tensor | None, ...]


def has_noise(module: RecurrentBase) -> bool:
    """Whether `draw` gives any mask."""
    if module.zoneout == 0.0 and module.recurrent_dropout == 0.0:
        return False
    return (module.training and module.recurrent_dropout > 0) or any(module.zoneout_rates)


def draw(module: RecurrentBase, call: Call) -> list[Noise]:
    """The masks of every layer, in the dtype and on the device of x.

    They come from torch's generator of that device, layer by layer, dropout before zoneout, so that torch.manual_seed
    makes them reproducible, whichever path runs.
    """
    directions = 2 if module.bidirectional else 1
    x, hidden = call.x, module.hidden_size
    batch = call.batch_size(module.batch_first)
    rows = x.shape[:1] if call.batch_sizes is not None else (x.shape[1 if module.batch_first else 0], batch)

    def dropout() -> Tensor | None:
        p = module.recurrent_dropout
        if p == 0 or not module.training:
            return None
        mask = x.new_empty(directions, batch, hidden).bernoulli_(1 - p)
        return mask / (1 - p) if p < 1 else mask

    def zoneout(p: float) -> Tensor | None:
        if p == 0:
            return None
        size = (*rows, directions * hidden)
        return x.new_empty(size).bernoulli_(p) if module.training else x.new_full((), p).expand(size)

    if not has_noise(module):
        return [Noise(None, (None,) * module.n_states)] * module.num_layers
    return [Noise(dropout(), tuple(zoneout(p) for p in module.zoneout_rates)) for _ in range(module.num_layers)]
