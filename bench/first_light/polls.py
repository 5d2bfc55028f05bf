"""How often a program asks for its team's words in a step: the exchange alone, with the polls counted.

In Triton's own words and not in the PTX of `kernels/loop/spin.py`, whose count of polls no register hands out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...kernels.config import Config
from ...kernels.loop.exchange import Sent, numbers_in_word, publish, read_chunks, unwritten
from ...kernels.loop.groups import Team
from ...kernels.loop.walk import this_member
from ...kernels.problem import Problem
from ..method.floor import Exchange
from .layer import portable_poll

MOST_POLLS = tl.constexpr(1 << 16)
"""After so many of one step a program goes on, so that a missing member costs no more than its numbers."""


@triton.jit(do_not_specialize=["T", "B"])
def count_polls(
    channel_ptr,  # [T, B, HIDDEN], filled with the sentinel
    polls_ptr,  # [T, MEMBERS] int32
    team,  # Team
    T,
    B,
    LOOP: tl.constexpr,  # Loop; one team of one direction
):
    """Publish a tile and poll for everybody's, T times; how many polls each step took each program."""
    HIDDEN: tl.constexpr = LOOP.HIDDEN
    NUMBERS_IN_WORD: tl.constexpr = numbers_in_word(channel_ptr.dtype.element_ty, LOOP.HEAD)
    me = this_member(0, LOOP)
    row = tl.arange(0, LOOP.BLOCK_B)
    row_ok = row < B
    mask = me.unit_ok[:, None] & row_ok[None, :]
    offsets = row[None, :] * HIDDEN + me.unit[:, None]
    value = tl.zeros((LOOP.BLOCK_H, LOOP.BLOCK_B), dtype=tl.float32)
    for step in tl.range(T, disable_licm=True):
        base = channel_ptr + tl.cast(step, tl.int64) * B * HIDDEN
        publish(base + offsets, (value,), mask, team, 1, LOOP)
        sent = Sent(base=base, row_offsets=row * HIDDEN, row_ok=row_ok, low=None, high=HIDDEN, kept=(), step=step)
        polls = 0
        missing = True
        while missing & (polls < MOST_POLLS):
            missing = unwritten(read_chunks(sent, NUMBERS_IN_WORD, LOOP), NUMBERS_IN_WORD, LOOP) != 0
            polls += 1
        tl.store(polls_ptr + step * LOOP.MEMBERS + me.number, polls)


def polls_of(problem: Problem, config: Config, device: torch.device, steps: int) -> torch.Tensor:
    """Polls of each step and program, [steps, programs], of one team."""
    with portable_poll(True):
        exchange = Exchange(problem, config, device, steps)
    exchange.reset()
    loop = exchange.values["LOOP"]
    polls = torch.zeros(steps, loop.MEMBERS, dtype=torch.int32, device=device)
    team = Team(arrivals=None, status=None, spin_limit=1, partial=None)
    arguments = {"channel_ptr": exchange.channel, "polls_ptr": polls, "team": team, "T": steps}
    exchange.launch(count_polls, loop.MEMBERS, arguments | {"B": problem.batch_size, "LOOP": loop})
    return polls
