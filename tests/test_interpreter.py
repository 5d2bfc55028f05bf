"""The concurrent interpreter finds what it is there to find, and computes what a GPU computes."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import triton
import triton.language as tl

from holdfast.kernels.interpreter import Interpreter, OutOfBoundsError, RaceError

pytest.importorskip("greenlet")  # a lent machine lacks it, and its GPU tests lie beside this file

from holdfast.kernels.executor import DeadlockError
from holdfast.kernels.schedulers import SCHEDULERS


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
def message_with_flag(
    data_ptr, flag_ptr, out_ptr, SEND: tl.constexpr, WAIT: tl.constexpr, BARRIER: tl.constexpr, VOLATILE: tl.constexpr
):
    """Program 0 sends 8 numbers and raises a flag; program 1 waits for the flag and reads them."""
    lanes = tl.arange(0, 8)
    if tl.program_id(0) == 0:
        tl.store(data_ptr + lanes, lanes + 1)
        if BARRIER:
            tl.debug_barrier()
        tl.atomic_add(flag_ptr, 1, sem=SEND)
    else:
        while tl.atomic_add(flag_ptr, 0, sem=WAIT) == 0:
            pass
        tl.store(out_ptr + lanes, tl.load(data_ptr + lanes, volatile=VOLATILE))


@triton.jit
def read_in_turn(data_ptr, out_ptr, VOLATILE: tl.constexpr):
    """Program 0 stores 1 to 8, one after the other; program 1 reads the place eight times."""
    for i in range(8):
        if tl.program_id(0) == 0:
            tl.store(data_ptr, i + 1)
        else:
            tl.store(out_ptr + i, tl.load(data_ptr, volatile=VOLATILE))


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


FLAG = {"SEND": "release", "WAIT": "acquire", "BARRIER": True, "VOLATILE": True}


def messages(**options):
    """What the reader sees, schedule by schedule, and whether that is a race."""
    for name, seed in itertools.product(SCHEDULERS, range(10)):
        data, flag, out = (torch.zeros(8, dtype=torch.int32) for _ in range(3))
        interpreter = Interpreter(seed, scheduler=name, raise_on_race=False)
        values = [data, flag, out, *(FLAG | options).values()]
        interpreter.run(message_with_flag, 2, dict(zip(message_with_flag.arg_names, values, strict=True)))
        yield out.tolist()


@pytest.mark.parametrize("volatile", [False, True])
def test_a_release_and_an_acquire_order_the_message(volatile):
    """A load behind them may even be served from the L1, which an acquire empties."""
    assert all(message == list(range(1, 9)) for message in messages(VOLATILE=volatile))


@pytest.mark.parametrize("missing", [{"SEND": "relaxed"}, {"WAIT": "relaxed"}, {"BARRIER": False}], ids=str)
def test_a_message_that_nothing_orders_is_seen_torn(missing):
    """Some schedule shows the flag before the message: without the barrier, what other threads store."""
    assert any(0 in message for message in messages(**missing))


def test_volatile_loads_never_go_back_in_time():
    went_back = {}
    for volatile, seed in itertools.product([True, False], range(60)):
        data, out = torch.zeros(1, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
        values = dict(zip(read_in_turn.arg_names, [data, out, volatile], strict=True))
        Interpreter(seed, raise_on_race=False).run(read_in_turn, 2, values)
        went_back.setdefault(volatile, []).append(out.tolist() != out.sort().values.tolist())
    assert not any(went_back[True])
    assert any(went_back[False])


def test_a_store_becomes_visible_late():
    """Without an order, a reader may miss a store that the writer has long made."""
    found = set()
    for seed in range(60):
        data, out = torch.zeros(1, dtype=torch.int32), torch.full((8,), -1, dtype=torch.int32)
        values = dict(zip(read_in_turn.arg_names, [data, out, True], strict=True))
        Interpreter(seed, scheduler="far_ahead").run(read_in_turn, 2, values)
        found |= set(out.tolist())
    assert {0, 8} <= found
    assert len(found) > 3


def test_a_cached_load_may_never_see_a_store():
    """Half of all launches have an L1 that keeps what it has."""
    ends = set()
    for seed in range(20):
        data, out = torch.zeros(1, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
        values = dict(zip(read_in_turn.arg_names, [data, out, False], strict=True))
        Interpreter(seed, scheduler="round_robin", raise_on_race=False).run(read_in_turn, 2, values)
        ends.add(tuple(out.tolist()) == (0,) * 8)
    assert ends == {False, True}


def test_a_plain_load_of_what_another_program_stores_is_a_race():
    data, out = torch.zeros(1, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with pytest.raises(RaceError, match=r"not volatile.*launch 1 of interpret\(seed=3, scheduler='random'\)"):
        run(read_in_turn, 2, data, out, seed=3, VOLATILE=False)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_and_a_seed_are_a_schedule(name):
    def order(seed):
        interpreter = Interpreter(seed, scheduler=name)
        data, out = torch.zeros(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
        interpreter.run(sum_of_ranks, 8, dict(zip(sum_of_ranks.arg_names, [data, out, 8], strict=True)))
        assert out.tolist() == [36] * 8
        return interpreter.trace

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(4)}) > 1


def test_schedulers_do_what_they_are_named_after():
    """Eight programs of nine turns each that wait for nobody."""

    def trace(name, seed):
        interpreter = Interpreter(seed, scheduler=name)
        values = [torch.zeros(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)]
        interpreter.run(copy_in_steps, 8, dict(zip(copy_in_steps.arg_names, values, strict=True)))
        return interpreter.trace

    for seed in range(5):
        turns = trace("round_robin", seed)
        assert all((b - a) % 8 == 1 for a, b in itertools.pairwise(turns))
        turns = trace("preempt", seed)
        assert all(a != b for a, b in itertools.pairwise(turns[:50]))
        turns = trace("far_ahead", seed)
        assert len(set(turns[: turns.count(turns[0])])) == 1
        turns = trace("starve_one", seed)
        assert len(set(turns[-turns.count(turns[-1]) :])) == 1
        turns = trace("priorities", seed)
        assert sum(a != b for a, b in itertools.pairwise(turns)) <= 7 + 2 * 3


@triton.jit
def copy_in_steps(data_ptr, out_ptr):
    rank = tl.program_id(0)
    for _ in range(4):
        tl.store(out_ptr + rank, tl.load(data_ptr + rank))


def test_a_program_is_killed_after_its_turns():
    data, out = torch.arange(8, dtype=torch.int32), torch.full((8,), -1, dtype=torch.int32)
    interpreter = Interpreter(0, stalled={2: 0, 3: 4})
    interpreter.run(copy_in_steps, 8, dict(zip(copy_in_steps.arg_names, [data, out], strict=True)))
    assert out.tolist() == [0, 1, -1, 3, 4, 5, 6, 7]
    assert [interpreter.trace.count(program) for program in range(8)] == [9, 9, 0, 4, 9, 9, 9, 9]


def test_a_late_program_starts_when_all_others_have_ended():
    data, out = torch.arange(8, dtype=torch.int32), torch.full((8,), -1, dtype=torch.int32)
    interpreter = Interpreter(0, late={5})
    interpreter.run(copy_in_steps, 8, dict(zip(copy_in_steps.arg_names, [data, out], strict=True)))
    assert out.tolist() == list(range(8))
    assert interpreter.trace[-9:] == [5] * 9
    assert 5 not in interpreter.trace[:-9]


def test_two_values_stored_to_one_address_are_a_race():
    with pytest.raises(RaceError, match="store different values to the same address"):
        run(both_store, 2, torch.zeros(1, dtype=torch.int32))


@pytest.mark.parametrize("store", [False, True], ids=["load", "store"])
def test_memory_of_nobody_is_out_of_bounds(store):
    """Of another tensor's memory, a view's neighbours, and what lies between a view's rows."""
    data = torch.zeros(8, dtype=torch.int32)
    run(touch, 1, data, N=8, STORE=store)
    with pytest.raises(OutOfBoundsError, match="program 0 touches 8 elements"):
        run(touch, 1, data, N=16, STORE=store)
    with pytest.raises(OutOfBoundsError, match="program 0 touches 4 elements"):
        run(touch, 1, data[:4], N=8, STORE=store)
    with pytest.raises(OutOfBoundsError, match="program 0 touches 4 elements"):
        run(touch, 1, data[::2], N=8, STORE=store)
    with pytest.raises(OutOfBoundsError, match="program 0 touches 2 elements"):
        run(touch, 1, torch.zeros(8, dtype=torch.int16)[:4].view(torch.int32), N=4, STORE=store)


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


