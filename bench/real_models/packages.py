"""The packages that hold the models: how to get them, and their code without what it imports beside."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, patch

REQUIREMENTS = ("Resemblyzer==0.1.4", "g2p-en==2.1.0", "arabic-diacritizer==1.0.0", "silero-vad==6.2.3")
"""83 MB; the weights are among the packages' files, so nothing else is to be downloaded."""


def install_command(folder: Path) -> str:
    """How to get them. With --no-deps: else pip would bring numba, librosa and a second torch."""
    return f"pip install --no-deps --target {folder} {' '.join(REQUIREMENTS)}"


def missing(folder: Path) -> list[str]:
    """The requirements that are not in the folder."""
    found = {path.name.removesuffix(".dist-info").replace("_", "-").lower() for path in folder.glob("*.dist-info")}
    return [name for name in REQUIREMENTS if name.replace("==", "-").lower() not in found]


def import_from(folder: Path, module: str, absent: Sequence[str] = ()) -> ModuleType:
    """A module of a package in the folder.

    absent:  modules it imports and the model does not need, such as nltk; stand-ins that do nothing take their place.
    """
    with patch.dict(sys.modules, {name: MagicMock() for name in absent}), patch("sys.path", [str(folder), *sys.path]):
        return importlib.import_module(module)
