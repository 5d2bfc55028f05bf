"""Tuning results: what an entry holds, the JSON file it lies in, and the folder of such files.

A file per problem and fingerprint, whole at any moment, written by any number of processes at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..kernels.config import Config, Exchange
from ..kernels.kept import Keep
from ..kernels.problem import FEATURES
from .files import gpu_folder, locked, replace_file
from .identity import Fingerprint, Key

SCHEMA = 2

L2 = Literal["cold", "warm"]
"""Whether the L2 cache was cleared before each call."""


class EntryError(ValueError):
    """A file is no entry that can be used; the message says why, and names the file."""


@dataclass(frozen=True)
class Timing:
    """One measurement of a whole layer, input projection included.

    config:                None: torch's own op, for which registers and shared are 0.
    stopped:               True where it was given up early, because it could not win.
    p20_us, p50_us, p80_us:  quantiles of one call, microseconds.
    repeats:               calls timed.
    length, batch:         of the sequences.
    registers, shared:     of the compiled kernel: per thread, and bytes per program.
    when:                  UTC, ISO 8601.
    """

    config: Config | None
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
        return {t.config: t for t in self._complete(keep, l2) if t.config is not None}

    def fused(self, keep: Keep) -> Timing | None:
        """The newest complete timing of torch's own op, which keeps all that it needs or nothing."""
        kept: Keep = "nothing" if keep == "nothing" else "save"
        return next((t for t in reversed(self._complete(kept, "warm")) if t.config is None), None)

    def _complete(self, keep: Keep, l2: L2) -> list[Timing]:
        """What was timed to its end, the oldest first."""
        rows = (t for t in self.timings if t.keep == keep and t.l2 == l2 and not t.stopped)
        return sorted(rows, key=lambda t: t.when)

    def winner(self, keep: Keep) -> str:
        """What was fastest, "eager" for torch's own op; "" where nothing was timed."""
        best, fused = self.best(keep), self.fused(keep)
        if fused is not None and (best is None or fused.p50_us < best.p50_us):
            return "eager"
        return str(best.config) if best is not None else ""

    def best(self, keep: Keep) -> Timing | None:
        """The fastest kernel, with a warm L2: in a model the input projection has just filled it."""
        return min(self.latest(keep).values(), key=lambda t: t.p50_us, default=None)

    def tried(self, keep: Keep) -> set[Config]:
        timed = {t.config for t in self.timings if t.keep == keep and t.config is not None}
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
    """The entry as text."""
    content = {
        "key": entry.key.asdict(),
        "fingerprint": entry.fingerprint.asdict(),
        "heuristic": entry.heuristic and entry.heuristic.asdict(),
        "timings": [asdict(t) for t in entry.timings],
        "rejected": [asdict(r) for r in entry.rejected],
    }
    return sealed(content, SCHEMA)


