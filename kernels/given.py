"""What a layer's backward pass is given, by one name from autograd to the kernels; importing it imports no Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class GivenBackwards(NamedTuple):
    """The tensors of a layer's backward pass, as `holdfast::layer_backward` takes them.

    weights:    of each direction in turn; initial: empty for zeros.
    residuals:  what the forward pass kept, `Residuals` without what is not there.
    dy, d_final: gradients of y and of each final state, None where nothing used it.
    """

    x: torch.Tensor
    weights: Sequence[torch.Tensor]
    initial: Sequence[torch.Tensor]
    y: torch.Tensor
    residuals: Sequence[torch.Tensor]
    dy: torch.Tensor | None
    d_final: Sequence[torch.Tensor | None]
