"""Tuning results on disk: a file per problem and fingerprint, whole at any moment, written by any number at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .entry import Entry, EntryError, from_json, to_json
from .fingerprint import Fingerprint
from .folders import gpu_folder
from .key import Key
from .replace_file import replace_file

_WAIT_S = 60.0
"""For another process that writes the same entry: it holds the lock for milliseconds."""

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
        from filelock import FileLock

        path = self.path(entry.key, entry.fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_WAIT_S):
            for left in path.parent.glob(f".{path.name}.*.new"):  # by a writer that was killed: we hold its lock
                left.unlink(missing_ok=True)
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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EntryError(f"{path}: cannot be read ({error})") from error
    return from_json(text, path)


def _short(entry: Entry) -> str:
    k, f = entry.key, entry.fingerprint
    return f"{k.cell} {k.phase} {k.dtype} hidden_size={k.hidden_size} batch<={k.batch} on {f.gpu}, Triton {f.triton}"
