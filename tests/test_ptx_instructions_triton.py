"""Small Triton kernels, compiled and run instruction by instruction, against torch: layouts, swizzles, conversions."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from holdfast.kernels.ptx.executor import PtxExecutor

TARGETS = pytest.mark.parametrize("target", ["sm_80", "sm_90"])
DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "tf32x3": torch.float32}


def run(target, kernel, grid=1, num_warps=4, **arguments):
    options = {"num_warps": num_warps, "num_stages": 1}
    PtxExecutor(target, seed=int(torch.randint(1 << 20, ()))).run(kernel, grid, arguments, **options)


def laid_out(tensor, transposed):
    return tensor.T.contiguous().T if transposed else tensor.contiguous()


@triton.jit
def _dot(a, b, c, strides, SHAPE: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr, TWICE: tl.constexpr):
    M: tl.constexpr = SHAPE[0]
    N: tl.constexpr = SHAPE[1]
    K: tl.constexpr = SHAPE[2]
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for step in range(STEPS):
        left = tl.load(a + m[:, None] * strides[0] + (step * K + k)[None, :] * strides[1])
        right = tl.load(b + (step * K + k)[:, None] * strides[2] + n[None, :] * strides[3])
        if TWICE:  # A comes from registers
            left = (left + left).to(left.dtype)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], total)


# (M, N, K): the widths of K, or of M and N where transposed, are those of all swizzles.
@pytest.mark.sampled
@TARGETS
@pytest.mark.parametrize("kind", list(DTYPE))
@pytest.mark.parametrize(
    ("shape", "num_warps", "twice"),
    [
        ((16, 16, 16), 1, False),
        ((64, 16, 32), 4, False),
        ((64, 64, 64), 4, True),
        ((128, 32, 16), 8, False),
        ((32, 128, 32), 4, True),
        ((64, 8, 128), 4, False),
    ],
)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_dot(target, kind, shape, num_warps, twice, transposed):
    m, n, k = shape
    a, b = (torch.randn(*s).to(DTYPE[kind]) for s in ((m, 2 * k), (2 * k, n)))
    a, b = laid_out(a, transposed[0]), laid_out(b, transposed[1])
    c = torch.full((m, n), torch.nan)
    strides, precision = (*a.stride(), *b.stride()), kind if kind.startswith("tf32") else "ieee"
    run(target, _dot, a=a, b=b, c=c, strides=strides, SHAPE=shape, STEPS=2, PRECISION=precision, TWICE=twice,
        num_warps=num_warps)  # fmt: skip
    left, right = (a + a if twice else a).double(), b.double()
    # TF32 has 10 bits of mantissa, three of its products together about 21; operands of 16 bits are exact.
    unit = {"tf32": 2.0**-10, "tf32x3": 2.0**-20}.get(kind, 0.0)
    bound = left.abs() @ right.abs() * (2 * unit + 2.0**-22) + 1e-30
    assert ((c.double() - left @ right).abs() <= bound).all()


@triton.jit
def _rows(x, sums, largest, places, running, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tile = tl.load(x + r[:, None] * COLUMNS + c[None, :])
    tl.store(sums + c, tl.sum(tile, axis=0))
    tl.store(largest + r, tl.max(tile, axis=1))
    tl.store(places + r, tl.argmax(tile, axis=1))
    tl.store(running + r[:, None] * COLUMNS + c[None, :], tl.cumsum(tile, axis=1))


@pytest.mark.sampled(1)
@TARGETS
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (8, 128), (64, 16), (128, 2)])
@pytest.mark.parametrize("num_warps", [1, 4, 8])
def test_reduce_and_scan(target, rows, columns, num_warps):
    x = torch.randn(rows, columns)
    sums, largest, running = torch.empty(columns), torch.empty(rows), torch.empty(rows, columns)
    places = torch.empty(rows, dtype=torch.int32)
    run(target, _rows, x=x, sums=sums, largest=largest, places=places, running=running, ROWS=rows, COLUMNS=columns,
        num_warps=num_warps)  # fmt: skip
    torch.testing.assert_close(sums, x.sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(running, x.cumsum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(largest, x.amax(1))
    assert torch.equal(places.long(), x.argmax(1))


@triton.jit
def _moved(x, index, turned, gathered, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tile = tl.load(x + r[:, None] * COLUMNS + c[None, :])
    tl.store(turned + c[:, None] * ROWS + r[None, :], tl.trans(tile))
    which = tl.load(index + r[:, None] * COLUMNS + c[None, :])
    tl.store(gathered + r[:, None] * COLUMNS + c[None, :], tl.gather(tile, which, 1))


@pytest.mark.sampled(1)
@TARGETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.int64], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (32, 32), (128, 8)])
@pytest.mark.parametrize("num_warps", [1, 4])
def test_transpose_and_gather(target, dtype, rows, columns, num_warps):
    x = torch.randint(-100, 100, (rows, columns)).to(dtype)
    index = torch.randint(columns, (rows, columns), dtype=torch.int32)
    turned, gathered = torch.empty(columns, rows, dtype=dtype), torch.empty_like(x)
    run(target, _moved, x=x, index=index, turned=turned, gathered=gathered, ROWS=rows, COLUMNS=columns,
        num_warps=num_warps)  # fmt: skip
    assert torch.equal(turned, x.T)
    assert torch.equal(gathered, x.gather(1, index.long()))


@triton.jit
def _atomics(counter, total, seen, order, SIZE: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, SIZE)
    tl.atomic_add(total + i % 8, (i + pid).to(tl.float32))
    tl.atomic_max(seen, pid)
    place = tl.atomic_add(counter, 1, sem="acq_rel")
    tl.store(order + place, pid)
    tl.atomic_xchg(seen + 1 + pid, pid + 7)
    tl.atomic_cas(seen + 1 + pid, pid + 7, -pid)


@TARGETS
def test_atomics(target):
    programs, size = 5, 64
    counter, total = torch.zeros(1, dtype=torch.int32), torch.zeros(8)
    seen, order = torch.zeros(1 + programs, dtype=torch.int32), torch.full((programs,), -1, dtype=torch.int32)
    run(target, _atomics, grid=programs, counter=counter, total=total, seen=seen, order=order, SIZE=size)
    i = torch.arange(size)
    expected = sum(torch.zeros(8).index_add_(0, i % 8, (i + pid).float()) for pid in range(programs))
    assert torch.equal(total, expected)
    assert counter.item() == programs
    assert order.sort().values.tolist() == list(range(programs))
    assert seen.tolist() == [programs - 1, *(-pid for pid in range(programs))]


@triton.jit
def _elementwise(x, y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, (a.to(tl.bfloat16).to(tl.float32) + b.to(tl.float16).to(tl.float32)))
    tl.store(out + SIZE + i, tl.fma(a, b, a))
    tl.store(out + 2 * SIZE + i, a / b)
    tl.store(out + 3 * SIZE + i, tl.exp(a))
    tl.store(out + 4 * SIZE + i, tl.log(tl.abs(b)))
    tl.store(out + 5 * SIZE + i, tl.sqrt(tl.abs(b)) + tl.rsqrt(tl.abs(b)))
    tl.store(out + 6 * SIZE + i, tl.maximum(a, b) - tl.minimum(a, b))
    tl.store(out + 7 * SIZE + i, tl.where(a < b, tl.sigmoid(a), i // 7 % 5))


@TARGETS
def test_elementwise(target):
    size = 256
    x, y = torch.randn(2, size)
    out = torch.empty(8, size)
    run(target, _elementwise, x=x, y=y, out=out, SIZE=size)
    i = torch.arange(size)
    expected = torch.stack(
        [
            x.bfloat16().float() + y.half().float(),
            (x.double() * y + x).float(),
            x / y,
            x.exp(),
            y.abs().log(),
            y.abs().sqrt() + y.abs().rsqrt(),
            (x - y).abs(),
            torch.where(x < y, x.sigmoid(), (i // 7 % 5).float()),
        ]
    )
    assert torch.equal(out[:2], expected[:2])
    torch.testing.assert_close(out[2:], expected[2:], rtol=2e-6, atol=1e-6)
