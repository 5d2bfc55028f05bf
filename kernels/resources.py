"""What a GPU offers to a program, and how many programs it holds at once: the check before every cooperative launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from .hashed_once import hashed_once
from .refused import RefusedError

_KIB = 1024
# Streaming multiprocessors (NVIDIA) and compute units (AMD) both consist of four parts, each with a quarter of
# the registers; a warp's registers all come from one of them.
_PARTS_PER_SM = 4
_REGISTER_UNIT = 8  # registers per thread are handed out in eights: 256 a warp (cuda_occupancy.h), 512 a wavefront
_SHARED_UNIT = 128  # bytes (cuda_occupancy.h, compute capability 8 and newer)


TOO_LARGE = "too many blocks in cooperative launch"
"""What a driver says of a grid that it cannot hold at once: CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, HIP likewise."""


class NotResidentError(RefusedError):
    """The programs of a cooperative launch do not fit on the GPU at the same time."""

    reason = "not_resident"


@hashed_once
@dataclass(frozen=True)
class DeviceLimits:
    """What one GPU offers. SM means streaming multiprocessor, on AMD compute unit; shared means LDS there.

    name:                       as the driver reports it.
    arch:                       ("cuda", 90) or ("hip", "gfx942").
    num_sms:                    SMs the process may use (a MIG slice has fewer than the chip).
    shared_per_block:           most shared memory one program may ask for ("opt-in" limit), bytes.
    shared_per_sm:              shared memory of one SM, bytes.
    shared_reserved_per_block:  what the system takes from the SM for each program on top, bytes.
    registers_per_sm:           32-bit registers of one SM.
    max_threads_per_sm:         resident threads of one SM.
    max_blocks_per_sm:          resident programs of one SM.
    warp_size:                  threads in a warp (AMD: wavefront).
    """

    name: str
    arch: tuple[str, int | str]
    num_sms: int
    shared_per_block: int
    shared_per_sm: int
    shared_reserved_per_block: int = 1 * _KIB
    registers_per_sm: int = 65536
    max_threads_per_sm: int = 2048
    max_blocks_per_sm: int = 32
    warp_size: int = 32

    @property
    def target(self) -> str:
        """The architecture's name as `autotune.offline.compile_offline` takes it: "sm_90", "gfx942"."""
        kind, arch = self.arch
        return f"sm_{arch}" if kind == "cuda" else str(arch)


# Vendor datasheets, not measured by us. Per-SM limits: CUDA C++ Programming Guide, table "Technical Specifications
# per Compute Capability" (8.0: 164 KiB per SM, 163 per block; 8.9: 100 and 99, 1536 threads, 24 blocks; 9.0 and 10.0:
# 228 and 227), which also gives the 1 KiB reserved per block. SM counts: each GPU's own datasheet.
A100 = DeviceLimits("NVIDIA A100-SXM4-80GB", ("cuda", 80), 108, 163 * _KIB, 164 * _KIB)  # A100 whitepaper: 108 SMs
H100 = DeviceLimits("NVIDIA H100 80GB HBM3", ("cuda", 90), 132, 227 * _KIB, 228 * _KIB)  # H100 whitepaper, SXM5: 132
H200 = replace(H100, name="NVIDIA H200")  # H200 datasheet: H100's chip with other memory
B200 = DeviceLimits("NVIDIA B200", ("cuda", 100), 148, 227 * _KIB, 228 * _KIB)  # Blackwell datasheet: 148 SMs
L4 = DeviceLimits(  # Ada whitepaper, AD104 as in L4: 58 SMs
    "NVIDIA L4", ("cuda", 89), 58, 99 * _KIB, 100 * _KIB, max_threads_per_sm=1536, max_blocks_per_sm=24
)
RTX_4090 = replace(L4, name="NVIDIA GeForce RTX 4090", num_sms=128)  # Ada whitepaper, AD102 as in RTX 4090: 128 SMs
# AMD CDNA 3 whitepaper: 304 compute units, 64 KiB LDS, 4 SIMDs of 512 registers × 64 lanes, 8 wavefronts a SIMD.
# Work-groups per compute unit: 16, the number of barriers that the hardware keeps.
MI300X = DeviceLimits(
    "AMD Instinct MI300X",
    ("hip", "gfx942"),
    304,
    64 * _KIB,
    64 * _KIB,
    shared_reserved_per_block=0,
    registers_per_sm=4 * 512 * 64,
    max_blocks_per_sm=16,
    warp_size=64,
)

