"""Take every synchronising element out of the kernels in turn, and see which test notices.

    python tests/mutations.py                    # all of them, a table as Markdown
    python tests/mutations.py --only "round bit" --schedules 540

A mutation replaces a piece of a function's text, in this process: the function is built anew and put wherever the old
one was known. A schedule case (see schedules.py) is explored until it fails; other tests run under pytest.
"""

from __future__ import annotations
import __future__

import argparse
import inspect
import io
import linecache
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from schedules import EXCHANGES, LONGER, expected, explore

from holdfast.kernels import launch

PACKAGE = "holdfast.kernels."
CASES = EXCHANGES | LONGER
TESTS = Path(__file__).parent
_SHOT = count()


@dataclass(frozen=True)
class Mutation:
    """name:      what is taken away.
    where:     module and function in holdfast.kernels, "loop.exchange:arrive"; of a class, "launch:Launcher._team".
    old, new:  pieces of the function's text, each of which stands there once.
    notices:   a schedule case, or a test by file and name.
    survives:  why nothing can notice it; "" for those that something must.
    """

    name: str
    where: str
    old: str
    new: str
    notices: str
    survives: str = ""


FILL = "_bits(channel).fill_(SENTINEL)"
WAITS = 'tl.atomic_add(team.arrivals, 0, sem="acquire")'

