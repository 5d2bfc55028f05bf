"""How a kernel is tiled: the block sizes and launch options that tuning chooses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from .hashed_once import hashed_once

Regime = Literal["single_cta", "cooperative", "eager"]
Exchange = Literal["dataflow", "barrier"]


@hashed_once
@dataclass(frozen=True)
class Config:
    """One way to run a time loop. Field names are the kernels' own constexpr and launch names.

    BLOCK_B:     batch rows of one tile.
    BLOCK_H:     hidden units of one program (`single_cta`: all of them, padded to a power of two).
    BLOCK_K:     columns of W_hh in one resident chunk (`single_cta`: as BLOCK_H).
    exchange:    how programs of a team hand h_t to each other (`cooperative` only).
    SPLIT_K:     programs that share one product and sum up their parts: backwards, and forwards of float32 without TF32
                 (see `split_k`; other loops forwards take no notice of it).
    """

    regime: Literal["single_cta", "cooperative"]
    BLOCK_B: int
    BLOCK_H: int
    BLOCK_K: int
    num_warps: int = 4
    num_stages: int = 1
    exchange: Exchange = "dataflow"
    SPLIT_K: int = 1

    def asdict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        tile = f"BLOCK_B={self.BLOCK_B} BLOCK_H={self.BLOCK_H} BLOCK_K={self.BLOCK_K} num_warps={self.num_warps}"
        if self.regime == "single_cta":
            return tile
        split = f" SPLIT_K={self.SPLIT_K}" if self.SPLIT_K > 1 else ""
        return f"{tile} exchange={self.exchange}{split}"
