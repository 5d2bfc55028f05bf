"""The co-residency check against CUDA's own occupancy figures, and the properties that make it safe."""

import types
from dataclasses import replace

import pytest
import torch

from holdfast.kernels import resources
from holdfast.kernels.resources import A100, H100, KNOWN, L4, MI300X, DeviceLimits, from_device, resident_programs

KIB = 1024


@pytest.mark.parametrize(
    ("limits", "registers", "num_warps", "shared", "per_sm"),
    [
        # Figures of NVIDIA's occupancy calculator (cuda_occupancy.h).
        pytest.param(A100, 32, 8, 0, 8, id="A100-full-occupancy"),
        pytest.param(A100, 33, 8, 0, 6, id="A100-33-registers-count-as-40"),
        pytest.param(A100, 64, 8, 0, 4, id="A100-half-by-registers"),
        pytest.param(A100, 255, 4, 0, 2, id="A100-255-registers"),
        pytest.param(A100, 255, 8, 0, 1, id="A100-255-registers-8-warps"),
        pytest.param(A100, 32, 4, 163 * KIB, 1, id="A100-all-shared"),
        pytest.param(A100, 32, 4, 81 * KIB, 2, id="A100-two-halves"),
        pytest.param(A100, 32, 4, 81 * KIB + 1, 1, id="A100-one-byte-too-many-for-two"),
        pytest.param(A100, 32, 4, 163 * KIB + 1, 0, id="A100-too-much-shared"),
        pytest.param(H100, 168, 12, 0, 1, id="H100-persistent-gemm"),
        pytest.param(H100, 168, 4, 0, 3, id="H100-three-warp-groups"),
        pytest.param(H100, 208, 4, 106 * KIB, 2, id="H100-lstm-768"),
        pytest.param(H100, 16, 1, 0, 32, id="H100-most-blocks"),
        pytest.param(L4, 32, 8, 0, 6, id="L4-1536-threads"),
        pytest.param(L4, 16, 1, 0, 24, id="L4-most-blocks"),
        pytest.param(H100, 255, 16, 0, 0, id="H100-more-registers-than-an-SM-has"),
        pytest.param(MI300X, 128, 4, 64 * KIB, 1, id="MI300X-all-LDS"),
        pytest.param(MI300X, 512, 4, 0, 1, id="MI300X-512-registers"),
        pytest.param(MI300X, 128, 4, 0, 4, id="MI300X-by-registers"),
    ],
)
def test_occupancy_of_known_kernels(limits: DeviceLimits, registers: int, num_warps: int, shared: int, per_sm: int):
    programs = resident_programs(limits, registers=registers, num_warps=num_warps, shared=shared)
    assert programs == per_sm * limits.num_sms


@pytest.mark.parametrize("limits", KNOWN, ids=lambda limits: limits.name)
def test_a_hungrier_kernel_never_fits_more_often(limits: DeviceLimits):
    registers, warps, shared = range(1, 256), (1, 2, 3, 4, 8, 16, 32), range(0, limits.shared_per_block + KIB, 509)

    def programs(**changes: int) -> int:
        return resident_programs(limits, **{"registers": 64, "num_warps": 4, "shared": 16 * KIB, **changes})

    for name, values in (("registers", registers), ("num_warps", warps), ("shared", shared)):
        counts = [programs(**{name: value}) for value in values]
        assert counts == sorted(counts, reverse=True), name


@pytest.mark.parametrize("limits", KNOWN, ids=lambda limits: limits.name)
def test_what_is_resident_fits_in_the_sm(limits: DeviceLimits):
    for registers in (1, 24, 100, 168, 255):
        for num_warps in (1, 2, 4, 8, 16):
            for shared in (0, 1, 4 * KIB, 48 * KIB, limits.shared_per_block):
                per_sm, rest = divmod(
                    resident_programs(limits, registers=registers, num_warps=num_warps, shared=shared), limits.num_sms
                )
                threads = num_warps * limits.warp_size
                assert rest == 0
                assert per_sm <= limits.max_blocks_per_sm
                assert per_sm * threads <= limits.max_threads_per_sm
                assert per_sm * threads * registers <= limits.registers_per_sm
                assert per_sm * (shared + limits.shared_reserved_per_block) <= limits.shared_per_sm


def test_a_bigger_gpu_holds_no_fewer():
    need = {"registers": 208, "num_warps": 4, "shared": 106 * KIB}
    assert resident_programs(replace(H100, num_sms=66), **need) == resident_programs(H100, **need) / 2


@pytest.mark.parametrize("wrong", [{"registers": 0}, {"num_warps": 0}, {"shared": -1}])
def test_impossible_kernels_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="not a compiled kernel"):
        resident_programs(H100, **{"registers": 32, "num_warps": 4, "shared": 0, **wrong})


def fake_properties(**fields: object) -> types.SimpleNamespace:
    return types.SimpleNamespace(multi_processor_count=132, max_threads_per_multi_processor=2048, **fields)


def test_limits_of_a_cuda_device_come_from_its_driver(monkeypatch: pytest.MonkeyPatch):
    properties = fake_properties(
        name=H100.name,
        major=9,
        minor=0,
        warp_size=32,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=48 * KIB,
        shared_memory_per_block_optin=227 * KIB,
        shared_memory_per_multiprocessor=228 * KIB,
    )
    monkeypatch.setattr(resources.torch.cuda, "get_device_properties", lambda device: properties)
    assert from_device(torch.device("cuda", 0)) == H100
    assert H100.target == "sm_90"


def test_an_unknown_capability_gets_the_fewest_blocks(monkeypatch: pytest.MonkeyPatch):
    properties = fake_properties(
        name="from the future",
        major=99,
        minor=0,
        warp_size=32,
        regs_per_multiprocessor=65536,
        shared_memory_per_block_optin=227 * KIB,
        shared_memory_per_multiprocessor=228 * KIB,
    )
    monkeypatch.setattr(resources.torch.cuda, "get_device_properties", lambda device: properties)
    assert from_device(torch.device("cuda", 0)).max_blocks_per_sm == 16


def test_limits_of_an_amd_device(monkeypatch: pytest.MonkeyPatch):
    properties = fake_properties(
        name=MI300X.name, gcnArchName="gfx942:sramecc+:xnack-", shared_memory_per_block=64 * KIB
    )
    properties.multi_processor_count = 304
    monkeypatch.setattr(resources.torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(resources.torch.version, "hip", "7.0")
    assert from_device(torch.device("cuda", 0)) == MI300X
    assert MI300X.target == "gfx942"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_limits_of_this_machine():
    limits = from_device(torch.device("cuda", 0))
    assert 48 * KIB <= limits.shared_per_block <= limits.shared_per_sm
    assert resident_programs(limits, registers=32, num_warps=4, shared=0) >= limits.num_sms
