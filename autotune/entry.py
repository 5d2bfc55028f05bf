"""The tuning result of one problem: everything that was timed or turned down, and the JSON file that holds it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..kernels.config import Config, Exchange
from ..kernels.layer import Keep
from .fingerprint import Fingerprint
from .key import Key

SCHEMA = 1

L2 = Literal["cold", "warm"]
"""Whether the L2 cache was cleared before each call."""


class EntryError(ValueError):
    """A file is no entry that can be used; the message says why, and names the file."""


@dataclass(frozen=True)
class Timing:
    """One measurement of a whole layer, input projection included.

    stopped:               True where it was given up early, because it could not win.
    p20_us, p50_us, p80_us:  quantiles of one call, microseconds.
    repeats:               calls timed.
    length, batch:         of the sequences.
    registers, shared:     of the compiled kernel: per thread, and bytes per program.
    when:                  UTC, ISO 8601.
    """

    config: Config
    keep: Keep
    l2: L2
    stopped: bool
    p20_us: float
    p50_us: float
    p80_us: float
    repeats: int
    length: int
    batch: int
    registers: int
    shared: int
    when: str


@dataclass(frozen=True)
class Rejected:
    """A config that is not to be tried again: it spills, does not fit, stalls, or computes something else."""

    config: Config
    keep: Keep
    why: str


@dataclass(frozen=True)
class Entry:
    """heuristic:  what the heuristic would have chosen, None where it knows no config."""

    key: Key
    fingerprint: Fingerprint
    heuristic: Config | None = None
    timings: tuple[Timing, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def latest(self, keep: Keep, l2: L2 = "warm") -> dict[Config, Timing]:
        """The newest complete timing of each config."""
        rows = (t for t in self.timings if t.keep == keep and t.l2 == l2 and not t.stopped)
        return {t.config: t for t in sorted(rows, key=lambda t: t.when)}

    def best(self, keep: Keep) -> Timing | None:
        """The fastest, with a warm L2: in a model the input projection has just filled it."""
        return min(self.latest(keep).values(), key=lambda t: t.p50_us, default=None)

    def tried(self, keep: Keep) -> set[Config]:
        timed = {t.config for t in self.timings if t.keep == keep}
        return timed | {r.config for r in self.rejected if r.keep == keep}

    def merged(self, other: Entry) -> Entry:
        """Everything that either of two entries of one problem holds."""
        return replace(
            self,
            heuristic=other.heuristic or self.heuristic,
            timings=_union(self.timings, other.timings),
            rejected=_union(self.rejected, other.rejected),
        )


def _union(first: Iterable[Any], second: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def to_json(entry: Entry) -> str:
    """The entry as text, with a digest of itself: what was edited by hand has been measured by nobody."""
    content = {
        "schema": SCHEMA,
        "key": entry.key.asdict(),
        "fingerprint": entry.fingerprint.asdict(),
        "heuristic": entry.heuristic and entry.heuristic.asdict(),
        "timings": [asdict(t) for t in entry.timings],
        "rejected": [asdict(r) for r in entry.rejected],
    }
    return json.dumps(content | {"digest": _digest(content)}, indent=1) + "\n"


def from_json(text: str, where: object) -> Entry:
    """The entry that `to_json` wrote.

    where:  what to call it in messages.

    Raises EntryError for anything else.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise EntryError(f"{where}: no JSON, cut off perhaps ({error})") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise EntryError(f"{where}: not an entry of holdfast's tuner")
    if content["schema"] != SCHEMA:
        raise EntryError(f"{where}: written as schema {content['schema']!r}, this version reads {SCHEMA}")
    if content.pop("digest", None) != _digest(content):
        raise EntryError(f"{where}: edited since it was written (its digest does not match)")
    try:
        return Entry(
            _read(Key, content["key"]),
            _read(Fingerprint, content["fingerprint"]),
            content["heuristic"] and config_from(content["heuristic"]),
            tuple(_timing(row) for row in content["timings"]),
            tuple(_read(Rejected, row | {"config": config_from(row["config"])}) for row in content["rejected"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EntryError(f"{where}: written by another version of holdfast ({error})") from error


def config_from(content: dict[str, Any]) -> Config:
    """A Config from its fields. Raises ValueError or TypeError where one is unknown or has no possible value."""
    config = Config(**content)
    sizes = {name: value for name, value in content.items() if name.startswith(("BLOCK", "SPLIT", "num"))}
    for name, value in sizes.items():
        if type(value) is not int or value < 1 or value & (value - 1):
            raise ValueError(f"{name} should be a power of two, got {value!r}")
    if config.regime not in ("single_cta", "cooperative") or config.exchange not in get_args(Exchange):
        raise ValueError(f"regime {config.regime!r}, exchange {config.exchange!r}")
    return config


def _timing(content: dict[str, Any]) -> Timing:
    timing: Timing = _read(Timing, content | {"config": config_from(content["config"])})
    times = (timing.p20_us, timing.p50_us, timing.p80_us)
    if not all(isinstance(t, (int, float)) and math.isfinite(t) and t > 0 for t in times) or list(times) != sorted(
        times
    ):
        raise ValueError(f"times {times} are none")
    if timing.keep not in get_args(Keep) or timing.l2 not in get_args(L2) or timing.repeats < 1:
        raise ValueError(f"keep {timing.keep!r}, l2 {timing.l2!r}, {timing.repeats} repeats")
    return timing


def _read(cls: Any, content: dict[str, Any]) -> Any:
    """A dataclass from exactly its fields; JSON has lists where it has tuples."""
    missing = {f.name for f in fields(cls)} ^ content.keys()
    if missing:
        raise ValueError(f"{cls.__name__} with or without {', '.join(sorted(missing))}")
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in content.items()})


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
