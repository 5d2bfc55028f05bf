"""What happens when a team waits in vain: a status word that kernels write and the host reads without waiting.

The word of a GPU lies in pinned host memory. A kernel touches it only when a wait ran out, so it
costs nothing otherwise, works inside CUDA graphs, and needs no synchronisation to be looked at.

It names the team and after how many steps of a batch tile that was. After none, a program of the team had handed
nothing on yet: it had not begun, because something else held the GPU for longer than the wait may take, another
stream's kernel or another process. After some, all of the team's programs had been running: no busy sibling is the
cause, but whatever stops a program halfway (a time slice, a debugger) or a mistake of ours. It cannot be told who held
the GPU; nor, where a team walks through several batch tiles, the first step of a later one from that of the first:
counted on through all tiles, LSTM bf16 768 takes 1,155 issue cycles a step on sm_90, and 1,144 like this.
"""

from __future__ import annotations

import math

import torch

from .setting import from_environment

ENVIRONMENT_VARIABLE = "HOLDFAST_STALL_SECONDS"
DEFAULT_SECONDS = 20.0
"""Longer than another stream's kernels or a straggler of a collective keep a member from starting, in most jobs."""
LONGEST_SECONDS = 2000.0

STEP_BITS, LAST_TEAM = 20, 2**11 - 2
"""Of the status word where a wait ran out: the team's number plus one above these bits, and the step in them. Each is
no larger than it has room for."""


class StalledError(RuntimeError):
    """Programs of a cooperative launch waited for a member that never arrived."""


def limit_of(seconds: str) -> int:
    """What a kernel is told of how long a wait may take, in units of 1,024 ns: a multiple of 16, which is compiled in.

    Raises ValueError for anything but a number of seconds in (0, 2000].
    """
    try:
        wanted = float(seconds)
    except ValueError:
        wanted = math.nan
    if not 0 < wanted <= LONGEST_SECONDS:
        raise ValueError(
            f"environment variable {ENVIRONMENT_VARIABLE} should be a number of seconds above 0, at most "
            f"{LONGEST_SECONDS:g}, got {seconds!r}"
        )
    return math.ceil(wanted * 1e9 / 1024 / 16) * 16


WAIT_LIMIT = from_environment(ENVIRONMENT_VARIABLE, str(DEFAULT_SECONDS), limit_of)

_words: dict[torch.device, torch.Tensor] = {}


def status_word(device: torch.device) -> torch.Tensor:
    """The device's status word, int32 [1], on the host: 0, or where a wait has run out (`describe_stall`)."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    word = _words.get(device)
    if word is None:
        word = torch.zeros(1, dtype=torch.int32)
        # Not replaced by another thread's: kernels may know the address already.
        word = _words.setdefault(device, word.pin_memory() if device.type == "cuda" else word)
    return word


def raise_if_stalled(device: torch.device) -> None:
    """Raise StalledError, once, if a launch on `device` that has ended gave up a wait.

    Waits for nothing. Called before every cooperative launch and at the end of every layer's backward pass.
    """
    word = status_word(device)
    if found := word.item():
        word.zero_()
        raise StalledError(
            f"a cooperative kernel on {device} waited for a program that never arrived and gave up; what it "
            f"returned is NaN. {describe_stall(int(found))} {ENVIRONMENT_VARIABLE} says how long a wait may take; "
            "`with holdfast.backend('eager'):` runs without the kernels."
        )


def describe_stall(word: int) -> str:
    """Where a wait ran out, and what that says about the cause."""
    team, steps = (word >> STEP_BITS) - 1, word & (1 << STEP_BITS) - 1
    name = f"Team {team}{' or a later one' if team == LAST_TEAM else ''}"
    if steps == 0:
        return (
            f"{name} gave up in a first step: one of its programs had not begun, so they were not all resident at the "
            "same time. Is another process or stream holding the GPU?"
        )
    more = " or more" if steps == (1 << STEP_BITS) - 1 else ""
    return (
        f"{name} gave up after {steps}{more} steps: all its programs had begun, so it was no other stream that kept "
        "one from starting, but something that stopped one halfway, such as another process's time slice or a debugger."
    )


def check_stalled(device: torch.device | str | int | None = None) -> None:
    """Raise `StalledError` if a kernel gave up waiting for another program, and so returned NaN.

    A stall is reported by itself at the next launch of a cooperative kernel on the same GPU and at the end of a
    backward pass. Call this where neither follows: after the last call, and after replaying a CUDA graph, which
    launches without asking.

        graph.replay()
        holdfast.check_stalled()

    device:  the GPU to ask about; None for every one that has run a cooperative kernel in this process.

    Waits until all that is queued on the device has ended (`torch.cuda.synchronize`), so not inside a graph capture.
    Where no cooperative kernel has run it returns at once. A stall is reported once.

    Raises StalledError; ValueError where device is no GPU.
    """
    places = list(_words)
    if device is not None:
        wanted = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if wanted.type != "cuda":
            raise ValueError(f"device should be a GPU, got {wanted}")
        if wanted.index is None:
            wanted = torch.device("cuda", torch.cuda.current_device())
        places = [place for place in places if place == wanted]
    for place in places:
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        raise_if_stalled(place)
