"""Count what configs take in the machine code, fit lines through it, and write `counts.json`.

    python -m holdfast.autotune.fit_counts

once the kernels have changed: some 300 kernels for three architectures, ten minutes on two busy cores, seconds
where Triton's cache has them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import triton

from ..kernels.config import Config
from ..kernels.plan import Reason
from ..kernels.problem import Phase, Precision, Problem
from ..kernels.setting import check_environment
from .candidates import candidates, choose, configs
from .compile_many import Outcome, Request, compile_many
from .constraints import CONSTRAINTS, TUNED_CONSTRAINTS, refusal
from .counts import DEPENDS_ON, FILE, Counts, Features, evaluate, features_of, group_of
from .identity import keeps
from .offline import REFERENCE_DEVICE
from .processes import Compilers
from .sass import Step

TARGETS = ("sm_80", "sm_90", "sm_100")
"""Those whose code says how long an instruction issues."""

KINDS: tuple[tuple[torch.dtype, Precision], ...] = (
    (torch.bfloat16, "ieee"),
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
)
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
PHASES: tuple[Phase, ...] = ("forward", "backward")


def sample(number: int, only: str | None = None, seed: int = 0) -> list[Request]:
    """Kernels of every group, of none more than a twelfth: there are 18, and some are rarely drawn.

    only:  an exchange whose 6 groups alone are drawn, none more than a quarter.

    Half of them are what the heuristic may choose, half from the tuner's wider space.
    """
    draw = random.Random(seed)
    requests: dict[Request, None] = {}
    of_group: Counter[str] = Counter()
    most = max(1, number // (12 if only is None else 4))
    while len(requests) < number:
        target, phase = draw.choice(TARGETS), draw.choice(PHASES)
        dtype, precision = draw.choice(KINDS)
        hidden, batch = draw.choice((32, 64, 100, 128, 256, 384, 512, 768, 1024)), draw.choice((16, 16, 32, 64))
        problem = Problem(draw.choice(CELLS), dtype, hidden, batch, 1, precision, phase)
        limits = REFERENCE_DEVICE[target]
        if isinstance(choose(problem, limits), Reason):
            continue
        usual = [c for c in candidates(problem, limits) if refusal(problem, c, limits, CONSTRAINTS) is None]
        wide = [c for c in configs(problem, limits) if refusal(problem, c, limits, TUNED_CONSTRAINTS) is None]
        exchange = only or draw.choice(("registers", "dataflow", "dataflow", "barrier"))
        found = [c for c in draw.choice((usual, wide)) if _exchange(c) == exchange and c.num_stages == 1]
        if not found:
            continue
        request = Request(problem, draw.choice(found), target, draw.choice(keeps(problem)))
        group = group_of(problem, request.config, limits)
        if request not in requests and of_group[group] < most:
            of_group[group] += 1
            requests[request] = None
    return list(requests)


def _exchange(config: Config) -> str:
    return "registers" if config.regime == "single_cta" else config.exchange


def counted(step: Step) -> Counts:
    """What was counted, in the terms that the lines are of."""
    return Counts(
        poll=step.parts.poll,
        operands=step.parts.operands,
        product=step.parts.product,
        rest=step.parts.head + step.parts.gates,
        barriers=step.counts.barriers,
        again=sum(poll.issue_cycles for poll in step.polls),
        again_barriers=sum(poll.barriers for poll in step.polls),
        drained=step.drained_groups,
    )


def fit(outcomes: dict[Request, Outcome]) -> dict[str, Any]:
    """The content of `counts.json`. What spills in its loop, or did not compile, is no example."""
    groups: dict[str, list[tuple[Features, Counts]]] = defaultdict(list)
    for request, outcome in outcomes.items():
        report = outcome.report
        if report is not None and report.step is not None and not report.spills_in_loop and report.matrix_instructions:
            place = group_of(request.problem, request.config, request.limits)
            groups[place].append((features_of(request.problem, request.config, request.limits), counted(report.step)))
    rows = {name: _lines(groups[name]) for name in sorted(groups)}
    return {"triton": triton.__version__, "made by": "python -m holdfast.autotune.fit_counts", "groups": rows}


def _lines(examples: list[tuple[Features, Counts]]) -> dict[str, Any]:
    lines = {}
    for count, names in DEPENDS_ON.items():
        matrix = np.array([[getattr(features, name) for name in names] for features, _ in examples])
        values = np.array([getattr(counts, count) for _, counts in examples], dtype=float)
        slopes = _not_negative(matrix, values)
        lines[count] = {name: round(float(slope), 3) for name, slope in zip(names, slopes, strict=True) if slope}
    off = sorted(abs(_issue(_by(lines, features)) / _issue(counts) - 1) for features, counts in examples)
    return {"kernels": len(examples), "lines": lines, "off_by": [round(off[len(off) // 2], 3), round(off[-1], 3)]}


def _by(lines: dict[str, dict[str, float]], features: Features) -> Counts:
    return Counts(*(evaluate(lines[name], features) for name in Counts._fields))


def _issue(counts: Counts) -> float:
    return counts.poll + counts.operands + counts.product + counts.rest


def _not_negative(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares, without the features whose slope would be below zero: more work never takes less."""
    slopes = np.zeros(matrix.shape[1])
    left = [column for column in range(matrix.shape[1]) if matrix[:, column].any()]
    while left:
        found = np.linalg.lstsq(matrix[:, left], values, rcond=None)[0]
        if (found >= 0).all():
            slopes[left] = found
            break
        left.pop(int(found.argmin()))
    return slopes


def table(groups: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line a group: how many kernels, and how far the lines are from what was counted."""
    yield "| kernels of | counted | median off by | at most |"
    yield "| --- | --- | --- | --- |"
    for name, row in groups.items():
        median, most = row["off_by"]
        yield f"| {name} | {row['kernels']} | {median:.0%} | {most:.0%} |"


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kernels", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", choices=["registers", "dataflow", "barrier"], help="fit this exchange anew alone")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    try:
        check_environment()
    except ValueError as error:
        parser.error(str(error))
    with Compilers(chosen.processes) as compilers:
        outcomes = compile_many(sample(chosen.kernels, chosen.only), _progress, compilers=compilers)
    content = fit(outcomes)
    if chosen.only is not None:
        before = json.loads(FILE.read_text(encoding="utf-8"))["groups"]
        content["groups"] = dict(sorted((before | content["groups"]).items()))
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(content["groups"])))


def _progress(done: int, total: int) -> None:
    if done % 20 == 0 or done == total:
        print(f"{done} of {total} kernels", flush=True)


if __name__ == "__main__":
    main()
