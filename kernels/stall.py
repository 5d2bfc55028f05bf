"""What happens when a team waits in vain: a status word that kernels write and the host reads without waiting.

The word of a GPU lies in pinned host memory. A kernel touches it only when a wait ran out, so it
costs nothing otherwise, works inside CUDA graphs, and needs no synchronisation to be looked at.
"""

from __future__ import annotations

import math
import os

import torch

ENVIRONMENT_VARIABLE = "HOLDFAST_STALL_SECONDS"
DEFAULT_SECONDS = 20.0
"""Longer than another stream's kernels or a straggler of a collective keep a member from starting, in most jobs."""
LONGEST_SECONDS = 2000.0


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


WAIT_LIMIT = limit_of(os.environ.get(ENVIRONMENT_VARIABLE, str(DEFAULT_SECONDS)))

_words: dict[torch.device, torch.Tensor] = {}


def status_word(device: torch.device) -> torch.Tensor:
    """The device's status word, int32 [1], on the host: 0, or 1 once a wait has run out."""
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
    if word.item():
        word.zero_()
        raise StalledError(
            f"a cooperative kernel on {device} waited for a program that never arrived and gave up; what it "
            "returned is NaN. Its programs were not all resident at the same time: is another process "
            f"or stream holding the GPU? {ENVIRONMENT_VARIABLE} says how long a wait may take; "
            "`with holdfast.backend('eager'):` runs without the kernels."
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
