"""What is read from disassembled code, on small code whose counts can be had by hand."""

from __future__ import annotations

import pytest

from holdfast.autotune.sass import (
    Counts,
    Instruction,
    Parts,
    decode,
    loops,
    polls,
    round_trips,
    shared_scoreboards,
    step_of,
)

LOAD = "@!P4 LDG.E.128.STRONG.SYS R{}, desc[UR10][R58.64]"
USE = "LOP3.LUT R40, R{}, 0xffff, RZ, 0xc0, !PT"
MATRIX = "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24"
DRAIN = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
BARRIER = "BAR.SYNC.DEFER_BLOCKING 0x0"


def sass(*lines: str | tuple[str, int]) -> str:
    """As `nvdisasm -c -hex` prints labels and instructions; an instruction may have its stall beside it, else 1."""
    printed = []
    for line in lines:
        text, stall = (line, 1) if isinstance(line, str) else line
        if text.startswith("."):
            printed.append(text)
        else:
            word = 7 << 5 | 7 << 8 | stall  # no scoreboard is written, none is read
            printed += [f"        /*0000*/    {text} ;   /* 0x0000000000007919 */", f"    /* 0x{word << 41:016x} */"]
    return "\n".join(printed)


def test_the_control_word_of_an_instruction_that_a_compiler_made():
    """From LSTM bf16 H=768 for sm_90; yield and reuse flags are not looked at."""
    line = "        /*00b0*/    @!P4 LDG.E.128 R52, desc[UR12][R52.64+0x10] ;    /* 0x000000025234781a */"
    (found,) = decode(line + "\n      /* 0x000ea2000c1e1d00 */").instructions
    assert found == Instruction("@!P4 LDG.E.128 R52, desc[UR12][R52.64+0x10]", stall=1, writes=2)
    assert found.name == "LDG.E.128"
    (waiting,) = decode(
        "/*00c0*/ IADD3 R48, P0, R49, R40.reuse, RZ ; /* 0x0000002831307210 */\n/* 0x084fe20007f1e0ff */"
    ).instructions
    assert (waiting.stall, waiting.writes, waiting.reads, waiting.waits) == (1, None, None, (2,))


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ([], 0),
        (["LDG.E R4, desc[UR4][R2.64]", USE.format(4)], 0),  # not volatile
        ([LOAD.format(4), LOAD.format(8), USE.format(11), USE.format(4)], 1),
        ([LOAD.format(4), USE.format(7), LOAD.format(8), USE.format(8)], 2),  # R7 is the last word of the first load
        ([LOAD.format(4), USE.format(12), LOAD.format(8), USE.format(8)], 1),  # R12 is neither's
        ([LOAD.format(4), "STS.128 [R30], R4", LOAD.format(8), USE.format(8)], 2),
        ([LOAD.format(4), "CS2R R4, SRZ", LOAD.format(8), USE.format(8)], 1),  # overwritten, not used
    ],
)
def test_a_round_trip_ends_where_a_loaded_word_is_used(instructions, expected):
    assert round_trips(map(Instruction, instructions)) == expected


def test_a_loop_is_what_lies_between_a_label_and_a_jump_back():
    inner = [".L_x_2:", "ISETP.NE.AND P0, PT, R1, RZ, PT", "@P0 BRA `(.L_x_2)"]
    code = decode(sass(".L_x_1:", *inner, "@P1 BRA `(.L_x_3)", "BRA `(.L_x_1)", ".L_x_3:", "EXIT"))
    assert loops(code) == [range(2), range(4)]


def test_a_jump_back_out_of_cold_code_is_no_loop():
    """tcgen05's wait for the matrix unit is put behind the end of the kernel, and jumps back from there."""
    step = [
        ".L_x_1:",
        "@!P1 BRA `(.L_x_9)",
        ".L_x_2:",
        MATRIX,
        "STG.E desc[UR4][R2.64], R5",
        "@P0 BRA `(.L_x_1)",
        "EXIT",
    ]
    code = decode(sass(*step, ".L_x_9:", "SYNCS.PHASECHK P1, [UR4]", "@!P1 BRA `(.L_x_9)", "BRA `(.L_x_2)"))
    assert loops(code) == [range(5, 7), range(4)]


WAIT_IN_ITS_LOOP = [
    ".L_x_2:",
    (LOAD.format(4), 2),
    (LOAD.format(8), 2),
    (USE.format(4), 5),
    ("REDUX.MAX.S32 UR6, R40", 3),
    (BARRIER, 5),
    ("@P0 BRA `(.L_x_2)", 5),
]
PRODUCT = [("STS.128 [R30], R4", 2), (BARRIER, 5), (MATRIX, 8), (MATRIX, 8), (DRAIN, 4)]
STORE = [("MUFU.TANH R5, R24", 6), ("STG.E desc[UR4][R2.64], R5", 1)]