def test_a_wait_without_an_end_is_a_deadlock_too():
    interpreter = Interpreter(0, raise_on_deadlock=False, most_turns=100)
    with pytest.raises(DeadlockError, match="have not ended after 100 turns"):
        interpreter.run(wait_for_nobody, 2, {"flag_ptr": torch.zeros(1, dtype=torch.int32)})
    assert len(interpreter.trace) == 100


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


EDITED = """import triton
import triton.language as tl


@triton.jit
def first(ptr):
    tl.store(ptr, 1)


@triton.jit
def second(ptr):
    tl.store(ptr, 2)
"""


def test_a_file_that_was_edited_after_its_import_is_an_error(tmp_path, monkeypatch):
    """Fuzzing failed twice without an explanation: with a KeyError, as other lines were where the function had been."""
    path = tmp_path / "edited_since.py"
    path.write_text(EDITED)
    monkeypatch.syspath_prepend(tmp_path)
    import edited_since

    data = torch.zeros(1, dtype=torch.int32)
    Interpreter().run(edited_since.first, 1, {"ptr": data})
    assert data.item() == 1
    path.write_text("\n" * 5 + EDITED)
    with pytest.raises(RuntimeError, match="edited_since, where second is, was edited since its import"):
        Interpreter().run(edited_since.second, 1, {"ptr": data})
    monkeypatch.delitem(sys.modules, "edited_since")
