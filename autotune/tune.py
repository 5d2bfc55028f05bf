"""Tune one problem: search, compile, drop what cannot run, time the rest in order of promise, keep everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import pandas as pd
import torch

from ..kernels.config import Config
from ..kernels.describe import least_grid
from ..kernels.layer import Keep
from ..kernels.plan import Reason
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .compile_many import OUT_OF_TIME, Compilers, Outcome, Request, compile_many
from .cost import estimate
from .entry import Entry, EntryError, Rejected, Timing
from .fingerprint import fingerprint
from .heuristic import choose
from .job import Job, Result
from .key import SHORT, LengthClass, key_of, problem_of
from .measure import Child, Children, require_gpu
from .space import Refused, keeps, search
from .store import Store
from .table import Row, to_table

LENGTH: dict[LengthClass, int] = {"short": SHORT // 2, "long": 512}
"""Steps of the sequences that stand for a class."""

CANDIDATES = 32
"""Configs that are compiled, the most promising by estimate."""

FINALISTS = 4
"""Configs that are timed with every other way to keep values: the best of the usual way."""

COMPILE_SHARE = 0.5
"""The most of a budget that compiling may take."""

INTERPRETED_HIDDEN_SIZE = 64
"""The largest layer that a rehearsal runs in the interpreter; larger ones take it minutes."""

Progress = Callable[[str, int, int, str], None]
"""Called with the stage, what is done of it, all of it, and a word on what was last done."""


@dataclass
class Tuned:
    """What became of a problem.

    table:  one row per candidate, see `table.COLUMNS`.
    note:   why there is less than one might expect; "" where there is nothing to say.
    """

    entry: Entry
    table: pd.DataFrame
    note: str = ""


@dataclass
class _Run:
    """The state of one tuning run, passed from stage to stage."""

    problem: Problem
    limits: DeviceLimits
    length: int
    device: torch.device | None
    store: Store
    entry: Entry
    deadline: float
    progress: Progress
    children: Children | None
    rows: dict[tuple[Config, Keep], Row] = field(default_factory=dict)


def tune(
    problem: Problem,
    limits: DeviceLimits,
    *,
    store: Store,
    device: torch.device | None,
    length: LengthClass = "long",
    budget_s: float = 60.0,
    candidates: int = CANDIDATES,
    compilers: Compilers | None = None,
    child: Child | None = None,
    children: Children | None = None,
    progress: Progress = lambda *_: None,
) -> Tuned:
    """Find the fastest config of a problem's class and put everything that was learnt into a store.

    device:      the GPU to time on; None: a rehearsal, which does everything but the timing, for a GPU with `limits`.
    budget_s:    wall-clock seconds; what runs when they are over is finished.
    candidates:  how many configs are compiled.
    compilers, child:  processes to use; without, some are started and ended.
    children:    processes that load candidates side by side before they are timed one by one; None: none do.

    What an earlier run has tried is not tried again. Raises MeasurementRefusedError where nothing can be timed on
    `device`, before anything is compiled.
    """
    if device is not None:
        require_gpu(device)
    start = time.monotonic()
    key = replace(key_of(problem), length=length)
    problem = problem_of(key)
    choice = choose(problem, limits)
    default = None if isinstance(choice, Reason) else choice
    where = fingerprint(problem, limits)
    try:
        known = store.load(key, where)
    except EntryError:  # which the store sets aside when the new one is written
        known = None
    entry = Entry(key, where, default)
    run = _Run(problem, limits, LENGTH[length], device, store, entry, start + budget_s, progress, children)
    ranked, refused = search(problem, limits)
    if not ranked:
        return Tuned(entry, to_table(run.rows.values()), f"no config fits {limits.name}: {_commonest(refused)}")
    first, *others = keeps(problem)
    configs = [r.config for r in ranked]
    with _or_new(compilers, Compilers) as compilers, _or_new(child, Child) as child:
        tried = known.tried(first) if known else set()
        promising = [c for c in configs if c not in tried][:candidates]
        compiled = _compile(run, promising, first, compilers, start + COMPILE_SHARE * budget_s)
        reference = default or configs[0]
        _time(run, compiled, first, reference, child, known)
        merged = known.merged(run.entry) if known else run.entry
        best = sorted(merged.latest(first).values(), key=lambda t: t.p50_us)[:FINALISTS]
        finalists = [t.config for t in best] or list(compiled)[:1]
        for keep in others:
            tried = known.tried(keep) if known else set()
            compiled = _compile(run, [c for c in finalists if c not in tried], keep, compilers, run.deadline)
            _time(run, compiled, keep, reference, child, known)
    if run.entry.timings or run.entry.rejected or known is None:
        store.add(run.entry)
    entry = known.merged(run.entry) if known else run.entry
    return Tuned(entry, to_table(run.rows.values()), "" if run.rows else "everything promising had been tried before")


def _compile(
    run: _Run, configs: list[Config], keep: Keep, compilers: Compilers, deadline: float
) -> dict[Config, Outcome]:
    """The configs that compile into kernels that may run; the others are written down as rejected."""
    for config in configs:
        is_heuristic = config == run.entry.heuristic
        cost = estimate(run.problem, config, run.limits, keep=keep).total_us(run.length)
        run.rows[config, keep] = Row(config, keep, "compiled", cost, is_heuristic)
    requests = {
        Request(run.problem, config, run.limits.target, keep == "save", run.limits): config for config in configs
    }
    outcomes = compile_many(
        requests,
        lambda done, total: run.progress("compile", done, total, ""),
        compilers=compilers,
        deadline=deadline,
    )
    kept = {}
    for request, config in requests.items():
        outcome, row = outcomes[request], run.rows[config, keep]
        if outcome.report is not None:
            row.registers, row.shared_bytes = outcome.report.registers, outcome.report.shared_bytes
        why = flaw(request, outcome)
        if why is None:
            kept[config] = outcome
            continue
        row.status, row.why = ("not compiled" if OUT_OF_TIME in why else "rejected"), why
        if row.status == "rejected":
            _reject(run, config, keep, why)
    return kept


def flaw(request: Request, outcome: Outcome) -> str | None:
    """Why a compiled kernel is not worth timing, or cannot run; None where nothing is wrong with it."""
    if outcome.report is None:
        return outcome.error
    need = least_grid(request.problem, request.config)
    limit = request.limits.shared_per_block
    report = outcome.report
    if report.spills_in_loop:
        return f"spills inside the time loop, {report.spill_bytes} bytes a thread in all"
    if report.shared_bytes > limit:
        return f"needs {report.shared_bytes} bytes of shared memory, {limit} are there"
    if not report.matrix_instructions:
        # GRU bf16 H=256, BLOCK_B=64 BLOCK_H=64 BLOCK_K=32, sm_100, Triton 3.7.1: an empty kernel of 4 registers.
        return "has no matrix instruction: the compiler has made something else of it"
    if outcome.weight_loads_in_loop:
        return f"reads W_hh again in the time loop, {outcome.weight_loads_in_loop} loads"
    if request.config.regime == "cooperative" and outcome.resident_programs < need:
        return f"needs {need} programs resident at once, {outcome.resident_programs} are"
    return None


def _time(
    run: _Run, compiled: dict[Config, Outcome], keep: Keep, reference: Config, child: Child, known: Entry | None
) -> None:
    if run.device is not None and run.children is not None:
        name = f"cuda:{run.device.index or 0}"
        jobs = [Job(run.problem, config, keep, reference, run.length, name, untimed=True) for config in compiled]
        middle = time.monotonic() + COMPILE_SHARE * max(0.0, run.deadline - time.monotonic())
        run.children.run_all(jobs, middle, lambda done: run.progress("load", done, len(jobs), ""))
    so_far = [t.p50_us for t in (known.latest(keep).values() if known else ())]
    for done, (config, outcome) in enumerate(compiled.items()):
        row = run.rows[config, keep]
        if time.monotonic() > run.deadline:
            row.status, row.why = "not timed", "the time was up"
            continue
        best = min(so_far, default=None)
        result = _run_one(run, config, keep, reference, child, best)
        row.status, row.why = result.status, result.why
        if result.status in ("wrong", "failed", "killed"):
            if run.device is not None:
                _reject(run, config, keep, f"{result.status}: {result.why}")
        elif result.warm is not None:
            _record(run, row, result, outcome)
            if result.status == "timed":
                so_far.append(result.warm.p50)
            run.store.add(run.entry)  # at once: a run that is cut off keeps what it has
        best_words = f"best {min(so_far):.1f} us" if so_far else "nothing timed"
        run.progress("time" if run.device else "rehearse", done + 1, len(compiled), best_words)


def _run_one(run: _Run, config: Config, keep: Keep, reference: Config, child: Child, best: float | None) -> Result:
    if run.device is not None:
        name = f"cuda:{run.device.index or 0}"
        return child.run(Job(run.problem, config, keep, reference, run.length, name, best))
    if run.problem.hidden_size > INTERPRETED_HIDDEN_SIZE:
        return Result("not run", f"more than {INTERPRETED_HIDDEN_SIZE} units take the interpreter minutes")
    small = replace(run.problem, batch_size=min(run.problem.batch_size, 3))
    return child.run(Job(small, config, keep, reference, 3, "cpu"))


def _record(run: _Run, row: Row, result: Result, outcome: Outcome) -> None:
    assert result.warm is not None
    assert outcome.report is not None
    row.warm_us, row.p20_us, row.p80_us = result.warm.p50, result.warm.p20, result.warm.p80
    row.cold_us = result.cold.p50 if result.cold else None
    when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    timings = [
        Timing(
            row.config,
            row.keep,
            "warm" if times is result.warm else "cold",
            times.stopped,
            times.p20,
            times.p50,
            times.p80,
            times.repeats,
            run.length,
            run.problem.batch_size,
            outcome.report.registers,
            outcome.report.shared_bytes,
            when,
        )
        for times in (result.warm, result.cold)
        if times is not None
    ]
    run.entry = replace(run.entry, timings=(*run.entry.timings, *timings))


def _reject(run: _Run, config: Config, keep: Keep, why: str) -> None:
    run.entry = replace(run.entry, rejected=(*run.entry.rejected, Rejected(config, keep, why)))


def _commonest(refused: Sequence[Refused]) -> str:
    """Which constraints the whole space fell to."""
    counts = pd.Series([r.constraint for r in refused]).value_counts()
    return ", ".join(f"{count} configs by {name}" for name, count in counts.items())


def _or_new(given, make):  # type: ignore[no-untyped-def]
    return make() if given is None else nullcontext(given)
