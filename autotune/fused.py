"""What torch's fused op costs by estimate: cuDNN, by the algorithm that torch asks it for.

The GEMMs outside of the time loop (the input's, those of the weights' gradients) are in neither this nor the kernels'
estimate: they are the same in both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from ..kernels.cell_spec import find_cell
from ..kernels.plan import Prediction
from ..kernels.resources import DeviceLimits
from .constants import Constant, assumed_to_be, constants_for, published, weakest
from .cudnn import Algorithm, Stack, cudnn_algorithm

CUDNN = 91900
"""The version that is taken where there is none: torch without CUDA explains what a GPU would do."""


@dataclass(frozen=True)
class Fused:
    """persistent_us:    of a step of cuDNN's persistent kernels besides their product.
    product_us:        of that product, an LSTM of 768 at B=16 in 16 bits; it grows with H and, as wgmma's, with
                       16 + B / 4; twofold as TF32, fourfold in float32.
    backward_share:    a persistent step backwards over one forwards.
    two_kernels_us:    a GEMM and a pointwise kernel, each waiting for the one before: a step of the standard algorithm
                       besides the GEMM's work.
    own_kernels_us:    a step of torch's own kernels, where cuDNN is not asked, besides the GEMM's work.
    gemm_share:        of the matrix unit's peak that the standard algorithm's small GEMM reaches.
    """

    persistent_us: Constant
    product_us: Constant
    backward_share: Constant
    two_kernels_us: Constant
    own_kernels_us: Constant
    gemm_share: Constant


_FLASHRNN = "FlashRNN's figures of an H100, LSTM fp16 H=768 B=16 T=1024"
FUSED = Fused(
    persistent_us=assumed_to_be(1.0, "us", f"its share of 1.85 us a step, {_FLASHRNN}: 2.01 ms with the input's GEMM"),
    product_us=assumed_to_be(0.85, "us", "the rest of the 1.85"),
    backward_share=published(1.5, "of the step forwards", f"{_FLASHRNN}: 5.19 ms with the backward pass"),
    two_kernels_us=assumed_to_be(4.0, "us", "two dependent kernels of 2; FlashRNN's two take 7.9 to 10.5 on an H100"),
    own_kernels_us=assumed_to_be(12.0, "us", "five or six dependent kernels of 2"),
    gemm_share=assumed_to_be(0.45, "of the peak", "a GEMM of G * H by H by B, B far below a tile's best size"),
)


def step_us(stack: Stack, algorithm: Algorithm, limits: DeviceLimits, *, backward: bool) -> tuple[float, float]:
    """Microseconds of a step of all layers and directions: what steps of other layers can hide, and what none can.

    Standard steps of several layers and directions may overlap (Appleyard et al., arXiv 1604.01946), persistent ones
    fill the GPU. To favour neither, the latency is taken as hidden and the work as not.
    """
    f = FUSED
    times = stack.layers * stack.directions
    if algorithm.startswith("persist"):
        wider = 1.0 if stack.dtype != torch.float32 else 2.0 if stack.tf32 else 4.0
        work = wider * stack.hidden_size / 768 * (16 + stack.batch_size / 4) / 20
        busy = f.persistent_us.value + f.product_us.value * work
        return 0.0, times * busy * (f.backward_share.value if backward else 1.0)
    c = constants_for(limits)
    rows = find_cell(stack.cell).gates * stack.hidden_size
    per_clock = c.matrix_flops_per_clock.value
    if stack.dtype == torch.float32:
        per_clock = per_clock * c.tf32_share.value if stack.tf32 else c.fp32_flops_per_clock.value
    rate = per_clock * c.clock_mhz.value * limits.num_sms
    gemm = 2.0 * rows * stack.hidden_size * stack.batch_size / (rate * f.gemm_share.value)
    read = rows * stack.hidden_size * stack.dtype.itemsize / c.l2_bytes_per_us.value
    latency = f.own_kernels_us if algorithm == "no cuDNN" else f.two_kernels_us
    return latency.value, times * max(gemm, read)


@lru_cache(maxsize=4096)
def predicted_loop(stack: Stack, limits: DeviceLimits, *, trains: bool, cudnn: int = CUDNN) -> Prediction:
    """Microseconds on the GPU of all steps of a call, backwards too where it trains."""
    total = 0.0
    for backward in (False, True) if trains else (False,):
        algorithm = algorithm_of(stack, limits, backward=backward, cudnn=cudnn)
        latency, work = step_us(stack, algorithm, limits, backward=backward)
        total += (stack.length + stack.layers - 1) * latency + stack.length * work
    return Prediction(total, weakest(getattr(FUSED, f.name).provenance for f in fields(FUSED)))


def algorithm_of(stack: Stack, limits: DeviceLimits, *, backward: bool, cudnn: int = CUDNN) -> Algorithm:
    """cuDNN's algorithm on a GPU that need not be there."""
    arch = int(limits.arch[1]) if limits.arch[0] == "cuda" else 0
    return cudnn_algorithm(stack, backward=backward, capability=divmod(arch, 10), num_sms=limits.num_sms, cudnn=cudnn)


def cudnn_here() -> int:
    """cuDNN's version, that of `CUDNN` where torch has none."""
    return torch.backends.cudnn.version() or CUDNN
