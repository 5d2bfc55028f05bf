"""Instructions of a whole warp against NVIDIA's PTX ISA: shuffles, and the matrices that lanes hold in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.kernels.ptx import matrix
from holdfast.kernels.ptx.errors import DivergenceError, UnknownInstructionError
from holdfast.kernels.ptx.instructions import COLLECTIVE
from holdfast.kernels.ptx.wgmma import WGMMA

WARPS = 3
ALL = np.ones((WARPS, 32), bool)
FULL = np.full((WARPS, 32), 0xFFFFFFFF, np.uint32)


@pytest.fixture
def numbers():
    return np.random.default_rng(int(torch.randint(1 << 30, ())))


def words(numbers, *shape):
    return numbers.integers(0, 1 << 32, shape or (WARPS, 32), np.uint64).astype(np.uint32)


def everywhere(value):
    return np.full((WARPS, 32), value, np.uint32)


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """ISA, "shfl.sync": the lane that is read, and whether it lies in the segment."""
    bval, cval, mask = b & 31, c & 31, c >> 8 & 31
    max_lane = lane & mask | cval & ~mask
    min_lane = lane & mask
    if mode == "up":
        j = lane - bval
        inside = j >= max_lane
    elif mode == "down":
        j = lane + bval
        inside = j <= max_lane
    elif mode == "bfly":
        j = lane ^ bval
        inside = j <= max_lane
    else:
        j = min_lane | bval & ~mask
        inside = j <= max_lane
    return (j if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffle(mode, numbers):
    for width in (32, 16, 8, 2):
        segments = (32 - width) << 8
        value, b = words(numbers), numbers.integers(0, 32, (WARPS, 32)).astype(np.uint32)
        c = everywhere(segments | (0 if mode == "up" else 31))
        found, inside = COLLECTIVE[f"shfl.sync.{mode}.b32|"].run(ALL, value, b, c, FULL)
        assert (COLLECTIVE[f"shfl.sync.{mode}.b32"].run(ALL, value, b, c, FULL) == found).all()
        for warp in range(WARPS):
            for lane in range(32):
                source, expected = shuffled(mode, lane, int(b[warp, lane]), int(c[warp, lane]))
                assert found[warp, lane] == value[warp, source]
                assert inside[warp, lane] == expected


def test_a_shuffle_stays_within_its_clamp():
    value, one, clamp = everywhere(0) + np.arange(32, dtype=np.uint32), everywhere(1), everywhere(9)
    found, inside = COLLECTIVE["shfl.sync.down.b32|"].run(ALL, value, one, clamp, FULL)
    assert found[0].tolist() == [*range(1, 10), *range(9, 32)]
    assert inside[0].tolist() == [True] * 9 + [False] * 23


def test_some_lanes_alone(numbers):
    here = ALL.copy()
    here[:, 8:] = False
    mask, value = everywhere(0xFF), words(numbers)
    assert (
        COLLECTIVE["redux.sync.max.u32"].run(here, value, mask)[here].reshape(-1, 8)
        == value[:, :8].max(1, keepdims=True)
    ).all()
    here[1] = False  # a warp that is elsewhere
    with pytest.raises(DivergenceError, match="lane 0 of warp 0 waits for lanes 0xffffffff, here are 0xff"):
        COLLECTIVE["shfl.sync.bfly.b32"].run(here, value, everywhere(1), everywhere(31), FULL)
    with pytest.raises(DivergenceError, match="not here"):
        COLLECTIVE["shfl.sync.bfly.b32"].run(here, value, everywhere(8), everywhere(31), mask)


@pytest.mark.parametrize("kind", ["u32", "s32", "b32"])
def test_reductions(kind, numbers):
    value = words(numbers)
    read = value.view(np.int32) if kind == "s32" else value
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    if kind == "b32":
        functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    for name, combine in functions.items():
        found = COLLECTIVE[f"redux.sync.{name}.{kind}"].run(ALL, value, FULL)
        for warp in range(WARPS):
            total = read[warp, 0]
            for lane in range(1, 32):
                total = combine(total, read[warp, lane])
            assert (found[warp] == total.view(np.uint32)).all()


def test_votes(numbers):
    for predicate in (ALL, ~ALL, numbers.random((WARPS, 32)) < 0.5):
        ballot = COLLECTIVE["vote.sync.ballot.b32"].run(ALL, predicate, FULL)
        assert [int(x) for x in ballot[:, 5]] == [sum(int(p) << i for i, p in enumerate(warp)) for warp in predicate]
        for mode, expected in (("any", any), ("all", all), ("uni", lambda p: len(set(p)) == 1)):
            found = COLLECTIVE[f"vote.sync.{mode}.pred"].run(ALL, predicate, FULL)
            assert found[:, 7].tolist() == [expected(warp) for warp in predicate.tolist()]


def test_one_lane_is_elected():
    lane, elected = COLLECTIVE["elect.sync|"].run(ALL, FULL)
    assert (elected.sum(axis=1) == 1).all()
    assert (np.argmax(elected, axis=1)[:, None] == lane).all()


# mma.sync: rows and columns of the elements of each lane, as the ISA's sections on fragments give them.


def place_16(matrix: str, lane: int, i: int) -> tuple[int, int]:
    """m16n8k16 with 16-bit elements."""
    group, thread = lane >> 2, lane % 4
    if matrix == "A":
        row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if matrix == "B":
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def place_tf32(matrix: str, lane: int, i: int) -> tuple[int, int]:
    """m16n8k8 with TF32 elements."""
    group, thread = lane >> 2, lane % 4
    if matrix == "A":
        return (group if i in (0, 2) else group + 8), (thread if i < 2 else thread + 4)
    if matrix == "B":
        return (thread if i == 0 else thread + 4), group
    return place_16("C", lane, i)


def registers(matrix: np.ndarray, name: str, place, count: int) -> tuple[np.ndarray, ...]:
    """Of 32-bit words, [warps, 32], from a matrix [warps, rows, columns] of bits."""
    elements = np.empty((len(matrix), 32, count), matrix.dtype)
    for lane in range(32):
        for i in range(count):
            row, column = place(name, lane, i)
            elements[:, lane, i] = matrix[:, row, column]
    packed = elements.view(np.uint32)
    return tuple(np.ascontiguousarray(packed[..., i]) for i in range(packed.shape[-1]))


def drawn(numbers, kind: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits of elements, and the numbers that they stand for."""
    values = torch.from_numpy(numbers.normal(size=shape).astype(np.float32))
    if kind == "tf32":
        bits = values.numpy().view(np.uint32)
        return bits, (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    rounded = values.to({"bf16": torch.bfloat16, "f16": torch.float16}[kind])
    return rounded.view(torch.int16).numpy().view(np.uint16), rounded.double().numpy()


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_mma(kind, numbers):
    k, place, per_word = (8, place_tf32, 1) if kind == "tf32" else (16, place_16, 2)
    a_bits, a = drawn(numbers, kind, WARPS, 16, k)
    b_bits, b = drawn(numbers, kind, WARPS, k, 8)
    c = numbers.normal(size=(WARPS, 16, 8)).astype(np.float32)
    sources = (
        registers(a_bits, "A", place, 4 * per_word),
        registers(b_bits, "B", place, 2 * per_word),
        registers(c.view(np.uint32), "C", place, 4),
    )
    found = COLLECTIVE[f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32"].run(ALL, *sources)
    expected = (a @ b + c).astype(np.float32)
    for register, wanted in zip(found, registers(expected.view(np.uint32), "C", place, 4), strict=True):
        assert np.abs(register.view(np.float32) - wanted.view(np.float32)).max() < 1e-6


def test_a_nan_of_a_product_is_the_canonical_one(numbers):
    zeros, nan = (everywhere(0),) * 4, (everywhere(0x7FC17FC1),) * 4
    opcode = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert all((d == 0x7FFFFFFF).all() for d in COLLECTIVE[opcode].run(ALL, nan, zeros[:2], zeros))


@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_dealt_to_the_lanes_and_collected(tiles, transposed, numbers):
    name = f"sync.aligned.m8n8.x{tiles}{'.trans' if transposed else ''}.shared.b16"
    load, store = matrix.LDMATRIX[f"ldmatrix.{name}"], matrix.STMATRIX[f"stmatrix.{name}"]
    elements = numbers.integers(0, 1 << 16, (WARPS, tiles, 8, 8)).astype(np.uint16)
    rows = elements.view(np.uint8).reshape(WARPS, 8 * tiles, 16)
    found = load.deal(rows)
    for warp in range(WARPS):
        for tile in range(tiles):
            for lane in range(32):
                one, two = ((lane // 4, 2 * (lane % 4) + i) for i in range(2))
                if transposed:
                    one, two = one[::-1], two[::-1]
                low, high = (int(elements[(warp, tile, *place)]) for place in (one, two))
                assert found[tile][warp, lane] == high << 16 | low
    assert (store.collect(*found) == rows).all()
    named = words(numbers)
    assert (load.addresses(named) == named[:, : 8 * tiles]).all()


# wgmma.


def swizzle(unit: int, bits: int) -> int:
    """CuTe's Swizzle<bits, 4, 3> of an address in bytes, here in units of 16 bytes."""
    return unit ^ (unit >> 3 & (1 << bits) - 1)


def canonical_unit(swizzle_bits: int, mn_major: bool, leading: int, stride: int, mn: int, k: int, per_unit: int) -> int:
    """Unit of 16 bytes of element (mn, k), before the swizzle: the ISA's table of canonical layouts.

    With T elements in a unit and a swizzle of w = 2, 4 or 8 units, in elements:
    K-major   none ((8,m),(T,2k)):((1T,SBO),(1,LBO))      swizzled ((8,m),(T,2k)):((wT,SBO),(1,T))
    MN-major  none ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))   swizzled ((T,w,m),(8,k)):((1,T,LBO),(wT,SBO))
    """
    wide = 1 << swizzle_bits
    if not mn_major:
        inner, outer = k // per_unit, mn // 8
        return mn % 8 * wide + outer * stride + inner * (1 if swizzle_bits else leading)
    if not swizzle_bits:
        return mn // per_unit * stride + k % 8 + k // 8 * leading
    unit = mn // per_unit
    return unit % wide + unit // wide * leading + k % 8 * wide + k // 8 * stride


@pytest.mark.parametrize("bits", [0, 1, 2, 3])
@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize(("kind", "k"), [("bf16", 16), ("tf32", 8)])
def test_descriptors(bits, mn_major, kind, k):
    """Strides as of a tile of 64 x 64 elements, and an address within a block, as the second product's along K is."""
    spec = WGMMA[f"wgmma.mma_async.sync.aligned.m64n64k{k}.f32.{kind}.{kind}"]
    per_unit = 16 // spec.itemsize
    if bits == 0:
        leading, stride = (8, 16 * 8 // per_unit) if mn_major else (512, 8)
    else:
        leading, stride = (64 * k, 8 << bits) if mn_major else (1, 8 << bits)
    start = (2048 + (2 if bits > 1 and not mn_major else 0)) % (1 << 14)
    mode = {0: 0, 1: 3, 2: 2, 3: 1}[bits]
    descriptor = start | leading << 16 | stride << 32 | mode << 62
    expected = np.array(
        [
            [
                16 * swizzle(start + canonical_unit(bits, mn_major, leading, stride, mn, of_k, per_unit), bits)
                + (mn if mn_major else of_k) % per_unit * spec.itemsize
                for of_k in range(k)
            ]
            for mn in range(64)
        ]
    )
    assert len(np.unique(expected)) == expected.size
    assert (spec.a_bytes(descriptor, mn_major) == expected).all()
    assert (spec.b_bytes(descriptor, mn_major) == expected).all()
    with_offset = descriptor | 2 << 49
    if bits == 0:  # no pattern that could begin elsewhere
        assert (spec.a_bytes(with_offset, mn_major) == expected).all()
    else:
        with pytest.raises(UnknownInstructionError, match="base offset"):
            spec.a_bytes(with_offset, mn_major)


@pytest.mark.parametrize("n", [8, 16, 64, 256])
@pytest.mark.parametrize(("kind", "k"), [("bf16", 16), ("f16", 16), ("tf32", 8)])
def test_wgmma(n, kind, k, numbers):
    spec = WGMMA[f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind}"]
    a_bits, a = drawn(numbers, kind, 64, k)
    b_bits, b = drawn(numbers, kind, n, k)
    before = numbers.normal(size=(64, n)).astype(np.float32)

    def place(thread: int, i: int) -> tuple[int, int]:
        """ISA, "Register fragments for wgmma", matrix D."""
        warp, lane = thread // 32, thread % 32
        return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + lane % 4 * 2 + i % 2

    def as_registers(d: np.ndarray) -> tuple[np.ndarray, ...]:
        values = [[d[place(thread, i)] for thread in range(128)] for i in range(spec.registers)]
        return tuple(np.array(values, np.float32).view(np.uint32).reshape(-1, 4, 32))

    expected = a @ b.T
    for scale_a, scale_b, added in ((1, 1, before), (1, 1, None), (-1, 1, before), (-1, -1, before)):
        found = spec.product(a_bits, b_bits, None if added is None else as_registers(added), scale_a, scale_b)
        wanted = as_registers(scale_a * scale_b * expected + (0 if added is None else added))
        assert len(found) == n // 2
        for one, other in zip(found, wanted, strict=True):
            assert np.abs(one.view(np.float32) - other.view(np.float32)).max() < 1e-5
    place_a = place_tf32 if kind == "tf32" else place_16
    fragments = registers(a_bits.reshape(4, 16, k), "A", place_a, 4 if kind == "tf32" else 8)
    assert (spec.a_registers(fragments) == a_bits).all()
