"""The kernels' inline assembly, instruction by instruction (see ptx_blocks): waits, publishing, the gates' trade."""

from __future__ import annotations

import itertools
import random

import numpy as np
import ptx_blocks
import pytest
from ptx_blocks import M32, Thread, bits_of, float_of, run_warp, to_16_bits

from holdfast.kernels.loop.interleave import trade
from holdfast.kernels.loop.spin import CLOCK_POLLS, parts_poll, poll, publish_number, publish_word
from holdfast.kernels.ptx.instructions import LANEWISE
from holdfast.kernels.ptx.operation import operation
from holdfast.kernels.stall import describe_stall

CHUNKS, WORDS, CHUNK_BYTES, STATUS = 3, 8, 512, 1 << 20
LIMIT = 1000
MEMBERS, PROGRAM, STEP = 3, 7, 5
TEAM_2_STEP_5 = 3 << 20 | 5
KINDS = [("fp32", True), ("bf16", True), ("bf16", False), ("fp16", True), ("fp16", False)]
"""dtype, and whether two 16-bit numbers are compared at once."""


def number(dtype: str) -> int:
    """A word of ordinary numbers."""
    if dtype == "fp32":
        return bits_of(random.uniform(-1, 1))
    kind = {"bf16": "bf16x2", "fp16": "f16x2"}[dtype]
    return to_16_bits(bits_of(random.uniform(-1, 1)), kind) << 16 | to_16_bits(bits_of(random.uniform(-1, 1)), kind)


