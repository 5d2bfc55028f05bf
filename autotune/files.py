"""Where tuning results lie, and how a file is replaced whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT_VARIABLE = "HOLDFAST_CACHE"

_EXPECTED = f"environment variable {ENVIRONMENT_VARIABLE} should name a folder, which may be yet to be made"

SHIPPED = Path(__file__).parent / "shipped"
"""A folder per GPU, part of the package: entries that somebody has tuned, and `constants.json`."""


def user_cache() -> Path:
    """The folder of this user's entries: HOLDFAST_CACHE, or the one that the system has for caches.

    Raises ValueError where HOLDFAST_CACHE names something else than a folder.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        try:
            path = Path(named).expanduser()
        except RuntimeError as error:  # "~nobody"
            raise ValueError(f"{_EXPECTED}, got {named!r}: {error}") from error
        if path.exists() and not path.is_dir():
            raise ValueError(f"{_EXPECTED}, got {named!r}, which is a file")
        return path
    from platformdirs import user_cache_path

    return user_cache_path("holdfast", appauthor=False) / "autotune"


def gpu_folder(name: str) -> str:
    """A GPU's name as a folder: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


_WAIT_S = 60.0
"""For another process that writes the same file: it holds the lock for milliseconds."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file in this block; its folder is made where it is missing.

    Raises OSError where the folder cannot be written to, and TimeoutError where another process does not let go.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=_WAIT_S):
        for left in path.parent.glob(f".{path.name}.*.new"):  # by a writer that was killed: we hold its lock
            left.unlink(missing_ok=True)
        yield


def replace_file(path: Path, text: str, check: Callable[[Path], object] | None = None) -> None:
    """Write `text` to `path` so that a reader, or a crash at any moment, finds the old file or the new one.

    check:  called with the new file before it takes the place of the old one; what it raises leaves the old one.

    The folder is made where it is missing. Raises OSError where the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