MUTATIONS = (
    # What lies in memory before a launch.
    Mutation(
        "sentinel fill of y", "channel:fill_channel", "_bits(channel).fill_(SENTINEL)", "pass", "dataflow forward"
    ),
    Mutation(
        "sentinel fill of da", "channel:fill_channel", "_bits(channel).fill_(SENTINEL)", "pass", "dataflow backward"
    ),
    Mutation(
        "sentinel fill of what the second product multiplies",
        "results:fill",
        "(tensor is sent or tensor is residuals.inner)",
        "tensor is sent",
        "dataflow two products",
    ),
    Mutation(
        "sentinel fill where there are lengths",
        "channel:fill_channel",
        "_bits(channel).masked_fill_((steps[:, None] < extras.lengths)[..., None], SENTINEL)",
        "pass",
        "test_kernels_features.py::test_random_combinations",
    ),
    Mutation(
        "all ones in the rounds' scratch memory",
        "launch:Launcher._team",
        "torch.full((words,), -1,",
        "torch.full((words,), 0,",
        "dataflow split",
    ),
    Mutation(
        "zero in the arrivals counter",
        "launch:Launcher._team",
        "torch.zeros(teams, 32,",
        "torch.ones(teams, 32,",
        "barrier forward",
    ),
    # Dataflow.
    Mutation("volatile flag", "loop.exchange:load_from_l2", "volatile=True", "volatile=False", "dataflow forward"),
    Mutation(
        "wait for the team's numbers",
        "loop.exchange:read_when_written",
        "missing = must_wait & (unwritten(tiles, NUMBERS_IN_WORD, LOOP) != 0)",
        "missing = must_wait & (limit < 0)",
        "dataflow forward",
    ),
    Mutation(
        "wait for chunks after the first",
        "loop.exchange:unwritten",
        "tl.static_range(1, CHUNKS)",
        "tl.static_range(1, 1)",
        "dataflow backward, three programs",
    ),
    Mutation(
        "wait for the lower number of a word",
        "loop.exchange:unwritten",
        "-0x7FFF8000",
        "-0x80000000",
        "dataflow forward",
    ),
    Mutation(
        "wait for the upper number of a word", "loop.exchange:unwritten", "-0x7FFF8000", "0x8000", "dataflow forward"
    ),
    Mutation(
        "canonical NaN of a published number",
        "loop.exchange:publish",
        "_without_sentinel(value)",
        "value",
        "dataflow forward",
    ),
    Mutation(
        "canonical NaN of a published gradient",
        "loop.exchange:publish",
        "_without_sentinel(value)",
        "value",
        "dataflow backward",
    ),
    Mutation(
        "canonical NaN of the reset state",
        "channel:without_sentinel",
        "bits.masked_fill(bits == SENTINEL, torch.iinfo(bits.dtype).max)",
        "bits",
        "test_kernels_features.py::test_a_reset_state_may_hold_the_sentinel",
    ),
    Mutation(
        "no wait in the first step, whose h is the caller's",
        "loop.forward:forward",
        "follows = step > 0",
        "follows = step >= 0",
        "dataflow forward",
    ),
    Mutation(
        "wait backwards, which begins in the first step",
        "loop.backward:backward",
        "await_operand(da, sent, True,",
        "await_operand(da, sent, step > 0,",
        "dataflow backward",
    ),
    Mutation(
        "wait for what the second product multiplies",
        "loop.forward:forward",
        "await_operand((q,), sent, True,",
        "await_operand((q,), sent, False,",
        "dataflow two products",
    ),
    # Products that programs share.
    Mutation("a round's bit", "loop.rounds:round_of", "(turn // 2) & 1", "1 - turn * 0", "dataflow split"),
    Mutation("split_k's second slot", "loop.split_k:sum_of_parts", "(turn % 2)", "(turn * 0)", "dataflow split"),
    Mutation(
        "a round's wait",
        "loop.rounds:exchange_round",
        "missing = any_of((stale & 1) != 0) != 0",
        "missing = limit < 0",
        "dataflow split",
    ),
    Mutation(
        "a round's wait for all tiles but the last",
        "loop.rounds:exchange_round",
        "stale = stale | (tiles[other] ^ round_bit)",
        "stale = tiles[other] ^ round_bit",
        "dataflow split",
    ),
    Mutation(
        "split_k's second slot, with the barrier",
        "loop.split_k:sum_of_parts",
        "(turn % 2)",
        "(turn * 0)",
        "barrier split",
        survives="with the barrier a program stores its part of the next product behind a wait for all, whose arrivals "
        "come after their reads of this one. One layout serves both exchanges",
    ),
    Mutation(
        "a round's wait at the barrier",
        "loop.rounds:exchange_round",
        "missing = wait_for(team, expected, True, limit)",
        "missing = False",
        "barrier split",
    ),
    Mutation(
        "a round's arrival", "loop.rounds:exchange_round", "        arrive(team)\n", "        pass\n", "barrier split"
    ),
    # Means that cross a team.
    Mutation("the means' second slot", "loop.means:everybodys", "place.turn % 2", "place.turn * 0", "dataflow means"),
    Mutation("memory of each site", "loop.means:everybodys", "SITE * 2", "0", "dataflow means"),
    Mutation("a counter of each site", "loop.means:everybodys", "arrivals + SITE", "arrivals", "barrier means"),
    Mutation("the means' counters", "loop.means:memory_of_means", "me.team * 32 + 1", "me.team * 32", "barrier means"),
    Mutation(
        "the means behind the parts",
        "loop.means:memory_of_means",
        "tl.num_programs(0) * PARTS",
        "0",
        "dataflow means, split",
    ),
    # The barrier.
    Mutation("arrive's barrier", "loop.exchange:arrive", "tl.debug_barrier()", "pass", "barrier forward"),
    Mutation("arrive's release", "loop.exchange:arrive", 'sem="release"', 'sem="relaxed"', "barrier forward"),
    Mutation("arrive", "loop.exchange:publish", "        arrive(team)\n", "        pass\n", "barrier forward"),
    Mutation("the wait's acquire", "loop.exchange:wait_for", 'sem="acquire"', 'sem="relaxed"', "barrier forward"),
    Mutation(
        "the wait's acquire, backwards", "loop.exchange:wait_for", 'sem="acquire"', 'sem="relaxed"', "barrier backward"
    ),
    Mutation(
        "the wait at the barrier",
        "loop.exchange:wait_for",
        f"missing = must_wait & ({WAITS} < expected)",
        "missing = must_wait & (limit < 0)",
        "barrier forward",
    ),
    Mutation(
        "the wait for the last one to arrive",
        "loop.exchange:wait_for",
        "< expected",
        "< expected - 1",
        "barrier forward",
    ),
    Mutation(
        "arrivals of a step's second product",
        "loop.forward:forward",
        "1 if CELL.inner is None else 2",
        "1 if CELL.inner is None else 1",
        "barrier two products",
    ),
    Mutation("steps of earlier batch tiles", "loop.forward:forward", "(passed + step)", "(step)", "barrier forward"),
    Mutation(
        "volatile loads behind the barrier",
        "loop.exchange:load_from_l2",
        "volatile=True",
        "volatile=False",
        "barrier forward",
        survives="the acquire orders them and empties the L1: PTX allows a weak load there. It stays volatile because "
        "the function serves both exchanges, and for gfx942",
    ),
    # Ends of waits, and who may wait at all.
    Mutation(
        "a limit of the wait",
        "loop.exchange:goes_on",
        "on = on & (now < end)",
        "on = on & (now < end + (1 << 40))",
        "test_bounded_waits.py::test_a_program_that_never_starts[barrier forward]",
    ),
    Mutation(
        "NaN after a wait in vain",
        "loop.exchange:unless_stalled",
        'tl.where(limit > 0, product, float("nan"))',
        "product",
        "test_bounded_waits.py::test_what_a_wait_in_vain_leaves_is_nan",
    ),
    Mutation(
        "the word for the host",
        "loop.exchange:unless_stalled",
        "tl.store(team.status,",
        "tl.minimum(limit,",
        "test_bounded_waits.py::test_a_program_that_never_starts[dataflow forward]",
    ),
    Mutation(
        "the host's look at the word",
        "stall:raise_if_stalled",
        "if found := word.item():",
        "if found := 0:",
        "test_kernels_forward.py::test_a_stall_is_an_error_once",
    ),
    Mutation(
        "co-residency check",
        "launch:Launcher._start",
        "if fit.resident < self.least:",
        "if fit.resident < 0:",
        "test_kernels_forward.py::test_a_team_that_does_not_fit_is_not_launched",
    ),
    # The waits in PTX, instruction by instruction.
    Mutation(
        "PTX: the test of a word of two numbers",
        "loop.spin:_found",
        "and.b32 v, v, 0x80008000",
        "and.b32 v, v, 0x80000000",
        "test_ptx_blocks.py::test_a_missing_half_is_waited_for_and_only_its_chunk_read_again",
    ),
    Mutation(
        "PTX: the word for the host",
        "loop.spin:_go_on_or_give_up",
        'f"st.relaxed.sys.global.b32 [{status}], u;"',
        '"mov.b32 u, u;"',
        "test_ptx_blocks.py::test_a_wait_ends_at_its_limit",
    ),
    Mutation(
        "PTX: canonical NaN",
        "loop.spin:publish_word",
        '"min.u32 w, $1, 0xFFFFFFFE;"',
        '"mov.b32 w, $1;"',
        "test_ptx_blocks.py::test_publishing_stores_whole_words_and_never_the_sentinel",
    ),
    Mutation(
        "PTX: no wait without a limit",
        "loop.spin:_go_on_or_give_up",
        'f"setp.eq.s32 go, {limit}, 0;"',
        '"setp.eq.s32 go, 1, 0;"',
        "test_ptx_blocks.py::test_nobody_waits_without_a_limit",
    ),
    Mutation(
        "PTX: split_k's round bit",
        "loop.spin:parts_poll",
        "xor.b32 u, ${i}, {round_bit};",
        "xor.b32 u, ${i}, ${i};",
        "test_ptx_blocks.py::test_partial_sums_are_waited_for_by_their_round",
    ),
)


