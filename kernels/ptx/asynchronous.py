"""What a program has given to the matrix unit and not waited for yet."""

from __future__ import annotations

from typing import Any

from .errors import AsynchronousError


class Asynchronous:
    """The wgmmas of one program that nobody has waited for. Registers are those that any of its wgmmas name."""

    def __init__(self, warps: int) -> None:
        self.open: list[list[tuple[tuple[int, ...], Any]]] = [[] for _ in range(warps)]
        """Of each warp, its wgmmas not yet committed: their accumulators and what they read of shared memory."""
        self.groups: list[list[list[tuple[tuple[int, ...], Any]]]] = [[] for _ in range(warps)]
        self.busy: list[set[int]] = [set() for _ in range(warps)]
        self.unfenced: list[set[int] | None] = [None] * warps
        """Registers written since the last wgmma.fence; None before the first."""

    def check(self, warps: Any, slots: frozenset[int], writes: frozenset[int]) -> None:
        """Before another instruction touches these registers."""
        for warp in warps:
            if busy := self.busy[warp] & slots:
                raise AsynchronousError(f"{len(busy)} registers of a wgmma are touched before anybody waited for it")
            if self.unfenced[warp] is not None:
                self.unfenced[warp] |= writes  # type: ignore[operator]
