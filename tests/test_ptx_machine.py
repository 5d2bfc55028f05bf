"""The PTX executor's machine on kernels of a few lines: branches, barriers, memory order, and what it reports."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from ptx_kernels import run, text_of

from holdfast.kernels.ptx import machine
from holdfast.kernels.ptx.errors import (
    AsynchronousError,
    DeadlockError,
    DivergenceError,
    EndlessError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    UnknownInstructionError,
)
from holdfast.kernels.ptx.parse import parse

OWN_PLACE = """
mad.lo.s32 %r9, %r1, {threads}, %r0;
mad.wide.s32 %rd9, %r9, 4, %rd0;
"""


def ints(count: int, value: int = 0) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.int32)


# ---- branches


def test_lanes_that_part_meet_again():
    """Three ways by lane, one of them a loop of as many turns as the lane's number; then all add 1000."""
    out = ints(64)
    body = (
        """
    setp.lt.u32 %p1, %r0, 10;
    @%p1 bra LOW;
    setp.lt.u32 %p2, %r0, 40;
    @%p2 bra MIDDLE;
    mov.b32 %r2, 7;
    bra JOIN;
    MIDDLE:
    mov.b32 %r2, 0;
    mov.b32 %r3, 0;
    AGAIN:
    add.s32 %r2, %r2, 2;
    add.s32 %r3, %r3, 1;
    setp.lt.s32 %p3, %r3, %r0;
    @%p3 bra AGAIN;
    bra JOIN;
    LOW:
    mov.b32 %r2, 5;
    JOIN:
    add.s32 %r2, %r2, 1000;
    """
        + OWN_PLACE.format(threads=64)
        + "st.global.b32 [%rd9], %r2;"
    )
    lane = torch.arange(64)
    right = torch.where(lane < 10, 5, torch.where(lane < 40, 2 * lane, 7)) + 1000
    for seed in range(4):
        run(body, [out], num_warps=2, seed=seed)
        assert torch.equal(out.long(), right)


def test_the_lanes_of_a_way_shuffle_among_themselves():
    out = ints(32)
    body = """
    setp.lt.u32 %p1, %r0, 16;
    mov.b32 %r2, 0;
    @!%p1 bra JOIN;
    shfl.sync.bfly.b32 %r2, %r0, 1, 31, 0xFFFF;
    JOIN:
    """
    store = OWN_PLACE.format(threads=32) + "st.global.b32 [%rd9], %r2;"
    run(body + store, [out])
    assert out.tolist() == [lane ^ 1 if lane < 16 else 0 for lane in range(32)]
    with pytest.raises(DivergenceError, match="shfl"):
        run(body.replace("0xFFFF", "-1") + store, [out])


def test_some_lanes_may_end_before_the_others():
    out = ints(32)
    body = (
        OWN_PLACE.format(threads=32)
        + """
    setp.lt.u32 %p1, %r0, 9;
    @!%p1 bra ON;
    ret;
    ON:
    st.global.b32 [%rd9], 3;
    """
    )
    run(body, [out])
    assert out.tolist() == [0] * 9 + [3] * 23


def test_a_guarded_instruction_leaves_the_other_lanes_alone():
    out = ints(32)
    body = (
        OWN_PLACE.format(threads=32)
        + """
    setp.eq.u32 %p1, %r0, 3;
    mov.b32 %r2, 1;
    @%p1 add.s32 %r2, %r2, 41;
    @!%p1 st.global.b32 [%rd9], 8;
    @%p1 st.global.b32 [%rd9], %r2;
    """
    )
    run(body, [out])
    assert out.tolist() == [42 if lane == 3 else 8 for lane in range(32)]


# ---- shared memory and its barriers

TURNED = """
mov.b32 %r5, global_smem;
shl.b32 %r6, %r0, 2;
add.s32 %r7, %r5, %r6;
mul.lo.s32 %r8, %r0, 3;
st.shared.b32 [%r7], %r8;
{barrier}
xor.b32 %r10, %r6, 252;
add.s32 %r10, %r5, %r10;
ld.shared.b32 %r2, [%r10];
"""
OUT = OWN_PLACE.format(threads=64) + "st.global.b32 [%rd9], %r2;"


