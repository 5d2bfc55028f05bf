"""What happens when a team waits in vain: a status word that kernels write and the host reads without waiting.

The word of a GPU lies in pinned host memory. A kernel touches it only when a wait ran out, so it
costs nothing otherwise, works inside CUDA graphs, and needs no synchronisation to be looked at.
"""

from __future__ import annotations

from functools import cache

import torch


class StalledError(RuntimeError):
    """Programs of a cooperative launch waited for a member that never arrived."""


@cache
def _status_word(device: torch.device) -> torch.Tensor:
    word = torch.zeros(1, dtype=torch.int32)
    return word.pin_memory() if device.type == "cuda" else word


def status_word(device: torch.device) -> torch.Tensor:
    """The device's status word, int32 [1], on the host: 0, or 1 once a wait has run out."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _status_word(device)


def raise_if_stalled(device: torch.device) -> None:
    """Raise StalledError, once, if a launch on `device` that has ended gave up a wait.

    Called before every cooperative launch; call it after `torch.cuda.synchronize()` to learn
    of a stall at once.
    """
    word = status_word(device)
    if word.item():
        word.zero_()
        raise StalledError(
            f"a cooperative kernel on {device} waited for a program that never arrived and gave up; what it "
            "returned is NaN. Its programs were not all resident at the same time: is another process "
            "or stream holding the GPU? `with holdfast.backend('eager'):` runs without the kernels."
        )
