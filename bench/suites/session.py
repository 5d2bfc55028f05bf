"""One run of a suite: cases in order of worth, right before timed, rows written as they come."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..method.case import Phase
from ..method.judge import Judge
from ..method.limits import Limits
from ..method.measure import L2, Clock, Method, cpu_clock, measure
from ..method.numbers import Numbers
from ..method.provenance import clocks, write_provenance
from ..method.results import Results
from ..providers.provider import Prepared, Provider, Unavailable
from .entries import Entry, Options
from .prewarm import Prewarm

PEER_FACTOR = 16
"""A peer may err this much more than holdfast before it gets no time: its own choices of precision are its own."""

COMPILED_AHEAD = 16
"""Cases whose kernels are compiled in parallel before the first of them is timed."""


@dataclass
class Session:
    """A suite on its way. `ok` turns False where a result of holdfast's was wrong."""

    suite: str
    options: Options
    on_cpu: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))
    ok: bool = True
    left_out: int = 0

    def __post_init__(self) -> None:
        on_gpu = torch.cuda.is_available() and not self.options.rehearse and not self.on_cpu
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.results = Results(self.options.out, self.suite)
        self.started = time.monotonic()
        self.limits = Limits(self.device, self.results)
        write_provenance(self.options.out, self.suite)

    def close(self) -> None:
        """Record how the run ended: clocks under load, seconds, load, and cases that were left out."""
        write_provenance(
            self.options.out,
            self.suite,
            clocks_at_end=clocks() if self.device.type == "cuda" else None,
            seconds=round(time.monotonic() - self.started, 1),
            load_at_end=[round(load, 2) for load in os.getloadavg()],
            left_out=self.left_out,
        )

    @property
    def timed(self) -> bool:
        return not self.options.rehearse

    def method(self, l2: L2 | None = None, clock: Clock | None = None) -> Method:
        """How this session times: on a GPU by events with a cold L2 where nothing else is asked for.

        On a CPU by processor time where torch has one thread, else by the clock on the wall.
        """
        default = 0.1 if self.options.quick else 0.6
        seconds = self.options.seconds or default
        if self.device.type == "cpu":
            return Method(cpu_clock(), "rotating", seconds)
        return Method(clock or "events", l2 or "cold", seconds)

    def wants(self, provider: Provider) -> bool:
        chosen = self.options.providers
        return not chosen or any(word in provider.name for word in chosen)

    def run(self, entries: Iterable[Entry], methods: Sequence[Method] | None = None) -> None:
        """Check and time every entry, its phases one after the other."""
        todo = list(entries)
        with Prewarm(self.device) as prewarm:
            for index, entry in enumerate(self.track(todo, lambda entry: str(entry.case))):
                if index % COMPILED_AHEAD == 0:
                    prewarm([entry.case for entry in todo[index : index + COMPILED_AHEAD]])
                self._run_entry(entry, methods or [self.method()])

    def _run_entry(self, entry: Entry, methods: Sequence[Method]) -> None:
        with self.executing():
            numbers = Numbers(entry.case, self.device, seed=self.options.seed, copies=3 if self.timed else 1)
            judge = Judge(numbers)
            for phase in entry.phases:
                self.run_phase(entry, numbers, judge, phase, methods)
        del numbers, judge
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def track(self, todo: Sequence[Entry], name: Callable[[Entry], str]) -> Iterator[Entry]:
        """The entries with a progress bar, until time is up."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            bar = progress.add_task(self.suite, total=len(todo))
            for index, entry in enumerate(todo):
                if self._time_is_up():
                    self.left_out = len(todo) - index
                    self.console.print(f"{self.suite}: time is up, {self.left_out} of {len(todo)} cases left out")
                    return
                progress.update(bar, description=f"{self.suite}: {name(entry)}")
                yield entry
                progress.advance(bar)

    def _time_is_up(self) -> bool:
        minutes = self.options.minutes
        return minutes is not None and time.monotonic() - self.started > minutes * 60

    def run_phase(self, entry: Entry, numbers: Numbers, judge: Judge, phase: Phase, methods: Sequence[Method]) -> None:
        """All providers of one case in one phase."""
        base = {"phase": phase, **entry.case.columns()}
        ready: list[tuple[Provider, Prepared, dict[str, object]]] = []
        rows: list[dict[str, object]] = []
        for provider in filter(self.wants, entry.providers):
            row, prepared = self._check(provider, numbers, judge, phase, base)
            if prepared is None or row["status"] != "ok":
                rows.append(row)
            elif self.timed:
                ready.append((provider, prepared, row))
            else:
                rows.append(row | {"status": "rehearsed"})
        self.results.add(rows)
        if ready:
            for method in methods:
                self._time(entry, phase, ready, method, numbers)

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Where kernels run: the GPU, or in a rehearsal the interpreter."""
        where: AbstractContextManager[object] = nullcontext()
        if self.options.rehearse:
            from ...kernels.interpreter import interpret

            where = interpret(self.options.seed)
        with where:
            yield

    def _check(
        self, provider: Provider, numbers: Numbers, judge: Judge, phase: Phase, base: dict[str, object]
    ) -> tuple[dict[str, object], Prepared | None]:
        """The row of a provider with its verdict; and what is to be timed, None where there is nothing."""
        row: dict[str, object] = {"provider": provider.name, **base}
        try:
            prepared = provider.prepare(numbers, phase)
            prepared.call(0)
            outputs = prepared.results()
        except Unavailable as reason:
            return row | {"status": "unavailable", "note": str(reason)}, None
        except Exception as error:
            # A peer may fail in any way it likes, and the others shall still be measured; holdfast must not.
            self.ok &= provider.is_peer
            return row | {"status": "failed", "note": f"{type(error).__name__}: {error}".splitlines()[0]}, None
        row |= {
            "regime": prepared.regime,
            "config": prepared.config,
            "origin": prepared.origin,
            "algorithm": prepared.algorithm,
        }
        own = judge if prepared.numbers is None else Judge(prepared.numbers)
        verdict = own(outputs, prepared.dtype, factor=PEER_FACTOR if provider.is_peer else 1)
        row |= {"error": verdict.error, "allowed": verdict.allowed, "status": "ok" if verdict.ok else "wrong"}
        if not verdict.ok:
            row["note"] = f"{verdict.worst} differs from torch.nn in float64 by more than is allowed"
            self.ok &= provider.is_peer
        return row, prepared

    def _time(
        self,
        entry: Entry,
        phase: Phase,
        ready: Sequence[tuple[Provider, Prepared, dict[str, object]]],
        method: Method,
        numbers: Numbers,
    ) -> None:
        calls = [prepared.call for _, prepared, _ in ready]
        found = measure(calls, method, copies=len(numbers.xs), device=self.device)
        names = [provider.name for provider, _, _ in ready]
        reference = found[names.index(entry.baseline)] if entry.baseline in names else None
        rows = []
        for (_, prepared, row), of_repeats in zip(ready, found, strict=True):
            own = prepared.numbers or numbers
            plan = prepared.plan or next((p.plan for _, p, _ in ready if p.plan and p.numbers is None), None)
            floor = self.limits.floor_us(own, phase, plan)
            for repeat, q in enumerate(of_repeats):
                rows.append(
                    row
                    | {
                        "l2": method.l2,
                        "clock": method.clock,
                        "repeat": repeat,
                        "samples": q.samples,
                        "p20_us": q.p20,
                        "p50_us": q.p50,
                        "p80_us": q.p80,
                        "us_per_step": q.p50 / own.case.length,
                        "baseline": entry.baseline if reference else "",
                        "ratio": reference[repeat].p50 / q.p50 if reference else math.nan,
                        "floor_us": floor,
                        "floor_multiple": q.p50 / floor,
                    }
                )
        self.results.add(rows)