def _find(where: str) -> tuple[object, str, Any]:
    """The module or class that holds a function, its name and what lies there."""
    module, _, name = where.partition(":")
    owner: Any = import_module(PACKAGE + module)
    *classes, name = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name, getattr(owner, name)


def _mutated(mutation: Mutation) -> Any:
    """The function built anew from its changed text, jitted as it was."""
    _, name, found = _find(mutation.where)
    function = getattr(found, "fn", found)
    text = textwrap.dedent(inspect.getsource(function))
    if mutation.old not in text:
        raise ValueError(f"{mutation.name}: {mutation.old!r} is not in {mutation.where}")
    text = text.replace(mutation.old, mutation.new)
    file = f"<mutation {next(_SHOT)}: {mutation.name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {}
    exec(compile(text, file, "exec", flags=__future__.annotations.compiler_flag), function.__globals__, names)
    return names[name]


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """holdfast with the mutation in this block."""
    owner, _, found = _find(mutation.where)
    new = _mutated(mutation)
    holders = [owner] if isinstance(owner, type) else [m for n, m in sys.modules.items() if _is_ours(n, m)]
    places = [(holder, key) for holder in holders for key, value in vars(holder).copy().items() if value is found]
    for holder, key in places:
        setattr(holder, key, new)
    launch.launcher_of.cache_clear()
    try:
        yield
    finally:
        for holder, key in places:
            setattr(holder, key, found)
        launch.launcher_of.cache_clear()