@pytest.mark.parametrize("seed", range(6))
def test_a_barrier_hands_over_what_was_stored(seed):
    out = ints(64)
    run(TURNED.format(barrier="bar.sync 0;") + OUT, [out], num_warps=2, shared=256, seed=seed)
    assert out.tolist() == [3 * (63 - lane) for lane in range(64)]


@pytest.mark.parametrize("seed", range(3))
def test_without_a_barrier_it_is_a_race(seed):
    with pytest.raises(RaceError, match=r"no barrier.*PTX line \d+, kernel.py:7"):
        run(TURNED.format(barrier="") + OUT, [ints(64)], num_warps=2, shared=256, seed=seed)


def test_a_store_over_what_another_warp_has_loaded_is_a_race():
    again = TURNED.format(barrier="bar.sync 0;") + "{}st.shared.b32 [%r7], 1;" + OUT
    run(again.format("bar.sync 0;"), [ints(64)], num_warps=2, shared=256)
    with pytest.raises(RaceError, match=r"that warp . loads"):
        run(again.format(""), [ints(64)], num_warps=2, shared=256)


def test_two_values_to_one_address_are_a_race():
    body = "mov.b32 %r5, global_smem; st.shared.b32 [%r5], {};"
    run(body.format(4), [], num_warps=2, shared=16)
    with pytest.raises(RaceError, match=r"at once|no barrier"):
        run(body.format("%r0"), [], num_warps=2, shared=16)


def test_a_named_barrier_is_of_those_that_come_to_it():
    """Warps 0 and 1 of four; the other two do not wait."""
    body = (
        """
    mov.b32 %r2, 0;
    setp.ge.u32 %p1, %r0, 64;
    @%p1 bra OVER;
    """
        + TURNED.format(barrier="bar.sync 1, 64;")
        + "OVER:"
        + OUT
    )
    out = ints(128)
    run(body.replace("OVER:", "\nOVER:\n"), [out], num_warps=4, shared=256)
    assert out.tolist() == [3 * (63 - lane) if lane < 64 else 0 for lane in range(128)]


def test_a_barrier_that_not_all_come_to_is_reported():
    lost = "setp.lt.u32 %p1, %r0, {}; @%p1 bra OVER; bar.sync 0;\nOVER:\n"
    with pytest.raises(DeadlockError, match=r"bar\.sync"):
        run(lost.format(32), [], num_warps=2)
    with pytest.raises(DivergenceError, match="part of a warp"):
        run(lost.format(7), [], num_warps=2)


@pytest.mark.parametrize(
    ("access", "error"),
    [
        ("ld.shared.b32 %r2, [%r5+64];", OutOfBoundsError),
        ("st.shared.b32 [%r5+-4], 1;", OutOfBoundsError),
        ("ld.shared.v4.b32 {%r2, %r3, %r4, %r6}, [%r5+8];", MisalignedError),
        ("ld.shared.b32 %r2, [%r5+2];", MisalignedError),
        ("ld.global.b32 %r2, [%rd0+64];", OutOfBoundsError),
        ("ld.global.b32 %r2, [%rd0+-4];", OutOfBoundsError),
        ("st.global.v2.b32 [%rd0+4], {%r0, %r0};", MisalignedError),
        ("st.global.v2.b32 [%rd0+64], {%r0, %r0};", OutOfBoundsError),
        ("ld.global.b32 %r2, [%rd0+1];", MisalignedError),
        ("atom.global.add.u32 %r2, [%rd0+64], 1;", OutOfBoundsError),
    ],
)
def test_addresses_are_checked(access, error):
    with pytest.raises(error, match=r"PTX line \d+, kernel.py:7, program 0"):
        run("mov.b32 %r5, global_smem;\n" + access, [ints(16)], shared=64)


# ---- memory order between programs: x is %rd0, the flag %rd1, what the reader found %rd2

WRITER = """
setp.ne.u32 %p1, %r1, 0;
@%p1 bra READER;
setp.ne.u32 %p2, %r0, 0;
@!%p2 st.global.b32 [%rd0], 41;
{release}
bra END;
READER:
setp.ne.u32 %p2, %r0, 0;
"""
READER = """
WAIT:
{acquire}
setp.eq.u32 %p3, %r2, 0;
@%p3 bra WAIT;
{after}
ld.global.b32 %r3, [%rd0];
@!%p2 st.global.b32 [%rd2], %r3;
END:
"""
RELEASE, RELAXED_STORE = "@!%p2 st.release.gpu.global.b32 [%rd1], 1;", "@!%p2 st.relaxed.gpu.global.b32 [%rd1], 1;"
ACQUIRE, RELAXED_LOAD = "ld.acquire.gpu.global.b32 %r2, [%rd1];", "ld.relaxed.gpu.global.b32 %r2, [%rd1];"
FENCE = "fence.acq_rel.gpu;"


