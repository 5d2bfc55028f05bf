"""Layer normalisation inside a step (Ba et al. 2016, arXiv:1607.06450): over all units of a head, and over several
gates together. A cell that uses this has `CellSpec.normalised`, and its p is a pair: the columns that p is for others,
and the program's units, through which the functions reach the other units of the head (see `loop.means`).

Both functions take sums, each a tuple of tiles [units, batch] that is normalised by itself; all of them cross a team at
once. SITE numbers a kernel's calls: each has a number of its own, from 0 to `CellSpec.normalised` - 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .loop.means import everybodys, own_sum, spread, units_of

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
def _rounded(tiles):
    """The same numbers, and no products: a compiler makes one instruction of a product less a number, so that a unit
    less the mean of itself alone was a rounding's worth, not zero, and the scale makes hundreds of it. A product plus
    zero is one instruction as well."""
    COUNT: tl.constexpr = len(tiles)
    found = ()
    for index in tl.static_range(COUNT):
        found = found + (tiles[index] + 0.0,)
    return found


@triton.jit
def _own_moments(tiles, units):
    """The sum over the program's own units, and the sum of squares around their mean, [batch]: the mean first, so that
    a large one costs no digits."""
    LOOP: tl.constexpr = units.LOOP
    COUNT: tl.constexpr = len(tiles)
    total = own_sum(tiles, units)
    centred = _less(tiles, total / (tl.maximum(units_of(units.place.number, LOOP), 1.0) * COUNT))
    return total, own_sum(_products(centred, centred), units)


@triton.jit
def _moments(total, squares, units, COUNT: tl.constexpr):
    """Mean and variance over COUNT numbers of each of the head's units, from everybody's `_own_moments` [batch,
    programs]: the squares within the programs and between them (Chan et al. 1979), which costs no digits either."""
    LOOP: tl.constexpr = units.LOOP
    PROGRAMS: tl.constexpr = total.shape[1]
    mean = tl.sum(total, axis=1) * (1.0 / (COUNT * LOOP.HEAD))
    numbers = COUNT * units_of(tl.arange(0, PROGRAMS), LOOP)[None, :]
    away = total / tl.maximum(numbers, 1.0) - mean[:, None]
    return mean, tl.sum(squares + numbers * away * away, axis=1) * (1.0 / (COUNT * LOOP.HEAD))


@triton.jit
def normalised(sums, units, SITE: tl.constexpr):
    """The sums with mean 0 and variance 1 each, and what they were multiplied by, [1, batch] each."""
    COUNT: tl.constexpr = len(sums)
    own = ()
    for index in tl.static_range(COUNT):
        own = own + _own_moments(sums[index], units)
    scaled = ()
    scales = ()
    if spread(units.LOOP):
        own = everybodys(own, units, SITE)
    for index in tl.static_range(COUNT):
        tiles, scale = _normalised(sums[index], own[2 * index], own[2 * index + 1], units)
        scaled = scaled + (tiles,)
        scales = scales + (scale,)
    return scaled, scales


@triton.jit
def _normalised(tiles, total, squares, units):
    """One sum's, from `_own_moments` of the program, or of the whole team."""
    LOOP: tl.constexpr = units.LOOP
    COUNT: tl.constexpr = len(tiles)
    if spread(LOOP):
        mean, variance = _moments(total, squares, units, COUNT)
    else:
        mean = total * (1.0 / (COUNT * LOOP.HEAD))
        variance = squares * (1.0 / (COUNT * LOOP.HEAD))
    scale = 1.0 / tl.sqrt(variance + EPSILON)[None, :]
    return _times(_less(tiles, mean), scale), scale


@triton.jit
def _through(d, scaled, total, along, scale, units):
    """One sum's, from the sums of its d and of d * scaled over the program's units, or of each of the team's."""
    LOOP: tl.constexpr = units.LOOP
    COUNT: tl.constexpr = len(d)
    if spread(LOOP):
        total = tl.sum(total, axis=1)
        along = tl.sum(along, axis=1)
    total = total * (1.0 / (COUNT * LOOP.HEAD))
    along = along * (1.0 / (COUNT * LOOP.HEAD))
    tiles = ()
    for index in tl.static_range(COUNT):
        tiles = tiles + ((d[index] - total[None, :] - scaled[index] * along[None, :]) * scale,)
    return tiles


@triton.jit
def through_normalised(d, scaled, scales, units, SITE: tl.constexpr):
    """Gradients of `normalised`'s sums from those of its results, which `scaled` and `scales` are."""
    COUNT: tl.constexpr = len(d)
    exact = ()
    own = ()
    for index in tl.static_range(COUNT):
        tiles = _rounded(d[index])
        exact = exact + (tiles,)
        own = own + (own_sum(tiles, units), own_sum(_products(tiles, scaled[index]), units))
    if spread(units.LOOP):
        own = everybodys(own, units, SITE)
    found = ()
    for index in tl.static_range(COUNT):
        found = found + (
            _through(exact[index], scaled[index], own[2 * index], own[2 * index + 1], scales[index], units),
        )
    return found
