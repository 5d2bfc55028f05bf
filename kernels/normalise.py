"""Layer normalisation inside a step (Ba et al. 2016, arXiv:1607.06450): over all units of a head, and over several
gates together. One program holds all of a head's units, so that a mean is a sum of its own; a cell that uses this has
`CellSpec.normalised`, and the last of its p is `w`: the share of each unit in a mean, [units, 1], zero where padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-5)  # torch.nn.functional.layer_norm's


@triton.jit
def _mean(tiles, w, COUNT: tl.constexpr):
    """Over the units of COUNT tiles [units, batch] together: [1, batch]."""
    total = tl.sum(tiles[0] * w, axis=0)
    for index in tl.static_range(1, COUNT):
        total += tl.sum(tiles[index] * w, axis=0)
    return (total * (1.0 / COUNT))[None, :]


@triton.jit
def _products(first, second, COUNT: tl.constexpr):
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + (first[index] * second[index],)
    return tiles


@triton.jit
def normalised(tiles, w, COUNT: tl.constexpr):
    """COUNT tiles with mean 0 and variance 1, and what they were multiplied by, [1, batch]."""
    mean = _mean(tiles, w, COUNT)
    centred = ()
    for index in tl.static_range(COUNT):
        centred = centred + (tiles[index] - mean,)
    scale = 1.0 / tl.sqrt(_mean(_products(centred, centred, COUNT), w, COUNT) + EPSILON)
    scaled = ()
    for index in tl.static_range(COUNT):
        scaled = scaled + (centred[index] * scale,)
    return scaled, scale


@triton.jit
def through_normalised(d, scaled, scale, w, COUNT: tl.constexpr):
    """Gradients of `normalised`'s tiles from those of its results, which `scaled` and `scale` are."""
    mean = _mean(d, w, COUNT)
    along = _mean(_products(d, scaled, COUNT), w, COUNT)
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + ((d[index] - mean - scaled[index] * along) * scale,)
    return tiles
