"""The concurrent interpreter finds what it is there to find, and computes what a GPU computes."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from holdfast.kernels.interpreter import Interpreter, OutOfBoundsError, RaceError

pytest.importorskip("greenlet")  # a lent machine lacks it, and its GPU tests lie beside this file

from holdfast.kernels.schedule import DeadlockError


@triton.jit
def sum_of_ranks(data_ptr, out_ptr, PROGRAMS: tl.constexpr):
    """Every program stores its rank and adds up everybody's, read volatile until they are there."""
    rank = tl.program_id(0)
    tl.store(data_ptr + rank, rank + 1)
    everyone = tl.arange(0, PROGRAMS)
    values = tl.load(data_ptr + everyone, volatile=True)
    while tl.min(values, axis=0) == 0:
        values = tl.load(data_ptr + everyone, volatile=True)
    tl.store(out_ptr + rank, tl.sum(values, axis=0))


@triton.jit
def message_with_flag(data_ptr, flag_ptr, out_ptr, RELEASE: tl.constexpr):
    """Program 0 sends 8 numbers and raises a flag; program 1 waits for the flag and reads them."""
    lanes = tl.arange(0, 8)
    if tl.program_id(0) == 0:
        tl.store(data_ptr + lanes, lanes + 1)
        if RELEASE:
            tl.atomic_add(flag_ptr, 1, sem="release")
        else:
            tl.atomic_add(flag_ptr, 1, sem="relaxed")
    else:
        while tl.atomic_add(flag_ptr, 0, sem="acquire") == 0:
            pass
        tl.store(out_ptr + lanes, tl.load(data_ptr + lanes, volatile=True))


@triton.jit
def plain_read_of_others(data_ptr, out_ptr):
    rank = tl.program_id(0)
    tl.store(data_ptr + rank, rank + 1)
    tl.atomic_add(out_ptr, 1, sem="release")
    while tl.atomic_add(out_ptr, 0, sem="acquire") < 2:
        pass
    tl.store(out_ptr + 1 + rank, tl.load(data_ptr + 1 - rank))


@triton.jit
def both_store(data_ptr):
    tl.store(data_ptr, tl.program_id(0))


@triton.jit
def wait_for_nobody(flag_ptr):
    while tl.atomic_add(flag_ptr, 0, sem="acquire") == 0:
        pass


@triton.jit
def product(a_ptr, b_ptr, c_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    c = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), input_precision=PRECISION)
    tl.store(c_ptr + at, c.to(c_ptr.dtype.element_ty))


def run(kernel, grid, *tensors, seed=0, **constexprs):
    Interpreter(seed).run(kernel, grid, dict(zip(kernel.arg_names, [*tensors, *constexprs.values()], strict=True)))


@pytest.mark.parametrize("seed", range(10))
def test_programs_that_wait_for_each_other_all_end(seed):
    data, out = torch.zeros(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    run(sum_of_ranks, 8, data, out, seed=seed, PROGRAMS=8)
    assert out.tolist() == [36] * 8


def test_the_same_seed_gives_the_same_interleaving():
    """Nothing but the seed decides: the order in which memory changed is the same twice."""

    def order(seed: int) -> list[int]:
        interpreter = Interpreter(seed)
        data, out = torch.zeros(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
        interpreter.run(sum_of_ranks, 8, dict(zip(sum_of_ranks.arg_names, [data, out, 8], strict=True)))
        return interpreter.trace

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_a_flag_with_release_orders_the_message():
    for seed in range(20):
        data, flag, out = (torch.zeros(8, dtype=torch.int32) for _ in range(3))
        run(message_with_flag, 2, data, flag, out, seed=seed, RELEASE=True)
        assert out.tolist() == list(range(1, 9))


def test_a_flag_without_release_is_caught():
    """Some schedule shows the flag before the message, as weak memory does."""
    torn = 0
    for seed in range(20):
        data, flag, out = (torch.zeros(8, dtype=torch.int32) for _ in range(3))
        run(message_with_flag, 2, data, flag, out, seed=seed, RELEASE=False)
        torn += out.tolist() != list(range(1, 9))
    assert torn > 0


def test_a_plain_load_of_what_another_program_stores_is_a_race():
    with pytest.raises(RaceError, match="not volatile"):
        run(plain_read_of_others, 2, torch.zeros(2, dtype=torch.int32), torch.zeros(3, dtype=torch.int32))


def test_two_values_stored_to_one_address_are_a_race():
    with pytest.raises(RaceError, match="store different values to the same address"):
        run(both_store, 2, torch.zeros(1, dtype=torch.int32))


@pytest.mark.parametrize("store", [False, True], ids=["load", "store"])
def test_memory_of_nobody_is_out_of_bounds(store):
    """One element too many, of memory that is there: a view's neighbour is fine, another tensor's memory is not."""
    data = torch.zeros(8, dtype=torch.int32)
    run(touch, 1, data[:4], N=8, STORE=store)
    with pytest.raises(OutOfBoundsError, match="program 0 touches 8 elements"):
        run(touch, 1, data, N=16, STORE=store)


@triton.jit
def touch(data_ptr, N: tl.constexpr, STORE: tl.constexpr):
    lanes = tl.arange(0, N)
    if STORE:
        tl.store(data_ptr + lanes, lanes)
    else:
        tl.load(data_ptr + lanes)


def test_waiting_for_nobody_is_a_deadlock():
    with pytest.raises(DeadlockError, match="programs 0, 1 wait"):
        run(wait_for_nobody, 2, torch.zeros(1, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dot_multiplies_values(dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    c = torch.full((16, 16), float("nan"))
    run(product, 1, a, b, c, N=16, PRECISION="ieee")
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=0, atol=1e-5)


def test_tf32_dot_rounds_its_operands():
    a = torch.full((16, 16), 1 + 2.0**-12)
    c = torch.full((16, 16), float("nan"))
    run(product, 1, a, torch.eye(16), c, N=16, PRECISION="tf32")
    assert torch.equal(c, torch.ones(16, 16))


def test_conversion_to_bfloat16_is_torchs():
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38, 1e-40])
    values = torch.cat([special, torch.randn(16 * 16 - 8) * 10.0 ** torch.randint(-8, 8, (16 * 16 - 8,))])
    a = values.reshape(16, 16)
    c = torch.zeros(16, 16, dtype=torch.bfloat16)
    run(cast, 1, a, c, N=256)
    assert torch.equal(c, a.bfloat16())


def test_a_nan_stays_a_nan_in_bfloat16():
    payloads = torch.tensor([-1, 0x7FC00000, 0x7F800001, -0x7FFFFF], dtype=torch.int32)
    c = torch.zeros(4, dtype=torch.bfloat16)
    run(cast, 1, payloads.view(torch.float32), c, N=4)
    assert c.isnan().all()


@triton.jit
def cast(a_ptr, c_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(c_ptr + i, tl.load(a_ptr + i).to(c_ptr.dtype.element_ty))


def test_the_language_is_as_before_afterwards():
    before = (tl.load, tl.dot, tl.tensor.__add__, triton.JITFunction.__call__)
    with pytest.raises(DeadlockError):
        run(wait_for_nobody, 1, torch.zeros(1, dtype=torch.int32))
    assert before == (tl.load, tl.dot, tl.tensor.__add__, triton.JITFunction.__call__)