def message(release: str, acquire: str, after: str = "", before: str = "", **behaviour: object) -> int:
    """What the reader reads of 41 once it has seen the flag."""
    x, flag, found = ints(8), ints(8), ints(8, -1)
    body = WRITER.format(release=release) + before + READER.format(acquire=acquire, after=after)
    run(body, [x, flag, found], grid=2, **behaviour)
    assert (x[0], flag[0]) == (41, 1)
    return int(found[0])


@pytest.mark.parametrize(
    ("release", "acquire", "after"),
    [
        (RELEASE, ACQUIRE, ""),
        (
            "@!%p2 atom.release.gpu.global.add.u32 %r9, [%rd1], 1;",
            "atom.acquire.gpu.global.add.u32 %r2, [%rd1], 0;",
            "",
        ),
        (FENCE + RELAXED_STORE, RELAXED_LOAD, FENCE),
        (RELEASE, RELAXED_LOAD, FENCE),
    ],
)
def test_a_release_and_an_acquire_order_what_lies_before_and_behind(release, acquire, after):
    assert all(message(release, acquire, after, seed=seed) == 41 for seed in range(10))


@pytest.mark.parametrize(
    ("release", "acquire", "after"),
    [(RELAXED_STORE, ACQUIRE, ""), (RELEASE, RELAXED_LOAD, ""), (RELAXED_STORE, RELAXED_LOAD, FENCE)],
)
def test_half_of_it_is_a_race(release, acquire, after):
    for seed in range(4):
        with pytest.raises(RaceError, match="weak load of 4 bytes meets a weak store"):
            message(release, acquire, after, seed=seed)


def test_only_who_has_seen_the_flag_is_ordered_behind_it():
    """A reader that does not wait: it has seen the flag, or it races."""
    body = WRITER.format(release=FENCE + RELAXED_STORE) + READER.format(acquire=RELAXED_LOAD, after=FENCE)
    body = body.replace("@%p3 bra WAIT;", "").replace("[%rd2], %r3", "[%rd2], %r2")
    seen = set()
    for seed in range(40):
        found = ints(8, -1)
        try:
            run(body, [ints(8), ints(8), found], grid=2, seed=seed)
            assert found[0] == 1
            seen.add("ordered")
        except RaceError:
            seen.add("race")
    assert seen == {"ordered", "race"}


def test_stores_become_visible_late_and_out_of_order():
    """Where races are let happen, the flag is there before what it announces, in some schedules."""
    found = {message(RELAXED_STORE, RELAXED_LOAD, seed=seed, report_races=False) for seed in range(40)}
    assert found == {0, 41}


def test_weak_loads_are_served_from_the_l1_until_an_acquire():
    """The reader has loaded x before: x's line lies in its L1."""
    before = "ld.global.b32 %r4, [%rd0];"
    stale = {message(RELEASE, RELAXED_LOAD, before=before, seed=seed, report_races=False) for seed in range(40)}
    assert stale == {0, 41}
    fresh = {message(RELEASE, ACQUIRE, before=before, seed=seed, report_races=False) for seed in range(40)}
    assert fresh == {41}


@pytest.mark.parametrize("kind", ["ld.volatile.global.b32", "ld.relaxed.gpu.global.b32", "ld.relaxed.sys.global.b32"])
def test_strong_accesses_may_race_where_they_are_of_one_size(kind):
    """One word is its own flag."""
    out = ints(2, -1)
    body = (
        WRITER.replace("st.global.b32 [%rd0], 41", "st.relaxed.gpu.global.b32 [%rd0], 41").format(release="")
        + """
    WAIT:
    LOAD %r2, [%rd0];
    setp.eq.u32 %p3, %r2, 0;
    @%p3 bra WAIT;
    @!%p2 st.global.b32 [%rd1], %r2;
    END:
    """
    )
    for seed in range(5):
        run(body.replace("LOAD", kind), [ints(2), out], grid=2, seed=seed)
        assert out[0] == 41
    narrow = body.replace("LOAD", kind).replace(
        "st.relaxed.gpu.global.b32 [%rd0], 41", "st.relaxed.gpu.global.b16 [%rd0], 41"
    )
    with pytest.raises(RaceError, match="strong load of 4 bytes meets a strong store of 2 bytes"):
        run(narrow, [ints(2), out], grid=2)
    weak = body.replace("LOAD", kind).replace("st.relaxed.gpu.global", "st.global")
    with pytest.raises(RaceError, match="strong load of 4 bytes meets a weak store of 4 bytes"):
        run(weak, [ints(2), out], grid=2)
    with pytest.raises(RaceError, match="weak"):
        run(body.replace("LOAD", "ld.relaxed.cta.global.b32"), [ints(2), out], grid=2)


