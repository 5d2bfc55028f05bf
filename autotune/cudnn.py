"""Which of cuDNN's algorithms PyTorch asks for: the rule of `get_algo`.

Source: pytorch/pytorch, aten/src/ATen/native/cudnn/RNN.cpp (get_algo, use_rnn_persist_small_h,
use_persist_common_heuristics, use_persist_device_heuristics), as of late 2026. That bfloat16 reaches cuDNN only from
version 9.13 on: pytorch/pytorch#164411.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Algorithm = Literal["persist_static_small_h", "persist_static", "standard", "no cuDNN"]
CUDNN_WITH_BF16 = 91300


class Stack(NamedTuple):
    """Layers of a torch.nn module on a batch. inputs: of the first layer; projected: proj_size > 0; packed: x is a
    PackedSequence; tf32: float32 products may be rounded to TF32."""

    cell: str
    dtype: torch.dtype
    hidden_size: int
    batch_size: int
    length: int
    inputs: int
    layers: int = 1
    directions: int = 1
    projected: bool = False
    packed: bool = False
    tf32: bool = True


def cudnn_algorithm(
    stack: Stack, *, backward: bool, capability: tuple[int, int], num_sms: int, cudnn: int
) -> Algorithm:
    """The algorithm that torch.nn asks cuDNN for.

    backward:    of the backward pass; the forward pass may have another.
    capability:  compute capability of the GPU, e.g. (9, 0).
    num_sms:     its multiprocessors.
    cudnn:       version as torch.backends.cudnn.version() has it, e.g. 91300.

    "no cuDNN": torch runs its own kernels, a few for every step.
    """
    if stack.dtype == torch.bfloat16 and cudnn < CUDNN_WITH_BF16:
        return "no cuDNN"
    if stack.projected or stack.packed:
        return "standard"
    if stack.dtype != torch.float64 and capability >= (6, 0) and stack.hidden_size <= _small(stack.cell, backward):
        return "persist_static_small_h"
    if stack.dtype == torch.float16 and _common(stack) and _device(stack, capability, num_sms):
        return "persist_static"
    return "standard"


def _small(cell: str, backward: bool) -> int:
    """Largest hidden size of the small-H kernels."""
    if cell.startswith("rnn"):
        return 256 if backward else 384
    return 128 if backward else 192


def _common(stack: Stack) -> bool:
    return (
        stack.layers == 1
        and stack.directions == 1
        and stack.hidden_size <= 1024
        and stack.hidden_size % 128 == 0
        and stack.inputs % 128 == 0
    )


def _device(stack: Stack, capability: tuple[int, int], num_sms: int) -> bool:
    major, minor = capability
    B, T = stack.batch_size, stack.length
    if capability == (7, 5):
        return False
    if major == 7:
        good_batch = (B % 16 == 0 and B not in (80, 112)) or B == 8
        return good_batch and ((T >= 40 and B <= 128) or (T >= 20 and B <= 96) or (T >= 10 and B <= 32))
    if major < 8 or num_sms < 98 or minor == 6 or stack.cell == "gru":
        return False
    fits = B % 8 == 0 and B <= 128
    return fits if stack.cell == "lstm" else fits and (B < 96 or stack.hidden_size < 896)