def from_json(text: str, where: object) -> Entry:
    """The entry that `to_json` wrote.

    where:  what to call it in messages.

    Raises EntryError for anything else.
    """
    content = unsealed(text, where, SCHEMA)
    try:
        return Entry(
            key_from(content["key"]),
            fingerprint_from(content["fingerprint"]),
            content["heuristic"] and _config(content["heuristic"]),
            tuple(_checked(from_fields(Timing, row)) for row in content["timings"]),
            tuple(from_fields(Rejected, row) for row in content["rejected"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EntryError(f"{where}: written by another version of holdfast ({error})") from error


def sealed(content: dict[str, Any], schema: int) -> str:
    """Content as text, with a digest of itself: what was edited by hand has been measured by nobody."""
    content = {"schema": schema} | content
    return json.dumps(content | {"digest": _digest(content)}, indent=1) + "\n"


def unsealed(text: str, where: object, schema: int) -> dict[str, Any]:
    """The content that `sealed` wrote. Raises EntryError for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{where}: no JSON, cut off perhaps ({error})") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise EntryError(f"{where}: not an entry of holdfast's tuner")
    if content["schema"] != schema:
        raise EntryError(f"{where}: written as schema {content['schema']!r}, this version reads {schema}")
    if content.pop("digest", None) != _digest(content):
        raise EntryError(f"{where}: edited since it was written (its digest does not match)")
    return content


def from_fields(cls: Any, content: dict[str, Any]) -> Any:
    """A dataclass of this file, or a key, from exactly its fields, but for those with a default; JSON has lists where
    it has tuples.

    Raises ValueError or TypeError where a field is missing, unknown or has no possible value.
    """
    optional = {f.name for f in fields(cls) if f.default is not MISSING} - content.keys()
    if missing := ({f.name for f in fields(cls)} ^ content.keys()) - optional:
        raise ValueError(f"{cls.__name__} with or without {', '.join(sorted(missing))}")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    if "config" in values:
        values["config"] = None if cls is Timing and content["config"] is None else _config(content["config"])
    for name, hint in _hints(cls).items():
        if name in values and not _fits(values[name], hint):
            raise ValueError(f"{cls.__name__}.{name} {values[name]!r}")
    return cls(**values)


_hints = cache(get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a dataclass's type: a class, a Literal, either of two, or a tuple of one type."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in options
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, options[0]) for each in value)
    if options:
        return any(_fits(value, option) for option in options)
    if hint in (int, float):
        return type(value) is int or (hint is float and type(value) is float)
    return isinstance(value, hint)


def key_from(content: dict[str, Any]) -> Key:
    """A key that a layer could have; else ValueError. Its cell may be one that is not defined in this process."""
    key: Key = from_fields(Key, content)
    if key.dtype not in DTYPES or not all(0 < n <= LARGEST_SIZE for n in (key.hidden_size, key.batch)):
        raise ValueError(f"dtype {key.dtype!r}, hidden_size {key.hidden_size!r:.30}, batch {key.batch!r:.30}")
    if key.num_heads < 1 or key.hidden_size % key.num_heads:
        raise ValueError(f"num_heads {key.num_heads!r:.30} of hidden_size {key.hidden_size}")
    if key.directions not in (1, 2) or not set(key.features) <= set(FEATURES) or not 0 < len(key.cell) <= LONGEST_NAME:
        raise ValueError(f"features {key.features}, cell {key.cell[:LONGEST_NAME]!r}")
    return key


def fingerprint_from(content: dict[str, Any]) -> Fingerprint:
    """A fingerprint of some machine; else ValueError."""
    found: Fingerprint = from_fields(Fingerprint, content)
    if not 0 < len(found.gpu) <= LONGEST_NAME:
        raise ValueError(f"gpu {found.gpu[:LONGEST_NAME]!r}")
    return found


DTYPES = ("float32", "bfloat16", "float16")
LONGEST_NAME = 100
"""Characters of a cell's name, which is part of a file's, and of a GPU's, which is a folder's."""


def _config(content: dict[str, Any]) -> Config:
    config = Config(**content)
    sizes = {name: value for name, value in content.items() if name.startswith(("BLOCK", "SPLIT", "num"))}
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value <= LARGEST_SIZE or value & (value - 1):
            raise ValueError(f"{name} should be a power of two, got {value!r}")
    if config.regime not in ("single_cta", "cooperative") or config.exchange not in get_args(Exchange):
        raise ValueError(f"regime {config.regime!r}, exchange {config.exchange!r}")
    return config


LARGEST_SIZE = 2**20


def _checked(timing: Timing) -> Timing:
    """A timing that a run could have written; else ValueError."""
    times = [timing.p20_us, timing.p50_us, timing.p80_us]
    if not all(isinstance(t, (int, float)) and math.isfinite(t) and t > 0 for t in times) or times != sorted(times):
        raise ValueError(f"times {times} are none")
    if timing.keep not in get_args(Keep) or timing.l2 not in get_args(L2) or timing.repeats < 1:
        raise ValueError(f"keep {timing.keep!r}, l2 {timing.l2!r}, {timing.repeats} repeats")
    return timing


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


generation = 0
"""Goes up whenever this process changes a store, so that who keeps what it has read knows when to read again.

What other processes write is seen by those that start later, or after `changed()`.
"""


def changed() -> None:
    """Forget what was read from any store."""
    global generation
    generation += 1


class Store:
    """A folder of entries, in a folder for each GPU. A folder that is not there is an empty store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: Key, fingerprint: Fingerprint) -> Path:
        return self.root / gpu_folder(fingerprint.gpu) / f"{key.name}-{fingerprint.digest}.json"

    def load(self, key: Key, fingerprint: Fingerprint) -> Entry | None:
        """The entry of exactly this key and fingerprint, None where there is none.

        Raises EntryError where there is a file that cannot be used.
        """
        path = self.path(key, fingerprint)
        if not path.exists():
            return None
        entry = read(path)
        if (entry.key, entry.fingerprint) != (key, fingerprint):
            raise EntryError(f"{path}: holds another problem or comes from another machine: {_short(entry)}")
        return entry

    def load_any(self, key: Key, gpu: str, accept: Callable[[Fingerprint], bool]) -> Entry | None:
        """The newest entry of a key whose fingerprint is accepted. Raises EntryError as `load`, if no other is fine."""
        broken: EntryError | None = None
        found: list[Entry] = []
        for path in sorted((self.root / gpu_folder(gpu)).glob(f"{key.name}-*.json")):
            try:
                entry = read(path)
            except EntryError as error:
                broken = error
                continue
            if entry.key == key and accept(entry.fingerprint):
                found.append(entry)
        if not found and broken is not None:
            raise broken
        return max(found, key=lambda e: max((t.when for t in e.timings), default=""), default=None)

    def add(self, entry: Entry) -> Path:
        """Put what an entry holds beside what is already there. Returns the file.

        A file there that cannot be used is set aside under another name. Raises OSError where the folder cannot be
        written to, and TimeoutError where another process does not let go of the entry.
        """
        path = self.path(entry.key, entry.fingerprint)
        with locked(path):
            try:
                before = self.load(entry.key, entry.fingerprint)
            except EntryError:
                os.replace(path, path.with_suffix(".unusable"))
                before = None
            replace_file(path, to_json(before.merged(entry) if before else entry))
        changed()
        return path

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.glob("*/*.json") if path.name != "constants.json")

    def entries(self) -> Iterator[tuple[Path, Entry | EntryError]]:
        """Every file with its entry, or with why it is none."""
        for path in self.files():
            try:
                yield path, read(path)
            except EntryError as error:
                yield path, error

    def copy_to(self, other: Store) -> tuple[int, list[EntryError]]:
        """Add every entry to another store: how many, and what could not be read."""
        broken, copied = [], 0
        for _, entry in self.entries():
            if isinstance(entry, EntryError):
                broken.append(entry)
            else:
                other.add(entry)
                copied += 1
        return copied, broken

    def clear(self) -> int:
        """Remove every entry. Returns how many there were."""
        files = self.files()
        for path in files:
            path.unlink(missing_ok=True)  # not its lock, which another process may hold
        changed()
        return len(files)


def read(path: Path) -> Entry:
    """The entry in a file. Raises EntryError."""
    return from_json(_text(path), path)


def read_sealed(path: Path, schema: int) -> dict[str, Any]:
    """The content of a file that `sealed` wrote. Raises EntryError."""
    return unsealed(_text(path), path, schema)


LARGEST = 2**24
"""Bytes of a file that is read: an entry has some ten thousand."""


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would never end
            raise EntryError(f"{path}: no file")
        if path.stat().st_size > LARGEST:
            raise EntryError(f"{path}: larger than any entry, {path.stat().st_size} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EntryError(f"{path}: cannot be read ({error})") from error


def _short(entry: Entry) -> str:
    k, f = entry.key, entry.fingerprint
    heads = f" num_heads={k.num_heads}" if k.num_heads > 1 else ""
    sizes = f"hidden_size={k.hidden_size}{heads} batch<={k.batch}"
    return f"{k.cell} {k.phase} {k.dtype} {sizes} on {f.gpu}, Triton {f.triton}"
