"""What this machine can do at most: copies, products; on a GPU also exchanges and products with resident weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch

from ...autotune.constants import Constants, constants_for, save_constants
from ...autotune.cost import estimate
from ...kernels.config import Config, Exchange
from ...kernels.problem import Phase, Problem
from ...kernels.resources import DeviceLimits, from_device
from ..method.case import DTYPES, Case
from ..method.floor import Exchange as ExchangeRun
from ..method.floor import ResidentWeights, measure_floor
from ..method.limits import measure_rates
from .entries import Entry
from .session import Session

TEAMS = (2, 4, 8, 16, 32, 48, 64, 128)


def run(session: Session) -> None:
    if session.timed:
        # A CPU multiplies float16 in software.
        names = list(DTYPES) if session.device.type == "cuda" else ["fp32", "bf16"]
        for name in names:
            rates = measure_rates(session.device, DTYPES[name])
            rows = [{"provider": f"product {name}", "dtype": name, "rate": rates.matrix, "status": "ok"}]
            rows += [{"provider": "copy", "rate": rates.copy, "status": "ok"}] if name == "fp32" else []
            session.results.add({"phase": "forward", **row} for row in rows)
    todo = list(geometries(session))
    entries = [Entry(_case(problem), ()) for problem, _ in todo]
    for (problem, config), _ in zip(todo, session.track(entries, lambda entry: str(entry.case)), strict=False):
        with session.executing():
            session.results.add(_rows(session, problem, config))
    if session.timed and session.device.type == "cuda":
        limits = from_device(session.device)
        save_constants(constants(session.results.table(), limits), limits, session.options.out / "constants.json")


def constants(table: pd.DataFrame, limits: DeviceLimits) -> dict[str, tuple[float, str]]:
    """What the rows of this suite say about the cost model, as `autotune.constants.save_constants` takes it.

    The exchange is that of 48 programs at B=16 forwards, the team of an LSTM of 768. What it takes besides what the
    model knows is put down to polls that fail, or to the counter.
    """
    copy = table[table["provider"] == "copy"]["rate"].iloc[0]
    measured = {"dram_bytes_per_us": (float(copy) / 1e6, "holdfast bench floors: a large copy, read and written")}
    known = constants_for(limits)
    for exchange, solved_for in (("dataflow", "failing_polls"), ("barrier", "arrive_clocks")):
        name = f"exchange only, {exchange}, forward"
        found = table[(table["provider"] == name) & (table["H"] == 768)]["us_per_step"]
        if len(found):
            value = _solved(solved_for, float(found.median()), exchange, limits, known)
            measured[solved_for] = (
                value,
                f"holdfast bench floors: {name}, 48 programs, B=16, less what the model knows",
            )
            constant = replace(getattr(known, solved_for), value=value)
            known = replace(known, **{solved_for: constant})
    return measured


def _solved(name: str, us: float, exchange: str, limits: DeviceLimits, known: Constants) -> float:
    """The value of a constant with which an exchange takes so many microseconds; 0.01 where less does not."""
    problem, config = _geometry(48, "forward", exchange)  # type: ignore[arg-type]

    def exchange_us(value: float) -> float:
        constants = replace(known, **{name: replace(getattr(known, name), value=value)})
        cost = estimate(problem, config, limits, constants)
        return cost.publish + cost.waits

    low, high = 0.01, 1e5
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if exchange_us(middle) < us else (low, middle)
    return round(low, 2)


def _geometry(team: int, phase: Phase, exchange: Exchange) -> tuple[Problem, Config]:
    """A team of 16 units a program at B=16; backwards up to four share a product."""
    hidden = 16 * team
    block = 64 if hidden < 512 else 128
    split = min(4, team) if phase == "backward" else 1
    config = Config("cooperative", 16, 16, min(block, hidden), exchange=exchange, SPLIT_K=split)
    return Problem("lstm", torch.bfloat16, hidden, 16, phase=phase), config


def geometries(session: Session) -> Iterator[tuple[Problem, Config]]:
    """Teams of 16 units a program at B=16, in both protocols and both directions of time.

    Backwards four programs share a product: its 64 rows are what they are forwards.
    """
    if session.options.rehearse:
        teams: tuple[int, ...] = (2,)
    elif session.device.type == "cuda":
        teams = (TEAMS[5], *TEAMS) if not session.options.quick else (48,)
    else:
        teams = ()
    phases: tuple[Phase, ...] = ("forward", "backward")
    exchanges: tuple[Exchange, ...] = ("dataflow", "barrier")
    seen = set()
    for team in teams:
        for phase in phases:
            for exchange in exchanges:
                problem, config = _geometry(team, phase, exchange)
                if (problem, config) not in seen and problem.hidden_size <= 1024:
                    seen.add((problem, config))
                    yield problem, config


def _case(problem: Problem) -> Case:
    return Case(problem.cell, problem.dtype, problem.hidden_size, problem.batch_size, 512)


def _rows(session: Session, problem: Problem, config: Config) -> list[dict[str, object]]:
    base = {
        "phase": "forward" if problem.phase == "forward" else "training",
        **_case(problem).columns(),
        "regime": config.regime,
        "config": str(config),
    }
    names = (f"exchange only, {config.exchange}, {problem.phase}", f"resident weights only, {problem.phase}")
    if not session.timed:
        exchange = ExchangeRun(problem, config, session.device, 3)
        exchange.reset()
        exchange.run()
        ResidentWeights(problem, config, session.device, 3).run()
        return [{"provider": name, **base, "T": 3, "status": "rehearsed"} for name in names]
    rows = []
    for repeat in range(3):
        floor = measure_floor(problem, config, session.device)
        for name, us in zip(names, (floor.exchange_us, floor.weights_us), strict=True):
            timed = {"clock": "events", "l2": "warm", "repeat": repeat, "p50_us": us * 512, "us_per_step": us}
            rows.append({"provider": name, **base, **timed, "status": "ok"})
    return rows
