"""A compiled kernel with one thing wrong in its PTX is caught: by the executor's report, or by its numbers.

The number behind a mutation is the place, among those of its kind, that it is done at. Kinds are told by what an
instruction does, not by how one Triton writes it: the same mutations hold for 3.6, 3.7 and 3.9.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import triton

from holdfast.bench.check.layer import Case, check_case, check_gradients
from holdfast.kernels.ptx.errors import AsynchronousError, DeadlockError, MisalignedError, OutOfBoundsError, RaceError
from holdfast.kernels.ptx.executor import compiled
from holdfast.kernels.stall import StalledError

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
CPU = torch.device("cpu")
SPIN_90 = (Case("lstm", "cooperative/dataflow", torch.bfloat16, 20, 3, 3), "forward", "sm_90")
SPIN_80 = (Case("gru", "cooperative/dataflow", torch.bfloat16, 20, 3, 3), "backward", "sm_80")
BARRIER_80 = (Case("gru", "cooperative/barrier", torch.float16, 20, 3, 3), "backward", "sm_80")
ALONE_90 = (Case("lstm", "single_cta", torch.float32, 20, 3, 3), "forward", "sm_90")

BARRIER = r"bar\.sync\s+0;"
CAUGHT = (AsynchronousError, DeadlockError, MisalignedError, OutOfBoundsError, RaceError, StalledError)


def numbers_are_right(kernel, edit: Callable[[str], str] | None = None, **options: object) -> bool:
    """edit: of the kernel of this phase."""
    case, phase, target = kernel

    def of_this_phase(text: str) -> str:
        return edit(text) if edit is not None and f".entry {phase}(" in text else text

    with compiled(target, edit=of_this_phase, **options):
        found = check_case(case, CPU, 0) if phase == "forward" else check_gradients(case, CPU, 0, "save")
    return found.ok


def places(text: str, pattern: str) -> list[int]:
    """Lines that hold the pattern."""
    return [number for number, line in enumerate(text.split("\n")) if re.search(pattern, line)]


def changed(pattern: str, replacement: str | Callable[[re.Match[str]], str], which: int = 0) -> Callable[[str], str]:
    """Replaces what the pattern finds at one place."""

    def edit(text: str) -> str:
        lines = text.split("\n")
        at = places(text, pattern)[which]
        lines[at] = re.sub(pattern, replacement, lines[at])
        return "\n".join(lines)

    return edit


def moved(opcode: str, by: int, which: int = 0) -> Callable[[str], str]:
    """An access some bytes further."""

    def further(found: re.Match[str]) -> str:
        return f"{found[1]}[{found[2]}+{int(found[3] or 0) + by}]"

    return changed(rf"({opcode}[^\[]*)\[\s*(%\w+)\s*(?:\+\s*(\d+)\s*)?\]", further, which)


def release_without_barrier(text: str) -> str:
    """What a team's last release follows in its program, but for its own warp, is stored without a barrier between."""
    lines = text.split("\n")
    release = places(text, r"\.gpu\.release")[-1]
    stored = max(place for place in places(text, r"st\.global") if place < release)
    between = [re.sub(BARRIER, "", line) for line in lines[stored:release]]
    assert between != lines[stored:release]
    return "\n".join([*lines[:stored], *between, *lines[release:]])


@pytest.mark.parametrize("kernel", [SPIN_90, SPIN_80, BARRIER_80, ALONE_90], ids=lambda kernel: kernel[2])
def test_without_a_mutation_they_are_right(kernel):
    assert numbers_are_right(kernel)


