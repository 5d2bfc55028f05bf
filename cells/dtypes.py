"""The dtypes that kernels compute in, and their names, by which the ops take them.

Not as ScalarType: AOTInductor of torch 2.11.0 hands that over in torch.export's numbers where an op reads PyTorch's
own, so that float32 arrived as float64 and bfloat16 as quint8.
"""

from __future__ import annotations

import torch

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES}

_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def dtype_named(name: str) -> torch.dtype:
    """The dtype that an op was asked to compute in. Raises ValueError where no kernel has it."""
    if name not in _BY_NAME:
        raise ValueError(f"dtype should be one of {', '.join(map(repr, _BY_NAME))}, got {name!r}")
    return _BY_NAME[name]
