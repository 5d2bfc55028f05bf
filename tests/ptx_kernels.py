"""Small kernels in PTX, as they stand in the tests, run by the executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from holdfast.kernels.ptx.executor import storages
from holdfast.kernels.ptx.machine import Behaviour, Kernel, Machine

_TEXT = """//
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
{parameters}
)
.reqntid {threads}
{{
	.reg .pred 	%p<10>;
	.reg .b16 	%rs<20>;
	.reg .b32 	%r<40>;
	.reg .b64 	%rd<20>;
	.loc	1 7 3
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, %ctaid.x;
{loads}
{body}
	ret;
}}
	.file	1 "/somewhere/kernel.py"
"""


def text_of(body: str, tensors: int, num_warps: int) -> str:
    """A kernel: %r0 is %tid.x, %r1 %ctaid.x, and %rd0, %rd1, … are the tensors."""
    parameters = ",\n".join(f"\t.param .u64 .ptr .global .align 1 kernel_param_{i}" for i in range(tensors))
    loads = "\n".join(f"\tld.param.b64 %rd{i}, [kernel_param_{i}];" for i in range(tensors))
    return _TEXT.format(parameters=parameters, loads=loads, body=body, threads=32 * num_warps)


def run(
    body: str, tensors: Sequence[torch.Tensor], *, grid: int = 1, num_warps: int = 1, shared: int = 0, **behaviour: Any
) -> None:
    kernel = Kernel(text_of(body, len(tensors), num_warps), num_warps, shared)
    Machine(kernel, grid, [t.data_ptr() for t in tensors], storages(tensors), Behaviour(**behaviour)).run()