def test_a_store_over_what_another_program_loads_weakly_is_a_race():
    body = WRITER.format(release="") + "ld.global.b32 %r2, [%rd0];\nEND:\n"
    for seed in range(6):
        with pytest.raises(RaceError, match="weak"):
            run(body, [ints(2)], grid=2, seed=seed)


@pytest.mark.parametrize("barrier", [True, False])
def test_a_release_covers_the_other_warps_only_behind_a_barrier(barrier):
    """Lane 32 stores x, thread 0 releases."""
    writer = WRITER.replace(
        "setp.ne.u32 %p2, %r0, 0;\n@!%p2 st", "setp.ne.u32 %p2, %r0, 0;\nsetp.eq.u32 %p4, %r0, 32;\n@%p4 st", 1
    )
    body = writer.format(release="bar.sync 0;" * barrier + RELEASE) + READER.format(acquire=ACQUIRE, after="")
    for seed in range(4):
        found = ints(8)
        if barrier:
            run(body, [ints(8), ints(8), found], grid=2, num_warps=2, seed=seed)
            assert found[0] == 41
        else:
            with pytest.raises(RaceError, match="weak"):
                run(body, [ints(8), ints(8), found], grid=2, num_warps=2, seed=seed)


def test_atomics_are_added_up_one_by_one():
    count, seen = ints(1), ints(256)
    body = (
        "atom.relaxed.gpu.global.add.u32 %r2, [%rd1], 1;" + OWN_PLACE.format(threads=64) + "st.global.b32 [%rd9], %r2;"
    )
    run(body, [seen, count], grid=4, num_warps=2, seed=3)
    assert count[0] == 256
    assert sorted(seen.tolist()) == list(range(256))


# ---- time, waits and what ends them

FOREVER = """
mov.b64 %rd5, 0;
WAIT:
ld.relaxed.gpu.global.b32 %r2, [%rd0];
mov.u64 %rd4, %globaltimer;
setp.ge.u64 %p2, %rd4, 3000000;
@%p2 bra END;
setp.eq.u32 %p3, %r2, 0;
@%p3 bra WAIT;
END:
st.global.b32 [%rd1], 1;
"""


def test_a_wait_in_vain_is_a_deadlock_or_ends_at_its_limit():
    out = ints(1)
    with pytest.raises(DeadlockError, match=r"everybody waits.*ld.relaxed"):
        run(FOREVER, [ints(1), out], grid=2)
    assert out[0] == 0
    run(FOREVER, [ints(1), out], grid=2, raise_on_deadlock=False)
    assert out[0] == 1


def test_a_lane_that_leaves_a_wait_does_not_put_the_others_to_sleep():
    """Lane 1 waits for two words, lane 0 for the first of its own. Once lane 0 has left, lane 1's second load is as it
    was before, but its first one may just have found what it waits for."""
    writer = "setp.ne.s32 %p9, %r1, 0;\n@%p9 bra POLL;\nsetp.ne.s32 %p8, %r0, 0;\n@%p8 bra END;\n"
    writer += "".join(f"st.relaxed.gpu.global.b32 [%rd0+{place}], 1;\n" for place in (512, 0, 128)) + "bra END;\n"
    poll = """
    POLL:
    setp.gt.s32 %p8, %r0, 1;
    @%p8 bra END;
    setp.eq.s32 %p1, %r0, 1;
    mad.wide.s32 %rd9, %r0, 128, %rd0;
    AGAIN:
    mov.b32 %r3, 1;
    ld.relaxed.gpu.global.b32 %r2, [%rd9];
    @%p1 ld.relaxed.gpu.global.b32 %r3, [%rd0+512];
    and.b32 %r4, %r2, %r3;
    setp.eq.s32 %p2, %r4, 0;
    @%p2 bra AGAIN;
    END:
    """
    for seed in range(60):
        run(writer + poll, [ints(256)], grid=2, seed=seed)


