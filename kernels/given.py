"""What a layer's backward pass is given, by one name from autograd to the kernels; importing it imports no Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_not
from typing import NamedTuple, TypeGuard

import torch

is_there: Callable[[torch.Tensor | None], TypeGuard[torch.Tensor]] = partial(is_not, None)  # type: ignore[assignment]
"""No frame of Python for any tensor that it is asked of."""


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