class Wait:
    """A thread's words of all chunks, `vector` at an address, in memory."""

    def __init__(self, dtype: str, pairs: bool, vector: int) -> None:
        self.text = poll(CHUNKS, WORDS, vector, CHUNK_BYTES, 1 if dtype == "fp32" else 2, pairs, MEMBERS)
        self.pointers = [4096 * (word // vector) + 4 * (word % vector) for word in range(WORDS)]
        self.places = [pointer + CHUNK_BYTES * chunk for chunk in range(CHUNKS) for pointer in self.pointers]
        self.written = {place: number(dtype) for place in self.places}

    def run(self, memory, writes=(), masks=None, limit=LIMIT, status=0, ns=100, step=STEP, program=PROGRAM):
        """The thread and its words after the wait, which begins with what a load brings."""
        masks = masks or [1] * len(self.places)
        first = [memory[place] if mask else 0 for place, mask in zip(self.places, masks, strict=True)]
        total = len(self.places)
        operands = [random.getrandbits(32) for _ in range(total)] + first + masks + self.pointers
        operands += [limit] * WORDS + [STATUS] * WORDS + [step] * WORDS
        thread = Thread(operands, dict(memory) | {STATUS: status}, writes, ns, program=program)
        return thread, thread.run(self.text)[:total], first


@pytest.fixture(params=list(itertools.product(KINDS, (4, 2, 1))), ids=str)
def kind(request):
    (dtype, pairs), vector = request.param
    return dtype, pairs, vector


@pytest.fixture
def wait(kind):
    return Wait(*kind)


def test_what_is_written_is_read_once(wait):
    thread, words, first = wait.run(wait.written)
    assert words == first
    assert not thread.loads
    assert not thread.stores


def test_a_missing_half_is_waited_for_and_only_its_chunk_read_again(kind, wait):
    for missing in (0xFFFF, 0xFFFF0000, M32) if kind[0] != "fp32" else (M32,):
        place = random.choice(wait.places)
        memory = wait.written | {place: wait.written[place] | missing}
        thread, words, _ = wait.run(memory, [(5, place, wait.written[place])])
        assert words == list(wait.written.values())
        assert {load % 4096 // CHUNK_BYTES for load in thread.loads} == {place % 4096 // CHUNK_BYTES}
        assert not thread.stores


def test_chunks_may_come_one_after_the_other(wait):
    memory = dict.fromkeys(wait.places, M32)
    writes = [(3 * (1 + place % 4096 // CHUNK_BYTES), place, word) for place, word in wait.written.items()]
    assert wait.run(memory, writes)[1] == list(wait.written.values())


def test_no_nan_but_the_sentinel_is_waited_for(kind, wait):
    """Infinities, every kind of NaN, the sentinel's neighbours, and what is the sentinel across two numbers."""
    odd = {
        "fp32": (0x7FC00001, 0xFFFFFFFE, 0x7FFFFFFF, 0x7F800000, 0xFF800000, 0xFFFF0000, 0x0000FFFF),
        "bf16": (0x7FC1, 0xFFFE, 0x7FFF, 0xFF81, 0x7F80, 0xFF80, 0xFF00, 0x00FF),
        "fp16": (0x7FC1, 0xFFFE, 0x7FFF, 0xFC01, 0x7C00, 0xFC00, 0xFF00, 0x00FF),
    }[kind[0]]
    for bits in odd:
        words = [bits] if kind[0] == "fp32" else [bits, bits << 16, bits << 16 | bits, bits << 16 | 0x00FF]
        memory = wait.written | {place: random.choice(words) for place in random.sample(wait.places, 8)}
        thread, found, first = wait.run(memory)
        assert found == first
        assert not thread.loads


def test_a_wait_ends_at_its_limit(wait):
    place = random.choice(wait.places)
    thread, words, first = wait.run(wait.written | {place: M32}, ns=4000)
    assert thread.stores == [(STATUS, TEAM_2_STEP_5)]
    assert describe_stall(TEAM_2_STEP_5).startswith("Team 2 gave up after 5 steps")
    assert words == first, "the sentinel stays, a NaN"
    # The clock is counted from the first look on, and looked at every so many polls.
    waited = thread.waited
    assert LIMIT * 1024 <= waited <= LIMIT * 1024 + 2 * CLOCK_POLLS * 4000


@pytest.mark.parametrize(("dtype", "pairs"), KINDS)
def test_what_has_no_room_in_the_status_word_is_cut_off(dtype, pairs):
    wait = Wait(dtype, pairs, 4)
    thread, _, _ = wait.run(wait.written | {wait.places[0]: M32}, ns=4000, step=2**22, program=3 * 5000)
    ((_, word),) = thread.stores
    assert 0 < word < 2**31
    assert describe_stall(word).startswith("Team 2046 or a later one gave up after 1048575 or more steps")


def test_who_has_given_up_stops_the_others(wait):
    place = random.choice(wait.places)
    thread, words, first = wait.run(wait.written | {place: M32}, status=1)
    assert words == first
    assert not thread.stores
    assert thread.waited <= 100 * CLOCK_POLLS


def test_nobody_waits_without_a_limit(wait):
    """h_0 is the caller's and may hold any bits."""
    thread, words, first = wait.run(dict.fromkeys(wait.places, M32), limit=0)
    assert words == first
    assert not thread.loads
    assert not thread.stores


def test_masked_vectors_are_zeros_and_never_read(kind, wait):
    vector = kind[2]
    masks = [int(index // vector % 3 != 0) for index in range(len(wait.places))]
    memory = {place: word for (place, word), mask in zip(wait.written.items(), masks, strict=True) if mask}
    place = random.choice(list(memory))
    thread, words, _ = wait.run(memory | {place: M32}, [(4, place, memory[place])], masks)
    assert words == [memory.get(place, 0) for place in wait.places]
    assert not thread.stores


@pytest.mark.parametrize(("parts", "words"), [(4, 2), (2, 4), (8, 1)])
@pytest.mark.parametrize("bit", [0, 1])
def test_partial_sums_are_waited_for_by_their_round(parts, words, bit):
    total = parts * words
    places = [8 * index for index in range(total)]
    written = {place: random.getrandbits(31) << 1 | bit for place in places}

    def run(memory, writes=()):
        operands = [0] * total + [memory[place] for place in places] + places
        operands += [bit] * words + [9] * words + [STATUS] * words + [STEP] * words
        thread = Thread(operands, memory | {STATUS: 0}, writes, program=PROGRAM)
        return thread, thread.run(parts_poll(parts, words, MEMBERS))[:total]

    thread, found = run(written)
    assert found == list(written.values())
    assert not thread.loads
    stale = written | {8: written[8] ^ 1}
    assert run(stale, [(3, 8, written[8])])[1] == list(written.values())
    thread, found = run(stale)
    assert thread.stores == [(STATUS, TEAM_2_STEP_5)]
    assert all(np.isnan(float_of(word & ~1)) for word in found)


NUMBERS = [0.0, -0.0, 1.5, -3.25, 1e-30, 1e30, float("inf"), -float("inf"), 0.1]


@pytest.mark.parametrize(("dtype", "pairs"), KINDS)
def test_publishing_stores_whole_words_and_never_the_sentinel(dtype, pairs):
    text = publish_word(dtype, pairs)
    words = [bits_of(x) for x in NUMBERS] + [M32, 0x7FC00000, 0xFFC00000, 0xFFFFFFFE]
    for low, high in itertools.product(words, repeat=2):
        if dtype == "fp32":
            operands, right = [0, low, 64, 1], min(low, 0xFFFFFFFE)
        else:
            kind = {"bf16": "bf16x2", "fp16": "f16x2"}[dtype]
            operands, right = [0, low, high, 64, 1], to_16_bits(high, kind) << 16 | to_16_bits(low, kind)
        for mask in (1, 0):
            thread = Thread([*operands[:-1], mask])
            thread.run(text)
            assert thread.memory == ({64: right} if mask else {})


@pytest.mark.parametrize("pairs", [True, False])
def test_publishing_would_rewrite_a_sentinel_that_a_conversion_made(pairs, monkeypatch):
    """PTX's cvt makes every NaN 0x7FFF; should a target keep the payload, another NaN goes out."""
    keep = operation(lambda high, low: high << np.uint32(16) | low & np.uint32(0xFFFF), ["b32", "b32"])
    monkeypatch.setitem(LANEWISE, "cvt.rn.bf16x2.f32", keep)
    monkeypatch.setattr("ptx_blocks._kernel_of", ptx_blocks._kernel_of.__wrapped__)
    for low, high in itertools.product((0xFFFF, 0xFFFE, 0x1234), repeat=2):
        thread = Thread([0, low, high, 64, 1])
        thread.run(publish_word("bf16", pairs))
        assert thread.memory == {64: min(high, 0xFFFE) << 16 | min(low, 0xFFFE)}


def test_publishing_a_single_number():
    for mask in (1, 0):
        thread = Thread([0, 0x12345678, 64, mask])
        thread.run(publish_number())
        assert thread.memory == ({64: 0x5678} if mask else {})


def test_the_trade_gives_each_thread_all_gates_of_two_units():
    """`load_weights`, the operand's rows, the block and the reshapes after it, for every element of an m64n16."""
    units, rows, gates = 16, 16, 4
    row = np.arange(64)
    gate = row % 2 + row // 8 % 2 * 2  # as `gates_and_units`
    unit = row // 16 * 4 + row // 4 % 2 * 2 + row // 2 % 2
    assert sorted(zip(gate, unit, strict=True)) == list(itertools.product(range(gates), range(units)))
    column = np.arange(rows).reshape(2, rows // 2).T.reshape(-1)  # as `operand_rows`
    label = (gate * units + unit)[:, None] * rows + column[None, :]

    def place(warp, lane, register):
        """Of a thread's number in the accumulator (PTX ISA, wgmma.m64nNk16, matrix D)."""
        return (
            16 * warp + lane // 4 + 8 * (register >> 1 & 1),
            2 * (lane % 4) + (register & 1) + 8 * (register >> 2 & 1),
        )

    found = np.empty_like(label)
    for warp in range(4):
        places = [[place(warp, lane, register) for register in range(8)] for lane in range(32)]
        threads = [Thread([0] * 8 + [int(label[at]) for at in places[lane]], lane=lane) for lane in range(32)]
        run_warp(trade(), threads)
        for lane, register in itertools.product(range(32), range(8)):
            found[places[lane][register]] = threads[lane].operands[register]
    # As `split_interleaved`.
    parts = found.reshape(units // 4, 2, 2, 2, 2, 2, rows // 4, 2).transpose(7, 0, 2, 3, 4, 6, 5, 1)
    parts = parts.reshape(units, rows, 2, 2)
    tile_unit = np.arange(units) % (units // 2) * 2 + np.arange(units) // (units // 2)  # as `units_of_tile`
    for number in range(gates):
        right = (number * units + tile_unit[:, None]) * rows + np.arange(rows)[None, :]
        assert (parts[..., number % 2, number // 2] == right).all()
