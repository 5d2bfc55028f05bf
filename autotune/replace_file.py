"""Replace a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


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
