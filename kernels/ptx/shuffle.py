"""Instructions by which the lanes of a warp see each other's registers. Arrays are [warps, 32]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .errors import DivergenceError
from .operation import NUMBER, Bits, Operation, Run, operation

Lanes = npt.NDArray[np.bool_]

_LANE = np.arange(32)
_BIT = np.uint32(1) << _LANE.astype(np.uint32)


def _mask_of(lanes: Lanes) -> Bits:
    """A bit for each lane, [warps, 1]."""
    return np.where(lanes, _BIT, np.uint32(0)).sum(axis=-1, keepdims=True, dtype=np.uint32)


def _check_members(mask: Bits, active: Lanes) -> None:
    """All lanes here name the same lanes, and all of those are here: else the result is undefined, or the GPU hangs."""
    here = _mask_of(active)
    if (wrong := active & (mask != here)).any():
        warp, lane = np.argwhere(wrong)[0]
        raise DivergenceError(
            f"lane {lane} of warp {warp} waits for lanes {mask[warp, lane]:#x}, here are {here[warp, 0]:#x}"
        )


def _shuffle(mode: str, two: bool) -> Run:
    def run(active: Lanes, value: Bits, b: Bits, c: Bits, mask: Bits) -> Bits | tuple[Bits, Lanes]:
        _check_members(mask, active)
        by, clamp, segment = (b & 31).astype(int), (c & 31).astype(int), (c >> np.uint32(8) & 31).astype(int)
        first, last = _LANE & segment, _LANE & segment | clamp & ~segment
        source = {"up": _LANE - by, "down": _LANE + by, "bfly": _LANE ^ by, "idx": first | by & ~segment}[mode]
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, _LANE)
        if (active & ~np.take_along_axis(active, source, -1)).any():
            raise DivergenceError("a lane reads the register of a lane that is not here")
        result = np.take_along_axis(value, source, -1)
        return (result, inside) if two else result

    return run


def _reduce(combine: np.ufunc, kind: str, neutral: int) -> Run:
    number = NUMBER[kind]

    def run(active: Lanes, value: Bits, mask: Bits) -> Bits:
        _check_members(mask, active)
        of_members = np.where(active, value.view(number), number(neutral))
        total = combine.reduce(of_members, axis=-1, dtype=number, keepdims=True)
        return np.ascontiguousarray(np.broadcast_to(total, value.shape)).view(np.uint32)

    return run


def _ballot(active: Lanes, predicate: Lanes, mask: Bits) -> Bits:
    _check_members(mask, active)
    return np.ascontiguousarray(np.broadcast_to(_mask_of(active & predicate), mask.shape))


def _vote(mode: str) -> Run:
    def run(active: Lanes, predicate: Lanes, mask: Bits) -> Lanes:
        _check_members(mask, active)
        some = (active & predicate).any(axis=-1, keepdims=True)
        every = (~active | predicate).all(axis=-1, keepdims=True)
        result = {"any": some, "all": every, "uni": every | ~some}[mode]
        return np.ascontiguousarray(np.broadcast_to(result, active.shape))

    return run


def _elect(active: Lanes, mask: Bits) -> tuple[Bits, Lanes]:
    """PTX leaves open which lane is elected: here the first."""
    _check_members(mask, active)
    leader = np.argmax(active, axis=-1, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(leader.astype(np.uint32), mask.shape)), leader == _LANE


_S32 = np.iinfo(np.int32)
SHUFFLE: dict[str, Operation] = {
    "elect.sync|": operation(_elect, ["b32"]),
    "vote.sync.ballot.b32": operation(_ballot, ["pred", "b32"]),
    "redux.sync.add.u32": operation(_reduce(np.add, "u32", 0), ["b32", "b32"]),
    "redux.sync.add.s32": operation(_reduce(np.add, "s32", 0), ["b32", "b32"]),
    "redux.sync.min.u32": operation(_reduce(np.minimum, "u32", 0xFFFFFFFF), ["b32", "b32"]),
    "redux.sync.min.s32": operation(_reduce(np.minimum, "s32", _S32.max), ["b32", "b32"]),
    "redux.sync.max.u32": operation(_reduce(np.maximum, "u32", 0), ["b32", "b32"]),
    "redux.sync.max.s32": operation(_reduce(np.maximum, "s32", _S32.min), ["b32", "b32"]),
    "redux.sync.and.b32": operation(_reduce(np.bitwise_and, "b32", 0xFFFFFFFF), ["b32", "b32"]),
    "redux.sync.or.b32": operation(_reduce(np.bitwise_or, "b32", 0), ["b32", "b32"]),
    "redux.sync.xor.b32": operation(_reduce(np.bitwise_xor, "b32", 0), ["b32", "b32"]),
}
for _mode in ("any", "all", "uni"):
    SHUFFLE[f"vote.sync.{_mode}.pred"] = operation(_vote(_mode), ["pred", "b32"])
for _mode in ("up", "down", "bfly", "idx"):
    SHUFFLE[f"shfl.sync.{_mode}.b32"] = operation(_shuffle(_mode, two=False), ["b32"] * 4)
    SHUFFLE[f"shfl.sync.{_mode}.b32|"] = operation(_shuffle(_mode, two=True), ["b32"] * 4)