def test_a_program_may_be_kept_from_starting():
    """The others wait in vain for it."""
    with pytest.raises(DeadlockError):
        message(RELEASE, ACQUIRE, stalled=[0])


@pytest.mark.parametrize("body", ["add.s32 %r2, %r2, 1;", "ld.global.b32 %r2, [%rd0];"])
def test_an_endless_loop_is_reported(body, monkeypatch):
    monkeypatch.setattr(machine, "MOST_STEPS", 1000)
    with pytest.raises(EndlessError, match=r"kernel\.py:7"):
        run(f"AGAIN:\n{body}\nbra AGAIN;", [ints(1)], most_turns=1000)


def test_programs_that_answer_each_other_for_ever_end_at_the_limit_of_turns():
    """Something changes in every turn, so that nobody sleeps; the report says where each warp of each program is."""
    body = "AGAIN:\natom.relaxed.gpu.global.add.u32 %r2, [%rd0], 1;\nbra AGAIN;"
    with pytest.raises(DeadlockError, match="600 turns without an end") as caught:
        run(body, [ints(1)], grid=3, num_warps=2, most_turns=200)
    for program in range(3):
        places = re.findall(rf"PTX line \d+, kernel\.py:7, program {program} warps ([\d, ]+)", str(caught.value))
        assert sorted(", ".join(places).split(", ")) == ["0", "1"]


def test_who_waits_for_the_other_way_of_a_branch_is_named_too():
    """Of three warps one polls for ever, one has come to where they meet, and one is to walk its way yet."""
    body = """
    setp.ge.s32 %p1, %r0, 64;
    @%p1 bra MEET;
    setp.ge.s32 %p2, %r0, 32;
    @%p2 bra OTHER;
    AGAIN:
    ld.relaxed.gpu.global.b32 %r2, [%rd0];
    setp.eq.s32 %p3, %r2, 0;
    @%p3 bra AGAIN;
    bra MEET;
    OTHER:
    add.s32 %r3, %r3, 1;
    MEET:
    bar.sync 0;"""
    text = text_of(body, 1, 3).split("\n")
    with pytest.raises(DeadlockError) as caught:
        run(body, [ints(1)], num_warps=3)
    said = {}
    for line, warps in re.findall(r"line (\d+), kernel\.py:7, program 0 warps ([\d, ]+)", str(caught.value)):
        said |= dict.fromkeys(warps.split(", "), text[int(line) - 1])
    assert sorted(said) == ["0", "1", "2"]
    assert "ld.relaxed" in said["0"]
    assert "add.s32" in said["1"] or "bar.sync" in said["1"]
    assert "bar.sync" in said["2"]


def test_the_same_seed_gives_the_same_schedule():
    def turns(seed):
        order = ints(1), ints(256)
        body = "atom.relaxed.gpu.global.add.u32 %r2, [%rd1], 1;" + OWN_PLACE.format(threads=64)
        run(body + "st.global.b32 [%rd9], %r2;", order[::-1], grid=4, num_warps=2, seed=seed)
        return order[1].tolist()

    assert turns(1) == turns(1)
    assert len({tuple(turns(seed)) for seed in range(6)}) > 1


# ---- what it does not know


@pytest.mark.parametrize(
    "opcode",
    [
        "mbarrier.init.shared.b64 [%r2], 1;",
        "add.s77 %r2, %r2, %r2;",
        "ld.global.odd.b32 %r2, [%rd0];",
        "bar.red.popc.u32 %r2, 0, %p1;",
    ],
)
def test_an_unknown_opcode_is_named(opcode):
    with pytest.raises(UnknownInstructionError, match=opcode.split()[0].replace(".", r"\.") + r" \(PTX line \d+\)"):
        run(opcode, [ints(4)])


