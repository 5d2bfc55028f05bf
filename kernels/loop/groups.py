"""The time loops' arguments, in groups. A NamedTuple is one argument of a kernel; a field that is None is compiled in.

Strides lie in groups: they are specialised (1, multiples of 16) as strides should be. What changes from call to call
and must not compile anything anew (T, B, walk_bits) is an argument of its own: `do_not_specialize` does not reach
into a tuple. An option that a call leaves out is a group of Nones and not None: Triton 3.6.0 cannot ask a group that
holds a None whether it is None.

B rows of the batch, T steps, H units, D directions, G gates, N heads. "As y" is [T, B, D * H], packed [rows, D * H].
"By heads" is what lies gate by gate within each head, [.., D, N, G, H / N]: all that a head's product sums up lies side
by side. With one head that is gate by gate, [.., D, G, H], as everything else of several gates is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Strided(NamedTuple):
    """A tensor [D, T, B, n] (packed: [D, rows, n]) whose last dimension is contiguous, and its strides in elements."""

    ptr: Any = None
    direction: Any = None
    time: Any = None
    row: Any = None


class Layer(NamedTuple):
    """What belongs to the layer and not to the call: D pointers each."""

    w_hh: Any  # [G * H, H / N]
    b_hh: Any = None  # [G * H]; None: no bias, or backwards, where the loop needs none
    parameters: Any = None  # [PARAMETERS, H]; None where the cell has none


class States(NamedTuple):
    """STATES pointers each, h first."""

    initial: Any  # [B, D * H], laid out as a step of y; None for zeros
    final: Any  # [D, B, H]: written
    sent: Any = None  # one pointer, as `initial`: h as it goes through W_hh; None: as it is


class Outputs(NamedTuple):
    """What a forward loop writes at every step; None: not written."""

    y: Any  # as y; what a team exchanges unless `sent` is given
    later: Any = None  # STATES - 1 pointers, as y: the later states
    saved: Any = None  # as y, SAVED * H wide for each direction: v
    inner: Any = None  # as y: what the second product of a step multiplies; a team of several exchanges it
    sent: Any = None  # as y: h times the dropout factors; a team of several exchanges it then


class Rows(NamedTuple):
    """Which rows of the batch have a step, and where they lie."""

    lengths: Any = None  # [B] int32: steps of each row; None: all have T. What lies past them is not touched
    starts: Any = None  # [T] int64: rows before those of each time, for a packed sequence; None: t * B


class Resets(NamedTuple):
    marks: Any = None  # [T, B] uint8: before these steps the state is the reset state; None: never
    state: Any = None  # STATES pointers as `States.initial`; None for zeros
    sent: Any = None  # as h of `state`, times the dropout factors, never the sentinel; None for zeros


class Dropout(NamedTuple):
    factors: Any = None  # [B, D * H]: of h on its way into W_hh; None: ones


class Zones(NamedTuple):
    shares: Any = None  # STATES pointers: the share of the old state that a step keeps; None: zeros
    row: Any = None  # from row to row and from unit to unit of the shares: D * H and 1, or 0 and 0
    unit: Any = None


class Team(NamedTuple):
    """How the programs that share a batch tile wait for each other; of Nones for a team of one."""

    arrivals: Any = None  # [teams, 32] int32, zero, a cache line a team ("barrier"; else None)
    status: Any = None  # [1] int32: 1 if a wait ran out
    spin_limit: Any = None  # of one wait, in 1,024 ns (the interpreter counts polls): then the program gives up
    partial: Any = None  # int32, all ones, as `describe.partial_shape` says; None: no product is shared


class Past(NamedTuple):
    """What the forward loop read and wrote, as `States` and `Outputs` have it."""

    initial: Any
    y: Any
    later: Any = None
    saved: Any = None  # None: v is worked out again, from gx and ga


class LayerGradients(NamedTuple):
    """Of what lies outside the sequence; STATES pointers each, to [D, B, H]."""

    final: Any  # read; None: no gradient of the final states
    initial: Any = None  # this and all below: written; None: not there, or nobody asks
    reset: Any = None
    parameters: Any = None  # [batch tiles, D, PARAMETERS, H] float32


class StepGradients(NamedTuple):
    """Of both preactivations at every step, as y, G * H wide for each direction, by heads: written."""

    da: Any  # of W_hh h + b_hh; what a team exchanges
    dx: Any = None  # of W_ih x + b_ih, where the cell's gradients differ and anybody asks


ABSENT: dict[type, Any] = {kind: kind() for kind in (Strided, Rows, Resets, Dropout, Zones)}
"""What a call leaves out, one object for each kind: a launch tells them by that at once."""


@dataclass(frozen=True)
class Loop:
    """The compile-time numbers of a loop besides the cell's.

    HIDDEN, DIRECTIONS, HEADS:  of the layer.
    HEAD:      units of a head: HIDDEN / HEADS.
    SAVED:     tiles of v that pass from the forward loop to the one backwards.
    PRECISION: of products, `tl.dot`'s input_precision or "tf32x3" (see `describe.dot_precision`).
    EXCHANGE:  how h reaches the product: "registers" (a team of one has it), "dataflow", "spin" or "barrier" (see
               `exchange`).
    PAIRS:     whether two 16-bit numbers are compared by one instruction (see `spin`).
    INTERLEAVED: whether the product's rows are ordered by warps, not by gates (see `interleave`).
    KEPT:      whether the words that a step reads of its team are kept for the next one (see `exchange.no_words`).
    NO_VECTORS: whether LLVM is kept from making vectors of a sum of parts (see `split_k`).
    NUM_WARPS: of a program, as `Config` has them.
    MEMBERS:   programs of a team.
    BLOCK_B, BLOCK_H, BLOCK_K, SPLIT_K:  as `Config` has them; SPLIT_K is 1 where no product is shared (see
               `describe.split_k`).
    PART:      numbers that one row of a program's product sums up: its part of HEAD, backwards of G * HEAD.
    CHUNKS:    tiles that W_hh is resident in.
    PARTS:     how often a gate of one of two products a step has room among the product's rows: 1 where both are of all
               gates (see `parts`, which makes a Loop of one product from it: how many parts of each sum that has).

    HEAD, MEMBERS, PART and CHUNKS follow from the others and are fields all the same: Triton's caches know this
    constexpr by its repr, in which no property is.
    """

    HIDDEN: int
    DIRECTIONS: int
    HEADS: int
    HEAD: int
    SAVED: int
    PRECISION: str
    EXCHANGE: str
    PAIRS: bool
    INTERLEAVED: bool
    KEPT: bool
    NO_VECTORS: bool
    NUM_WARPS: int
    MEMBERS: int
    BLOCK_B: int
    BLOCK_H: int
    BLOCK_K: int
    SPLIT_K: int
    PART: int
    CHUNKS: int
    PARTS: int
