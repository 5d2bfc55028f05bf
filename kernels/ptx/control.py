"""Where the ways of a branch meet again: the immediate post-dominators of a kernel's branches."""

from __future__ import annotations

from collections.abc import Sequence


def meeting_points(code: Sequence[tuple[bool, int | None, bool]]) -> dict[int, int]:
    """Of each conditional branch the index of the first instruction that both ways come to; len(code), the kernel's
    end, where there is none.

    code:  of each instruction, whether it ends the thread, the index that it jumps to or None, whether it is guarded.
    """
    end = len(code)
    after: list[tuple[int, ...]] = []
    for index, (ends, target, guarded) in enumerate(code):
        falls = (index + 1,) if guarded or not (ends or target is not None) else ()
        after.append(falls + ((target,) if target is not None else ()) + ((end,) if ends else ()))
    starts = sorted(
        {0} | {t for _, t, _ in code if t is not None} | {i + 1 for i, c in enumerate(code) if c[0] or c[1]}
    )
    starts = [start for start in starts if start < end]
    last = {start: stop - 1 for start, stop in zip(starts, [*starts[1:], end], strict=True)}
    # Each block's post-dominators as a bit set, until nothing changes.
    bit = {start: 1 << place for place, start in enumerate([*starts, end])}
    everything = (1 << len(bit)) - 1
    dominators = dict.fromkeys(starts, everything) | {end: bit[end]}
    changed = True
    while changed:
        changed = False
        for start in reversed(starts):
            common = everything
            for successor in after[last[start]]:
                common &= dominators[successor]
            if common | bit[start] != dominators[start]:
                dominators[start] = common | bit[start]
                changed = True
    found = {}
    for start in starts:
        branch = last[start]
        if code[branch][1] is not None and code[branch][2]:
            strict = dominators[start] & ~bit[start]
            # Post-dominators are a chain: the nearest is the one that all the others post-dominate.
            found[branch] = next(
                other for other in [*starts, end] if bit[other] & strict and dominators[other] == strict
            )
    return found
