"""The package as people install it: its wheel, its version, its two commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import holdfast

ROOT = Path(__file__).parents[1]
ROOMS = {
    "kernels": ("loop", "ptx"),
    "cells": ("call", "catalogue", "eager", "ops"),
    "autotune": (),
    "bench": (
        "check",
        "cli",
        "demo",
        "first_light",
        "method",
        "output",
        "providers",
        "real_models",
        "recipes",
        "suites",
        "tasks",
        "tuning",
    ),
}
PACKAGES = tuple(f"{folder}/{room}" if room else folder for folder, rooms in ROOMS.items() for room in ("", *rooms))


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built, without the network, from a copy of the sources: setuptools leaves a build folder behind."""
    source = tmp_path_factory.mktemp("source")
    for folder in (".", "tests", *PACKAGES):
        (source / folder).mkdir(exist_ok=True)
        for path in (ROOT / folder).iterdir():
            if path.is_file():
                shutil.copy(path, source / folder)
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


def test_version_is_the_same_everywhere():
    stated = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert holdfast.__version__ == version("holdfast") == stated.group(1)


def test_wheel_holds_the_modules_and_nothing_else(wheel):
    expected = {"holdfast/__init__.py", "holdfast/__main__.py"}
    expected |= {f"holdfast/{folder}/{path.name}" for folder in PACKAGES for path in (ROOT / folder).glob("*.py")}
    expected |= {"holdfast/bench/method/fake_cuda.c"}  # the driver that holdfast bench latency launches on
    expected |= {"holdfast/autotune/counts.json"}  # what kernels cost, by which the heuristic ranks them
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_every_package_is_listed():
    """A folder of modules that pyproject.toml does not name would be missing from the wheel alone."""
    top = ("kernels", "cells", "autotune", "bench")
    found = {path.parent.relative_to(ROOT).as_posix() for folder in top for path in (ROOT / folder).rglob("*.py")}
    assert found == set(PACKAGES)


def test_wheel_works_where_it_is_installed(wheel, tmp_path):
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", str(tmp_path / "site"), str(wheel))
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    code = "import holdfast, holdfast.bench.cli; print(holdfast.LSTM(2, 3), holdfast.__file__)"
    printed = run(sys.executable, "-c", code, cwd=tmp_path, env=environment).stdout
    assert printed.startswith("LSTM(2, 3) ")
    assert str(tmp_path / "site") in printed


def test_module_and_console_script_are_one_command():
    script = Path(sys.executable).parent / "holdfast"
    by_module = run(sys.executable, "-m", "holdfast", "--help").stdout
    assert by_module == run(str(script), "--help").stdout
    assert "Usage: holdfast" in by_module
