"""What is read from disassembled code."""

from __future__ import annotations

import pytest

from holdfast.autotune.offline import innermost_loops, loops, round_trips

LOAD = "@!P4 LDG.E.128.STRONG.SYS R{}, desc[UR10][R58.64]"
USE = "LOP3.LUT R40, R{}, 0xffff, RZ, 0xc0, !PT"


def sass(*instructions: str) -> list[str]:
    return [f"        /*{16 * at:04x}*/                   {text} ;" for at, text in enumerate(instructions)]


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
    assert round_trips(sass(*instructions)) == expected


def test_a_loop_is_what_lies_between_a_label_and_a_jump_back():
    inner = [".L_x_2:", *sass("ISETP.NE.AND P0, PT, R1, RZ, PT", "@P0 BRA `(.L_x_2)")]
    outer = [".L_x_1:", *inner, *sass("BRA `(.L_x_3)", "BRA `(.L_x_1)"), ".L_x_3:"]
    assert sorted(map(len, loops(outer))) == [3, 6]
    assert list(map(list, innermost_loops(outer))) == [inner]