def _is_ours(name: str, module: Any) -> bool:
    """Of holdfast or of its tests, which pytest does not import again."""
    return name.startswith("holdfast.") or str(getattr(module, "__file__", "")).startswith(str(TESTS))


class _Failures:
    """What a run of pytest finds, without its printing."""

    def __init__(self) -> None:
        self.first = ""
        self.ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed and not self.first:
            lines = [line[1:].strip() for line in str(report.longrepr).splitlines() if line.startswith("E ")]
            self.first = lines[0] if lines else str(report.longrepr).splitlines()[-1]


def noticed(mutation: Mutation, schedules: int) -> str:
    """How the test fails under the mutation; "" where it does not."""
    if mutation.notices in CASES:
        expected(CASES[mutation.notices])
        with applied(mutation):
            return next(explore(CASES[mutation.notices], schedules), "")
    failures = _Failures()
    with applied(mutation):
        arguments = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header", "-o", "addopts="]
        arguments += ["--import-mode=importlib", f"--confcutdir={TESTS}", f"--rootdir={TESTS.parent}"]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            pytest.main([*arguments, str(TESTS / mutation.notices), "-m", "not slow and not gpu"], plugins=[failures])
    if not failures.ran:
        raise ValueError(f"{mutation.notices} is no test")
    return failures.first


Found = list[tuple[Mutation, str, float]]
"""With how it was noticed, and seconds of processor time."""


def run(mutations: list[Mutation], schedules: int, progress: Callable[[str], None]) -> Found:
    found = []
    for number, mutation in enumerate(mutations, start=1):
        progress(f"{number}/{len(mutations)} {mutation.name}")
        start = time.process_time()
        found.append((mutation, noticed(mutation, schedules), time.process_time() - start))
    return found


def table(found: Found) -> str:
    """As Markdown; survivors with why they may."""
    lines = ["| taken away | where | noticed by | how |", "| --- | --- | --- | --- |"]
    for mutation, failure, _ in found:
        by = mutation.notices if failure else "nobody"
        how = failure.split("; ")[0].split("\n")[0].replace("|", "/") if failure else mutation.survives or "SURVIVES"
        lines.append(f"| {mutation.name} | `{mutation.where}` | {by} | {how} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    parser.add_argument("--schedules", type=int, default=540, help="of a case, until one fails (default 540)")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if arguments.only in mutation.name]
    if not chosen:
        parser.error(f"no mutation's name contains {arguments.only!r}")
    found = run(chosen, arguments.schedules, lambda text: print(text, file=sys.stderr, flush=True))
    print(table(found))
    if arguments.out:
        arguments.out.write_text(table(found) + "\n")
    lived = [mutation.name for mutation, failure, _ in found if not failure and not mutation.survives]
    died = [mutation.name for mutation, failure, _ in found if failure and mutation.survives]
    for names, what in ((lived, "nobody noticed"), (died, "noticed, though it is said to survive")):
        if names:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    return int(bool(lived or died))


if __name__ == "__main__":
    sys.exit(main())
