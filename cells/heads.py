"""A call of several heads as torch's op would take it: with the block-diagonal matrix for W_hh."""

from __future__ import annotations

from ..kernels.heads import block_diagonal
from .call.records import Call
from .eager.reference import reference_of


def densely(call: Call) -> Call:
    """The same call of one head. What becomes of it knows nothing of heads, and gradients go to their blocks alone."""
    layers = call.layers
    if layers.num_heads == 1 or reference_of(layers.cell).normalised:  # whose means are each head's own
        return call
    each = layers.weights_each
    weights = [
        block_diagonal(weight, layers.num_heads) if index % each == 1 else weight
        for index, weight in enumerate(layers.weights)
    ]
    return call._replace(layers=layers._replace(weights=weights, num_heads=1))
