"""torch.nn's modules, in the case's dtype or in another, packed or not."""

from __future__ import annotations

import torch

from ...autotune.cudnn import Algorithm, Stack, cudnn_algorithm
from ..method.case import DTYPE_NAMES, Phase
from ..method.numbers import TORCH, Numbers
from .provider import Calls, ModuleCalls, PackedCalls, Prepared, Unavailable, refuse_stacked_heads


class TorchNN:
    """torch.nn's module: cuDNN on a GPU. Several heads are one module with their block-diagonal matrix.

    dtype:  None: the case's; else this one, the peer's best where the case is in another.
    packed: the rows' real steps as a PackedSequence; packing and padding are left out of the time.
    """

    is_peer = True

    def __init__(self, dtype: torch.dtype | None = None, *, packed: bool = False) -> None:
        self.dtype, self.packed = dtype, packed
        self.name = f"torch.nn{'' if dtype is None else ' ' + DTYPE_NAMES[dtype]}{' packed' if packed else ''}"

    def prepare(self, numbers: Numbers, phase: Phase) -> Prepared:
        case = numbers.case
        dtype = self.dtype or case.dtype
        if self.dtype == case.dtype:
            raise Unavailable("this is the case's own dtype")
        if case.cell not in TORCH:
            raise Unavailable(f"torch.nn has no {case.cell}")
        refuse_stacked_heads(case)
        module = numbers.whole(TORCH[case.cell], dtype, dense=True)
        if not self.packed and case.sequences != "dense":
            raise Unavailable(f"torch.nn has no argument for {case.sequences} sequences")
        if self.packed:
            calls: Calls = PackedCalls(numbers, module, dtype)
        else:
            calls = ModuleCalls(numbers, module, dtype)
        return calls.prepared(phase, algorithm=self._algorithm(numbers, dtype, phase))

    def _algorithm(self, numbers: Numbers, dtype: torch.dtype, phase: Phase) -> str:
        if numbers.device.type != "cuda":
            return "torch's CPU op"
        stack = numbers.case.stack._replace(dtype=dtype, packed=self.packed)
        return algorithm_here(stack, training=phase == "training")


def algorithm_here(stack: Stack, *, training: bool) -> str:
    """cuDNN's algorithm on the GPU in this process, in words: "persist_static forward, standard backward"."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())

    def find(backward: bool) -> Algorithm:
        return cudnn_algorithm(
            stack,
            backward=backward,
            capability=(properties.major, properties.minor),
            num_sms=properties.multi_processor_count,
            cudnn=torch.backends.cudnn.version() or 0,
        )

    forward = find(backward=False)
    backward = find(backward=True) if training else forward
    if forward == "no cuDNN":
        return "torch's own kernels, some for every step"
    return f"cuDNN {forward}" if forward == backward else f"cuDNN {forward} forward, {backward} backward"