def test_a_step_with_a_wait_that_asks_in_its_loop():
    """The first poll is one turn of the loop: a way around it, there for a wait without budget, is no step."""
    head = [".L_x_1:", ("IADD3 R2, R2, 0x10, RZ", 4), ("@P3 BRA `(.L_x_5)", 5)]
    code = decode(sass(*head, *WAIT_IN_ITS_LOOP, ".L_x_5:", *PRODUCT, *STORE, ("@P1 BRA `(.L_x_1)", 5), "EXIT"))
    step = step_of(code)
    assert step is not None
    assert step.counts == Counts(instructions=16, issue_cycles=70, barriers=2)
    assert step.parts == Parts(head=9, poll=22, operands=7, product=20, gates=12)
    assert step.polls == (Counts(6, 22, 1),)
    assert step.poll_round_trips == 1
    assert step.drained_groups == 1
    assert step.gathered_words == 8


def test_a_step_with_a_wait_that_asks_before_its_loop():
    """Where the first poll has all, the step goes past the loop, wherever that lies."""
    first = [(LOAD.format(4), 2), (LOAD.format(8), 2), (USE.format(4), 5), (USE.format(8), 5), ("@P0 BRA `(.L_x_7)", 5)]
    again = [".L_x_7:", ("@P6 BRA `(.L_x_8)", 5), ("@P0 LDG.E.128.STRONG.GPU R4, desc[UR10][R58.64]", 1)]
    again += [(USE.format(4), 5), ("@P0 BRA `(.L_x_7)", 5), "BRA `(.L_x_5)"]
    clock = [".L_x_8:", ("CS2R R60, SR_GLOBALTIMERLO", 20), ("LDG.E.STRONG.SYS R8, desc[UR10][R60.64]", 1), "EXIT"]
    head, back = [".L_x_1:", ("IADD3 R2, R2, 0x10, RZ", 4)], [("@P1 BRA `(.L_x_1)", 5), "EXIT"]
    step = step_of(decode(sass(*head, *first, ".L_x_5:", *PRODUCT, *STORE, *back, *again, *clock)))
    assert step is not None
    assert step.counts == Counts(instructions=14, issue_cycles=62, barriers=1)
    assert step.polls == (Counts(4, 16, 0),)
    assert step.gathered_words == 8
    assert step.parts.poll + step.parts.operands == 19 + 7


def test_two_waits_of_a_step_come_in_its_order():
    parts = [".L_x_3:", ("LDG.E.STRONG.SYS R70, desc[UR10][R60.64]", 1), (USE.format(70), 5), ("@P0 BRA `(.L_x_3)", 5)]
    code = decode(sass(".L_x_1:", *WAIT_IN_ITS_LOOP, *PRODUCT, *parts, *STORE, ("@P1 BRA `(.L_x_1)", 5), "EXIT"))
    step = step_of(code)
    assert step is not None
    assert step.polls == (Counts(6, 22, 1), Counts(3, 11, 0))
    assert step.parts == Parts(head=0, poll=22 + 11, operands=7, product=20, gates=12)


def test_a_wait_by_a_counter_reads_after_it():
    """Its chunks' loads, one a product, are no polls."""
    wait = [".L_x_2:", ("ATOMG.E.ADD.STRONG.GPU PT, R9, desc[UR4][R2.64], RZ", 3), ("@P0 BRA `(.L_x_2)", 5)]
    chunk = [(LOAD.format(4), 2), ("STS.128 [R30], R4", 2), (BARRIER, 5), (MATRIX, 8)]
    code = decode(sass(".L_x_1:", *wait, *chunk, *chunk, (DRAIN, 4), *STORE, ("@P1 BRA `(.L_x_1)", 5), "EXIT"))
    step = step_of(code)
    assert step is not None
    assert step.parts == Parts(head=0, poll=8, operands=9, product=8 + 17 + 4, gates=12)
    assert (step.poll_round_trips, step.gathered_words, step.counts.barriers) == (1, 8, 2)


def test_a_kernel_without_a_loop_has_no_step():
    code = decode(sass(MATRIX, "EXIT"))
    assert step_of(code) is None


def test_polls_lie_in_a_step_or_behind_it():
    code = decode(
        sass(
            ".L_x_0:",
            "LDG.E.STRONG.SYS R4, desc[UR4][R2.64]",
            "@P0 BRA `(.L_x_0)",
            ".L_x_1:",
            MATRIX,
            "@P1 BRA `(.L_x_1)",
        )
    )
    assert polls(code, range(2, 4)) == []


def test_one_scoreboard_for_polled_words_and_others_is_seen():
    polled, other = Instruction(LOAD.format(4), writes=4), Instruction("LDG.E R20, desc[UR4][R2.64]", writes=4)
    use = Instruction(USE.format(4), waits=(4,))
    assert shared_scoreboards([polled, other, use]) == 1
    assert shared_scoreboards([polled, other._replace(writes=3), use]) == 0
    assert shared_scoreboards([other, use, polled, use]) == 0
    product = Instruction(MATRIX)
    assert shared_scoreboards([other, product, polled, use]) == 0  # it has had the product's time
    assert shared_scoreboards([other, product, other, polled, use]) == 1
    assert shared_scoreboards([polled, product, other, use]) == 1
    assert shared_scoreboards([polled, use, product, other]) == 1  # across the loop's end
    assert shared_scoreboards([polled, use, other, product]) == 0
