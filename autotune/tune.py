"""Tune one problem: search, compile, drop what cannot run, time the rest in order of promise, keep everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import pandas as pd
import torch

from ..kernels.config import Config
from ..kernels.describe import least_grid
from ..kernels.kept import Keep
from ..kernels.plan import Reason
from ..kernels.problem import Problem
from ..kernels.resources import DeviceLimits
from .candidates import Refused, choose, search
from .compile_many import OUT_OF_TIME, Outcome, Request, compile_many
from .cost import estimate
from .identity import SHORT, LengthClass, fingerprint, keeps, key_of, problem_of
from .measure import Job, Result, require_gpu, torch_has
from .offline import CompiledReport
from .processes import Workers
from .report import Row, to_table
from .store import Entry, EntryError, Rejected, Store, Timing

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


@dataclass(frozen=True)
class Setup:
    """Where to tune and where to put what is learnt: the same for every problem of a list.

    limits:      of the GPU that is tuned for.
    device:      the GPU to time on; None: a rehearsal, which does everything but the timing, for a GPU with `limits`.
    candidates:  how many configs of a problem are compiled.
    """

    limits: DeviceLimits
    device: torch.device | None
    store: Store
    candidates: int = CANDIDATES


@dataclass
class Tuned:
    """What became of a problem.

    table:  one row per candidate, see `report.Row`.
    note:   why there is less than one might expect; "" where there is nothing to say.
    """

    entry: Entry
    table: pd.DataFrame
    note: str = ""


def tune(
    problem: Problem,
    setup: Setup,
    *,
    length: LengthClass = "long",
    budget_s: float = 60.0,
    workers: Workers | None = None,
    progress: Progress = lambda *_: None,
) -> Tuned:
    """Find the fastest config of a problem's class and put everything that was learnt into a store.

    budget_s:  wall-clock seconds; what runs when they are over is finished.
    workers:   processes to use; without, some are started and ended.

    What an earlier run has tried is not tried again. Raises MeasurementRefusedError where nothing can be timed on the
    setup's device, before anything is compiled.
    """
    if setup.device is not None:
        require_gpu(setup.device)
    start = time.monotonic()
    limits = setup.limits
    key = replace(key_of(problem), length=length)
    problem = problem_of(key)
    choice = choose(problem, limits)
    empty = Entry(key, fingerprint(problem, limits), None if isinstance(choice, Reason) else choice)
    ranked, refused = search(problem, limits)
    if not ranked:
        return Tuned(empty, to_table(()), f"no config fits {limits.name}: {_commonest(refused)}")
    try:
        known = setup.store.load(key, empty.fingerprint)
    except EntryError:  # which the store sets aside when the new one is written
        known = None
    with ExitStack() as stack:
        workers = workers or stack.enter_context(Workers())
        run = _Run(problem, setup, LENGTH[length], workers, start + budget_s, progress, known or empty, empty)
        usual, *others = keeps(problem)
        configs = run.untried((r.config for r in ranked), usual)[: setup.candidates]
        reference = empty.heuristic or ranked[0].config
        compiled = run.compile(configs, usual, start + COMPILE_SHARE * budget_s)
        run.measure(compiled, usual, reference)
        best = sorted(run.entry.latest(usual).values(), key=lambda t: t.p50_us)[:FINALISTS]
        finalists = [t.config for t in best if t.config] or list(compiled)[:1]
        for keep in others:
            run.measure(run.compile(run.untried(finalists, keep), keep, run.deadline), keep, reference)
        if torch_has(problem):
            for keep in (usual, *others):
                if keep != "recompute":
                    run.measure_torch(keep, reference)
    if run.found != empty or known is None:
        setup.store.add(run.found)
    note = "" if run.rows else "everything promising had been tried before"
    return Tuned(run.entry, to_table(run.rows.values()), note)


@dataclass
class _Run:
    """One tuning run: what it is for, and what it has found so far.

    length:  steps of the sequence.
    known:   what earlier runs have found.
    found:   what this one has; the store gets it as it grows, so that a run that is cut off keeps what it has.
    rows:    the table's.
    torch:   what became of torch's own op.
    """

    problem: Problem
    setup: Setup
    length: int
    workers: Workers
    deadline: float
    progress: Progress
    known: Entry
    found: Entry
    rows: dict[tuple[Config, Keep], Row] = field(default_factory=dict)
    torch: dict[Keep, Result] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """Everything that is known now."""
        return self.known.merged(self.found)

    def untried(self, configs: Iterable[Config], keep: Keep) -> list[Config]:
        """Those that no earlier run has timed or turned down."""
        tried = self.known.tried(keep)
        return [config for config in configs if config not in tried]

    def compile(self, configs: Sequence[Config], keep: Keep, deadline: float) -> dict[Config, Outcome]:
        """The configs that compile into kernels that may run; the others are written down as rejected."""
        limits = self.setup.limits
        for config in configs:
            cost = estimate(self.problem, config, limits, keep=keep).total_us(self.length)
            is_heuristic = config == self.found.heuristic
            self.rows[config, keep] = Row(config=config, keep=keep, estimate_us=cost, is_heuristic=is_heuristic)
        requests = {Request(self.problem, config, limits.target, keep, limits): config for config in configs}
        outcomes = compile_many(
            requests,
            lambda done, total: self.progress("compile", done, total, ""),
            compilers=self.workers.compilers,
            deadline=deadline,
        )
        kept = {}
        for request, config in requests.items():
            outcome, row = outcomes[request], self.rows[config, keep]
            if outcome.report is not None:
                row.registers, row.shared_bytes = outcome.report.registers, outcome.report.shared_bytes
            why = flaw(request, outcome)
            if why is None:
                kept[config] = outcome
            elif OUT_OF_TIME in why:
                row.status, row.why = "not compiled", why
            else:
                row.status, row.why = "rejected", why
                self._reject(config, keep, why)
        return kept

    def measure(self, compiled: dict[Config, Outcome], keep: Keep, reference: Config) -> None:
        """Compare each with the reference's results and time it, until the time is up."""
        jobs = {config: self._job(config, keep, reference) for config in compiled}
        if self.setup.device is not None and self.workers.children is not None:
            middle = time.monotonic() + COMPILE_SHARE * max(0.0, self.deadline - time.monotonic())
            untimed = [replace(job, untimed=True) for job in jobs.values()]
            self.workers.children.run_all(untimed, middle, lambda done: self.progress("load", done, len(jobs), ""))
        times = [t.p50_us for t in self.known.latest(keep).values()]
        for done, (config, job) in enumerate(jobs.items(), start=1):
            row = self.rows[config, keep]
            if time.monotonic() > self.deadline:
                row.status, row.why = "not timed", "the time was up"
                continue
            result = self._run_one(replace(job, best_us=min(times, default=None)))
            row.status, row.why = result.status, result.why
            if result.status in ("wrong", "failed", "killed"):
                if self.setup.device is not None:
                    self._reject(config, keep, f"{result.status}: {result.why}")
            elif result.warm is not None:
                row.warm_us, row.p20_us, row.p80_us = result.warm.p50, result.warm.p20, result.warm.p80
                row.cold_us = result.cold.p50 if result.cold else None
                self._record(config, keep, result, compiled[config].report)
                if result.status == "timed":
                    times.append(result.warm.p50)
                self.setup.store.add(self.found)
            best = f"best {min(times):.1f} us" if times else "nothing timed"
            self.progress("time" if self.setup.device else "rehearse", done, len(jobs), best)

    def measure_torch(self, keep: Keep, reference: Config) -> None:
        """Torch's own op as one more candidate, whose results need not be the kernels' bit for bit either."""
        if self.known.fused(keep) is not None or time.monotonic() > self.deadline:
            return
        self.torch[keep] = self._run_one(self._job(None, keep, reference))
        if self.torch[keep].status == "timed":
            self._record(None, keep, self.torch[keep])
            self.setup.store.add(self.found)

    def _job(self, config: Config | None, keep: Keep, reference: Config) -> Job:
        """What a child runs: on the GPU the problem itself, in a rehearsal a few rows and steps of it."""
        if self.setup.device is not None:
            device = f"cuda:{self.setup.device.index or 0}"
            return Job(self.problem, config, keep, reference, self.length, device)
        small = replace(self.problem, batch_size=min(self.problem.batch_size, 3))
        return Job(small, config, keep, reference, 3, "cpu")

    def _run_one(self, job: Job) -> Result:
        if job.device == "cpu" and job.problem.hidden_size > INTERPRETED_HIDDEN_SIZE:
            return Result("not run", f"more than {INTERPRETED_HIDDEN_SIZE} units take the interpreter minutes")
        return self.workers.child.run(job)

    def _record(self, config: Config | None, keep: Keep, result: Result, report: CompiledReport | None = None) -> None:
        when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        timings = [
            Timing(
                config=config,
                keep=keep,
                l2="warm" if times is result.warm else "cold",
                stopped=times.stopped,
                p20_us=times.p20,
                p50_us=times.p50,
                p80_us=times.p80,
                repeats=times.repeats,
                length=self.length,
                batch=self.problem.batch_size,
                registers=report.registers if report else 0,
                shared=report.shared_bytes if report else 0,
                when=when,
            )
            for times in (result.warm, result.cold)
            if times is not None
        ]
        self.found = replace(self.found, timings=(*self.found.timings, *timings))

    def _reject(self, config: Config, keep: Keep, why: str) -> None:
        self.found = replace(self.found, rejected=(*self.found.rejected, Rejected(config, keep, why)))


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


def _commonest(refused: Sequence[Refused]) -> str:
    """Which constraints the whole space fell to."""
    counts = pd.Series([r.constraint for r in refused]).value_counts()
    return ", ".join(f"{count} configs by {name}" for name, count in counts.items())
