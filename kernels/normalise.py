"""Layer normalisation inside a step (Ba et al. 2016, arXiv:1607.06450): over all units of a head, and over several
gates together. A cell that uses this has `CellSpec.normalised`, and its p is a pair: the columns that p is for others,
and the program's units, through which the functions reach the other units of the head (see `loop.means`).

Both functions take sums, each a tuple of tiles [units, batch] that is normalised by itself; all of them cross a team at
once. SITE numbers a kernel's calls: each has a number of its own, from 0 to `CellSpec.normalised` - 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .loop.means import everybodys, own_mean

EPSILON = tl.constexpr(1e-5)  # torch.nn.functional.layer_norm's


@triton.jit
def _less(tiles, mean):
    """The tiles less a number of each row."""
    COUNT: tl.constexpr = len(tiles)
    found = ()
    for index in tl.static_range(COUNT):
        found = found + (tiles[index] - mean[None, :],)
    return found


@triton.jit
def _times(tiles, factor):
    """The tiles times a number of each row, [1, batch]."""
    COUNT: tl.constexpr = len(tiles)
    found = ()
    for index in tl.static_range(COUNT):
        found = found + (tiles[index] * factor,)
    return found


@triton.jit
def _products(first, second):
    COUNT: tl.constexpr = len(first)
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + (first[index] * second[index],)
    return tiles


@triton.jit
def _moments(tiles, units):
    """Mean and variance over the program's own units, [batch]: the mean first, so that a large one costs no digits."""
    mean = own_mean(tiles, units)
    centred = _less(tiles, mean)
    return mean, own_mean(_products(centred, centred), units)


@triton.jit
def _means(numbers, units, SITE: tl.constexpr):
    """Means over the head of what each program has the means of over its own units, [batch] each."""
    COUNT: tl.constexpr = len(numbers)
    if units.LOOP.MEMBERS == 1:
        return numbers
    else:
        tiles, share = everybodys(numbers, units, SITE)
        found = ()
        for index in tl.static_range(COUNT):
            found = found + (tl.sum(tiles[index] * share, axis=1),)
        return found


@triton.jit
def _all_moments(numbers, units, SITE: tl.constexpr):
    """Means and variances over the head, in turns, from each program's own: those within the programs and that between
    them (Chan et al. 1979), which costs no digits either."""
    COUNT: tl.constexpr = len(numbers)
    if units.LOOP.MEMBERS == 1:
        return numbers
    else:
        tiles, share = everybodys(numbers, units, SITE)
        found = ()
        for index in tl.static_range(0, COUNT, 2):
            mean = tl.sum(tiles[index] * share, axis=1)
            away = tiles[index] - mean[:, None]
            found = found + (mean, tl.sum((tiles[index + 1] + away * away) * share, axis=1))
        return found


@triton.jit
def normalised(sums, units, SITE: tl.constexpr):
    """The sums with mean 0 and variance 1 each, and what they were multiplied by, [1, batch] each."""
    COUNT: tl.constexpr = len(sums)
    own = ()
    for index in tl.static_range(COUNT):
        own = own + _moments(sums[index], units)
    moments = _all_moments(own, units, SITE)
    scaled = ()
    scales = ()
    for index in tl.static_range(COUNT):
        scale = 1.0 / tl.sqrt(moments[2 * index + 1] + EPSILON)[None, :]
        scaled = scaled + (_times(_less(sums[index], moments[2 * index]), scale),)
        scales = scales + (scale,)
    return scaled, scales


@triton.jit
def _through(d, scaled, mean, along, scale):
    COUNT: tl.constexpr = len(d)
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + ((d[index] - mean[None, :] - scaled[index] * along[None, :]) * scale,)
    return tiles


@triton.jit
def through_normalised(d, scaled, scales, units, SITE: tl.constexpr):
    """Gradients of `normalised`'s sums from those of its results, which `scaled` and `scales` are."""
    COUNT: tl.constexpr = len(d)
    own = ()
    for index in tl.static_range(COUNT):
        own = own + (own_mean(d[index], units), own_mean(_products(d[index], scaled[index]), units))
    means = _means(own, units, SITE)
    found = ()
    for index in tl.static_range(COUNT):
        found = found + (_through(d[index], scaled[index], means[2 * index], means[2 * index + 1], scales[index]),)
    return found
