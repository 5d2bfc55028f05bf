"""Where tuning results lie."""

from __future__ import annotations

import os
import re
from pathlib import Path

ENVIRONMENT_VARIABLE = "HOLDFAST_CACHE"

SHIPPED = Path(__file__).parent / "shipped"
"""A folder per GPU, part of the package: entries that somebody has tuned, and `constants.json`."""


def user_cache() -> Path:
    """The folder of this user's entries: HOLDFAST_CACHE, or the one that the system has for caches."""
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("holdfast", appauthor=False) / "autotune"


def gpu_folder(name: str) -> str:
    """A GPU's name as a folder: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