@pytest.mark.parametrize(
    ("kernel", "edit", "error", "says"),
    [
        # Barriers of the block.
        (SPIN_90, changed(BARRIER, "", -2), RaceError, "shared memory.*no barrier (between|separates)"),
        (SPIN_90, changed(BARRIER, "", -1), RaceError, "shared memory.*no barrier (between|separates)"),
        (SPIN_80, changed(BARRIER, "", -1), RaceError, r"no barrier between.*ld(matrix|.shared)"),
        (ALONE_90, changed(BARRIER, "", -1), RaceError, "shared memory.*no barrier (between|separates)"),
        # The one before a release: it covers its own warp's stores alone.
        (BARRIER_80, release_without_barrier, RaceError, "meets a weak store"),
        # Fences and waits of the asynchronous proxy.
        (SPIN_90, changed(r"fence\.proxy\.async\S+;", ""), RaceError, "without a fence.proxy.async"),
        (SPIN_90, changed(r"wgmma\.fence\S+;", ""), AsynchronousError, "wgmma.fence"),
        (SPIN_90, changed(r"wgmma\.commit_group\S+;", ""), AsynchronousError, "before anybody waited"),
        (SPIN_90, changed(r"wgmma\.wait_group\S+ 0;", ""), AsynchronousError, "before anybody waited"),
        (SPIN_90, changed(r"wgmma\.wait_group\S+ 0;", "wgmma.wait_group.sync.aligned 1;"), AsynchronousError, "waited"),
        # Strong accesses made weak, or narrower than what they meet.
        (SPIN_90, changed(r"\.volatile", ""), RaceError, "weak load of 4 bytes meets a strong store|loads, weakly"),
        (SPIN_90, changed(r"ld\.relaxed\.gpu", "ld"), RaceError, "weak"),
        (SPIN_90, changed(r"st\.relaxed\.gpu", "st"), RaceError, "strong load of 4 bytes meets a weak store"),
        (
            SPIN_90,
            changed(r"st\.relaxed\.gpu\.global\.b32 (.*), w;", r"st.relaxed.gpu.global.b16 \1, w;"),
            RaceError,
            "of 2 b",
        ),
        (SPIN_80, changed(r"\.volatile", "", -1), RaceError, "weak load of 4 bytes meets a strong store|loads, weakly"),
        # Half of a release and an acquire.
        (BARRIER_80, changed(r"\.gpu\.acquire", ".gpu.relaxed", 0), RaceError, "meets a weak store"),
        (BARRIER_80, changed(r"\.gpu\.acquire", ".gpu.relaxed", 2), RaceError, "meets a weak store"),
        (BARRIER_80, changed(r"\.gpu\.release", ".gpu.relaxed", 0), RaceError, "meets a weak store"),
        (BARRIER_80, changed(r"\.gpu\.release", ".gpu.relaxed", 1), RaceError, "meets a weak store"),
        # Addresses.
        (SPIN_90, moved(r"st\.shared", 1), MisalignedError, "st.shared"),
        (SPIN_90, moved(r"st\.shared", 65536), OutOfBoundsError, "st.shared"),
        (SPIN_90, moved(r"st\.global", 1, -1), (MisalignedError, OutOfBoundsError), "st.global"),
    ],
)
def test_it_is_reported(kernel, edit, error, says):
    with pytest.raises(error, match=says) as caught:
        numbers_are_right(kernel, edit, seed=1)
    assert re.search(r"PTX line \d+, \w+\.py:\d+, program \d+ warps", str(caught.value))


@pytest.mark.parametrize(
    ("kernel", "edit"),
    [
        (SPIN_90, moved(r"ld\.global", 2, 4)),
        (SPIN_90, moved(r"ld\.shared", 4, -1)),
        pytest.param(
            SPIN_90,
            changed(r"shfl\.sync\.bfly\.b32 got, give, 8", "shfl.sync.bfly.b32 got, give, 4"),
            marks=pytest.mark.skipif(TRITON < (3, 7), reason="Triton 3.6 makes a step without the gates' trade"),
        ),
        (SPIN_90, changed(r"(wgmma\.mma_async.*), 0, 1, 1, 0, 0;", r"\1, 0, 1, 1, 1, 0;")),
        (SPIN_80, changed(r"ldmatrix(.*)\.trans", r"ldmatrix\1")),
        (SPIN_80, changed(r"mma\.sync(\S+) (\{.*?\}), (\{.*?\}), (\{.*?\}), \{.*\};", r"mma.sync\1 \2, \3, \4, \3;")),
        (ALONE_90, changed(r"fma\.rn\.f32", "add.f32 %r1, %r1, %r1; fma.rn.f32")),
        (ALONE_90, changed(r"ex2\.approx\.ftz\.f32", "mov.b32")),
    ],
    ids=range(8),
)
def test_the_numbers_show_it(kernel, edit):
    """Addresses that are a number off, operands that change places, and the like: all is in bounds and in order."""
    with suppress(*CAUGHT):
        assert not numbers_are_right(kernel, edit)


def test_a_store_to_the_neighbours_place_is_caught():
    """Two stores of h_t, one number further: the last one's is missing, or another unit's is overwritten."""
    pattern = r"(@m st\.relaxed\.gpu\.global\.b32 \[%rd\d+)\]"
    with pytest.raises((RaceError, DeadlockError, OutOfBoundsError)):
        assert not numbers_are_right(SPIN_90, changed(pattern, r"\1+4]"))


def test_races_that_are_let_happen_reach_the_numbers():
    """A release made relaxed: its team reads what is not there yet, in one schedule or another."""
    edit = changed(r"\.gpu\.release", ".gpu.relaxed", 0)
    assert not all(numbers_are_right(BARRIER_80, edit, seed=seed, report_races=False) for seed in range(6))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [SPIN_90, SPIN_80, BARRIER_80, ALONE_90], ids=lambda kernel: kernel[2])
def test_every_barrier_is_needed_or_its_loss_does_no_harm(kernel):
    """Each barrier of the kernel left out by itself: reported, or, as between weights and what is behind the next
    barrier anyway, without effect. How many of them are needed is counted, so that no check falls silent."""
    texts = []
    numbers_are_right(kernel, lambda text: texts.append(text) or text)
    needed = 0
    count = len(places(texts[0], BARRIER))
    for which in range(count):
        for seed in range(3):
            try:
                assert numbers_are_right(kernel, changed(BARRIER, "", which), seed=seed)
            except CAUGHT:
                needed += 1
                break
    assert needed >= count - 2 - count // 4