KNOWN = (A100, H100, H200, B200, L4, RTX_4090, MI300X)

# Same table of the CUDA guide; a capability that is not in it gets the smallest entry.
_BLOCKS_PER_SM = {(8, 0): 32, (8, 9): 24, (9, 0): 32, (10, 0): 32}
_FEWEST_BLOCKS_PER_SM = 16


def from_device(device: torch.device) -> DeviceLimits:
    """The limits of a GPU in this machine, as its driver reports them.

    Raises what torch raises where `device` is no GPU.
    """
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks half of its fields
    if torch.version.hip is not None:
        # ROCm reports no register count; all of gfx9's matrix parts share MI300X's compute unit, but not its LDS.
        return replace(
            MI300X,
            name=properties.name,
            arch=("hip", properties.gcnArchName.split(":")[0]),
            num_sms=properties.multi_processor_count,
            shared_per_block=properties.shared_memory_per_block,
            shared_per_sm=properties.shared_memory_per_block,
        )
    capability = (properties.major, properties.minor)
    return DeviceLimits(
        name=properties.name,
        arch=("cuda", 10 * properties.major + properties.minor),
        num_sms=properties.multi_processor_count,
        shared_per_block=properties.shared_memory_per_block_optin,
        shared_per_sm=properties.shared_memory_per_multiprocessor,
        registers_per_sm=properties.regs_per_multiprocessor,
        max_threads_per_sm=properties.max_threads_per_multi_processor,
        max_blocks_per_sm=_BLOCKS_PER_SM.get(capability, _FEWEST_BLOCKS_PER_SM),
        warp_size=properties.warp_size,
    )


def resident_programs(limits: DeviceLimits, *, registers: int, num_warps: int, shared: int) -> int:
    """How many programs of a kernel the GPU is certain to hold at the same time; 0 where not even one fits.

    registers:  32-bit registers per thread.
    num_warps:  warps of one program (AMD: wavefronts).
    shared:     shared memory of one program in bytes, static and dynamic.

    Programs that wait for each other must all be resident, or they wait for ever, so every rounding is against the
    kernel. An SM holds the least of

        threads    max_threads_per_sm / (num_warps · warp_size)
        registers  4 · floor((registers_per_sm / 4) / (roundup(registers, 8) · warp_size)) / roundup(num_warps, 4)
        shared     shared_per_sm / roundup(shared + shared_reserved_per_block, 128)
        programs   max_blocks_per_sm

    each rounded down, and the GPU num_sms times that. The formula is NVIDIA's (`cuda_occupancy.h` of the CUDA toolkit,
    which the occupancy calculator and cudaOccupancyMaxActiveBlocksPerMultiprocessor follow), with warps rounded up to
    whole rounds over the SM's four parts. It assumes the GPU to itself: the driver's own check at a cooperative launch
    remains the last word.
    """
    if registers <= 0 or num_warps <= 0 or shared < 0:
        raise ValueError(f"not a compiled kernel: registers={registers}, num_warps={num_warps}, shared={shared}")
    if shared > limits.shared_per_block:
        return 0
    registers_per_warp = _round_up(registers, _REGISTER_UNIT) * limits.warp_size
    warps_by_registers = _PARTS_PER_SM * (limits.registers_per_sm // _PARTS_PER_SM // registers_per_warp)
    taken = _round_up(shared + limits.shared_reserved_per_block, _SHARED_UNIT)
    per_sm = min(
        limits.max_threads_per_sm // (num_warps * limits.warp_size),
        warps_by_registers // _round_up(num_warps, _PARTS_PER_SM),
        limits.shared_per_sm // taken if taken else limits.max_blocks_per_sm,
        limits.max_blocks_per_sm,
    )
    return limits.num_sms * per_sm


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