def test_lines_are_those_of_the_text():
    text = text_of("add.s32 %r2, %r0, 1;\n\n// nothing\n{\n.reg .b32 x;\nmov.b32 x, %r2;\n}\nbar.sync 0;", 1, 1)
    lines = text.split("\n")
    code = parse(text)
    assert all(one.opcode in lines[one.line - 1] for one in code.instructions)
    assert {one.source for one in code.instructions} == {"kernel.py:7"}
    assert code.parameters == {"kernel_param_0": (0, 8)}


def test_a_parameter_may_be_chosen_by_its_address():
    """As LLVM does with a value for each direction."""
    first, second = ints(32), ints(32)
    body = """
    setp.lt.u32 %p1, %r0, 8;
    mov.b64 %rd4, kernel_param_0;
    mov.b64 %rd5, kernel_param_1;
    selp.b64 %rd6, %rd4, %rd5, %p1;
    ld.param.b64 %rd7, [%rd6];
    mad.wide.s32 %rd9, %r0, 4, %rd7;
    st.global.b32 [%rd9], 1;
    """
    run(body, [first, second])
    assert (first.sum(), second.sum()) == (8, 24)


def test_registers_begin_with_anything():
    """What nobody has written differs from seed to seed."""
    out = ints(32)
    seen = set()
    for seed in range(3):
        run(OWN_PLACE.format(threads=32) + "st.global.b32 [%rd9], %r33;", [out], seed=seed)
        seen.add(tuple(out.tolist()))
    assert len(seen) == 3


# ---- wgmma's own rules (its arithmetic: test_ptx_instructions)

WGMMA = """
mov.b32 %r5, global_smem;
shl.b32 %r6, %r0, 4;
add.s32 %r7, %r5, %r6;
st.shared.v4.b32 [%r7], {{%r30, %r30, %r30, %r30}};
{proxy}
bar.sync 0;
bfe.u32 %r8, %r5, 4, 14;
cvt.u64.u32 %rd5, %r8;
or.b64 %rd5, %rd5, 0x0000000800010000;
mov.b32 %r9, 0;
{fence}
{product} {{%r10, %r11, %r12, %r13}}, {{%r9, %r9, %r9, %r9}}, %rd5, 0, 1, 1, 0;
{commit}
{wait}
{after}
"""
RULES = {
    "product": "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16",
    "proxy": "fence.proxy.async.shared::cta;",
    "fence": "wgmma.fence.sync.aligned;",
    "commit": "wgmma.commit_group.sync.aligned;",
    "wait": "wgmma.wait_group.sync.aligned 0;",
    "after": "mov.b32 %r14, %r10;",
}


@pytest.mark.parametrize(
    ("left_out", "error"),
    [
        (None, None),
        ("proxy", RaceError),
        ("fence", AsynchronousError),
        ("commit", AsynchronousError),
        ("wait", AsynchronousError),
    ],
)
def test_what_a_wgmma_needs(left_out, error):
    rules = RULES | ({left_out: ""} if left_out else {})
    if error is None:
        run(WGMMA.format(**rules), [], num_warps=4, shared=2048)
        return
    with pytest.raises(error, match="wgmma"):
        run(WGMMA.format(**rules), [], num_warps=4, shared=2048)


def test_memory_that_a_wgmma_reads_is_not_stored_to_before_it_was_waited_for():
    early = RULES | {"wait": "", "after": "st.shared.b32 [%r7], 1; " + RULES["wait"]}
    with pytest.raises(RaceError, match="wgmma may still be reading"):
        run(WGMMA.format(**early), [], num_warps=4, shared=2048)
    # Waited for is not enough: another warp's may still be at it.
    late = RULES | {"after": "xor.b32 %r7, %r7, 512; st.shared.b32 [%r7], 1;"}
    with pytest.raises(RaceError, match=r"no barrier|may still be reading"):
        run(WGMMA.format(**late), [], num_warps=4, shared=2048)
    run(WGMMA.format(**RULES | {"after": "bar.sync 0; " + late["after"]}), [], num_warps=4, shared=2048)


def test_uninitialised_shared_memory_differs_from_seed_to_seed():
    found = []
    for seed in range(2):
        out = ints(32)
        body = "mov.b32 %r5, global_smem; ld.shared.b32 %r2, [%r5];" + OWN_PLACE.format(threads=32)
        run(body + "st.global.b32 [%rd9], %r2;", [out], shared=64, seed=seed)
        found.append(out[0].item())
    assert found[0] != found[1]
    assert np.unique(found).size == 2
