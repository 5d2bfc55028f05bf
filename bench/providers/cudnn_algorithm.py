"""Which of cuDNN's algorithms PyTorch asks for: the rule of `get_algo`, so that a table can say what a peer ran.

Source: pytorch/pytorch, aten/src/ATen/native/cudnn/RNN.cpp (get_algo, use_rnn_persist_small_h,
use_persist_common_heuristics, use_persist_device_heuristics), as of late 2026. That bfloat16 reaches cuDNN only from
version 9.13 on: pytorch/pytorch#164411.
"""

from __future__ import annotations

from typing import Literal

import torch

from ..method.case import Case

Algorithm = Literal["persist_static_small_h", "persist_static", "standard", "no cuDNN"]
CUDNN_WITH_BF16 = 91300


def cudnn_algorithm(
    case: Case,
    *,
    backward: bool,
    capability: tuple[int, int],
    num_sms: int,
    cudnn: int,
    packed: bool = False,
    projected: bool = False,
) -> Algorithm:
    """The algorithm that torch.nn asks cuDNN for.

    backward:    of the backward pass; the forward pass may have another.
    capability:  compute capability of the GPU, e.g. (9, 0).
    num_sms:     its multiprocessors.
    cudnn:       version as torch.backends.cudnn.version() has it, e.g. 91300.
    packed:      x is a PackedSequence.
    projected:   proj_size > 0.

    "no cuDNN": torch runs its own kernels, a few for every step.
    """
    if case.dtype == torch.bfloat16 and cudnn < CUDNN_WITH_BF16:
        return "no cuDNN"
    if projected or packed:
        return "standard"
    if case.dtype != torch.float64 and capability >= (6, 0) and case.hidden_size <= _small(case.cell, backward):
        return "persist_static_small_h"
    if case.dtype == torch.float16 and _common(case) and _device(case, capability, num_sms):
        return "persist_static"
    return "standard"


def _small(cell: str, backward: bool) -> int:
    """Largest hidden size of the small-H kernels."""
    if cell.startswith("rnn"):
        return 256 if backward else 384
    return 128 if backward else 192


def _common(case: Case) -> bool:
    return (
        case.layers == 1
        and case.directions == 1
        and case.hidden_size <= 1024
        and case.hidden_size % 128 == 0
        and case.inputs % 128 == 0
    )


def _device(case: Case, capability: tuple[int, int], num_sms: int) -> bool:
    major, minor = capability
    B, T = case.batch_size, case.length
    if capability == (7, 5):
        return False
    if major == 7:
        good_batch = (B % 16 == 0 and B not in (80, 112)) or B == 8
        return good_batch and ((T >= 40 and B <= 128) or (T >= 20 and B <= 96) or (T >= 10 and B <= 32))
    if major < 8 or num_sms < 98 or minor == 6 or case.cell == "gru":
        return False
    fits = B % 8 == 0 and B <= 128
    return fits if case.cell == "lstm" else fits and (B < 96 or case.hidden_size < 896)


def algorithm_here(case: Case, *, training: bool, packed: bool = False) -> str:
    """The rule for the GPU in this process, in words: "persist_static forward, standard backward"."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())

    def find(backward: bool) -> Algorithm:
        return cudnn_algorithm(
            case,
            backward=backward,
            capability=(properties.major, properties.minor),
            num_sms=properties.multi_processor_count,
            cudnn=torch.backends.cudnn.version() or 0,
            packed=packed,
        )

    forward = find(backward=False)
    backward = find(backward=True) if training else forward
    if forward == "no cuDNN":
        return "torch's own kernels, some for every step"
    return f"cuDNN {forward}" if forward == backward else f"cuDNN {forward} forward, {backward} backward"
