"""Nothing that is read is run: no unpickling and no evaluation of a file's content, paths that stay in their folder,
settings that are checked, and a hostile folder of tuning results."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import holdfast
from holdfast.autotune import mode, tried
from holdfast.autotune.files import gpu_folder, replace_file, user_cache
from holdfast.autotune.identity import fingerprint, key_of
from holdfast.autotune.store import LARGEST, Entry, EntryError, Store, Timing, from_json, sealed, to_json
from holdfast.bench.cli import app
from holdfast.kernels import setting
from holdfast.kernels.config import Config
from holdfast.kernels.problem import Problem
from holdfast.kernels.resources import H100

ROOT = Path(holdfast.__file__).parent
SOURCES = [
    path for folder in ("kernels", "cells", "autotune", "bench") for path in sorted((ROOT / folder).rglob("*.py"))
]
SOURCES += [ROOT / "__init__.py", ROOT / "__main__.py"]

# What runs code that it reads.
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "tarfile", "zipfile"}
CALLS = {"eval", "exec", "compile", "__import__", "input"}
METHODS = {
    ("os", "system"),
    ("os", "popen"),
    ("tempfile", "mktemp"),
    ("pd", "read_pickle"),
    ("pd", "eval"),
    ("np", "load"),
    ("torch", "load"),
    ("torch.jit", "load"),
    ("torch.hub", "load"),
}
KNOWN = {
    # The recipe loads what it has just saved itself, whole modules among it: that is what it shows.
    ("bench/recipes/saved_model.py", "torch.load"): 2,
    # A model out of a package that the user has installed.
    ("bench/real_models/models.py", "torch.jit.load"): 1,
}


def risky(tree: ast.AST) -> list[str]:
    """Names of what a file imports or calls that could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [node.module] if (node.module or "").partition(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            options = {option.arg: option.value for option in node.keywords}
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                found.append(node.func.id)
            elif isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                owner = ast.unparse(node.func.value)
                weights_only = options.get("weights_only")
                if name == "torch.load" and isinstance(weights_only, ast.Constant) and weights_only.value is True:
                    continue
                if (owner, node.func.attr) in METHODS:
                    found.append(name)
            shell = options.get("shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
                found.append("shell=")
            if "allow_pickle" in options:
                found.append("allow_pickle=")
    return found


def test_nothing_in_the_package_unpickles_or_evaluates():
    assert len(SOURCES) > 100
    found: dict[tuple[str, str], int] = {}
    for path in SOURCES:
        for name in risky(ast.parse(path.read_text(encoding="utf-8"))):
            place = path.relative_to(ROOT).as_posix(), name
            found[place] = found.get(place, 0) + 1
    assert found == KNOWN


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=careful)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "import tarfile as t",
    ],
)
def test_the_search_finds_what_it_should(code):
    assert risky(ast.parse(code))
    assert not risky(ast.parse("torch.load(path, weights_only=True); subprocess.run([program], shell=False)"))


# Settings.


def test_every_environment_variable_is_known_and_documented():
    named = set()
    for path in SOURCES:
        named |= set(re.findall(r"\bHOLDFAST_[A-Z_]+", path.read_text(encoding="utf-8")))
    assert named == set(setting.VARIABLES)
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*/README.md"))
    pages += (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(name in pages for name in named)


@pytest.mark.parametrize("choice", [holdfast.backend, holdfast.first_use, mode])
@pytest.mark.parametrize("value", ["", "yes", "AUTO", "auto ", "\n"])
def test_a_bad_setting_names_the_variable_what_was_expected_and_what_came(choice, value, monkeypatch):
    monkeypatch.setattr(setting, "_wrong", [])
    monkeypatch.setenv("HOLDFAST_PROBE", value)
    options = {"names": choice.names, "variable": "HOLDFAST_PROBE", "default": choice.names[0]}
    type("probe", (setting.Setting,), {}, title="probe", **options)
    with pytest.raises(ValueError, match="environment variable HOLDFAST_PROBE should be one of ") as raised:
        setting.check_environment()
    assert all(repr(name) in str(raised.value) for name in (*choice.names, value))


START = "import sys; sys.argv[0] = 'holdfast'; from holdfast.bench.cli import main; main()"
"""What the console script does."""


@pytest.mark.parametrize("how", [["-m", "holdfast", "info"], ["-c", START, "info"]], ids=["module", "script"])
def test_a_bad_setting_ends_a_command_in_a_message(how):
    bad = {"HOLDFAST_BACKEND": "trition", "HOLDFAST_STALL_SECONDS": "soon"}
    found = subprocess.run([sys.executable, *how], capture_output=True, text=True, env=os.environ | bad, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        "holdfast: environment variable HOLDFAST_BACKEND should be one of 'auto', 'triton', 'eager', got 'trition'; "
        "environment variable HOLDFAST_STALL_SECONDS should be a number of seconds above 0, at most 2000, got 'soon'",
        "Give it such a value, or unset it.",
    ]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/holdfast", "info"], True),
        (["-m", "holdfast.bench.tasks"], True),
        (["-m", "mine.train"], False),
        (["train.py", "-m", "holdfast"], False),
        ([""], False),
        ([], False),
    ],
)
def test_importing_holdfast_with_a_bad_setting_is_an_error_but_for_its_commands(
    argv, command, bad_setting, monkeypatch
):
    monkeypatch.setattr(sys, "orig_argv", ["python", *argv])
    monkeypatch.setattr(sys, "argv", argv[:1])
    with nullcontext() if command else pytest.raises(ValueError, match="HOLDFAST_PROBE should be a probe"):
        setting.check_when_imported()


@pytest.fixture
def bad_setting(monkeypatch):
    monkeypatch.setattr(setting, "_wrong", ["environment variable HOLDFAST_PROBE should be a probe"])


COMMANDS = [["bench", name] for name in typer.main.get_command(app).commands["bench"].commands]
COMMANDS += [[name] for name in typer.main.get_command(app).commands if name != "bench"]


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
def test_every_command_says_so(command, bad_setting):
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert result.output.startswith("holdfast: environment variable HOLDFAST_PROBE should be a probe\nGive it")


MODULES_THAT_RUN = [path for path in SOURCES if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
MODULES_THAT_RUN.remove(ROOT / "autotune" / "on_miss.py")  # run by a process that has imported holdfast


@pytest.mark.parametrize("path", MODULES_THAT_RUN, ids=lambda path: path.parent.name + "." + path.stem)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_module_that_runs_says_so(path, bad_setting, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit) as raised:
        runpy.run_module(".".join(["holdfast", *path.relative_to(ROOT).with_suffix("").parts]), run_name="__main__")
    assert raised.value.code == 2
    assert "environment variable HOLDFAST_PROBE should be a probe" in capsys.readouterr().err


def test_a_misspelt_name_is_warned_of(monkeypatch):
    monkeypatch.setenv("HOLDFAST_BACKENDS", "eager")
    monkeypatch.setenv("HOLDFAST_DATA", "of somebody else's")
    with pytest.warns(UserWarning, match="HOLDFAST_BACKENDS is not read: HOLDFAST_BACKEND is$") as found:
        setting.check_environment()
    assert len(found) == 1


@pytest.mark.parametrize("value", ["a file", "~nobody-of-this-name/x"])
def test_a_cache_that_is_no_folder(value, monkeypatch, tmp_path):
    if value == "a file":
        value = str(tmp_path / "file")
        Path(value).write_text("")
    monkeypatch.setenv("HOLDFAST_CACHE", value)
    with pytest.raises(ValueError, match=r"HOLDFAST_CACHE should name a folder.*got") as raised:
        user_cache()
    assert value in str(raised.value)
    result = CliRunner().invoke(app, ["tune", "--list"])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "HOLDFAST_CACHE should name a folder" in result.output


# Files.


@pytest.mark.parametrize(
    "name", ["../../etc", "/absolute", "a/../../b", "..", "", "\0", "x" * 50, "C:\\", "\uff26", "a\nb"]
)
def test_names_stay_in_their_folder(name, tmp_path):
    problem = Problem(name, torch.float32, 16, 1)
    key, here = key_of(problem), fingerprint(Problem("lstm", torch.float32, 16, 1), H100)
    here = type(here)(**{**here.asdict(), "gpu": name})
    path = Store(tmp_path).path(key, here)
    assert tmp_path in path.resolve().parents
    assert not set(gpu_folder(name)) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_file_takes_the_place_of_a_link_and_does_not_follow_it(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    (tmp_path / "link.json").symlink_to(outside)
    replace_file(tmp_path / "link.json", "ours")
    assert outside.read_text() == "theirs"
    assert not (tmp_path / "link.json").is_symlink()


def content(**changes) -> dict:
    """An entry as `to_json` writes it, without its seal, with changes at "key.cell" and the like."""
    config = Config("cooperative", 16, 16, 256)
    timing = Timing(config, "nothing", "warm", False, 9.0, 10.0, 11.0, 10, 512, 16, 168, 100_000, "2026-11-21")
    problem = Problem("lstm", torch.bfloat16, 768, 16)
    made = json.loads(to_json(Entry(key_of(problem), fingerprint(problem, H100), None, (timing,))))
    del made["schema"], made["digest"]
    for place, value in changes.items():
        within, _, field = place.rpartition("__")
        (made[within] if within else made)[field] = value
    return made


HOSTILE = {
    "traversal.json": sealed(content(key__cell="../../../evil", fingerprint__gpu="../../evil"), 2),
    "absolute.json": sealed(content(key__cell="/tmp/evil", fingerprint__gpu="/tmp/evil"), 2),
    "long.json": sealed(content(key__cell="x" * 300), 2),
    "long gpu.json": sealed(content(fingerprint__gpu="x" * 5000), 2),
    "no text.json": sealed(content(key__cell=7), 2),
    "no gpu.json": sealed(content(fingerprint__gpu=None), 2),
    "dtype.json": sealed(content(key__dtype="load"), 2),
    "huge.json": sealed(content(key__hidden_size=10**400), 2),
    "first of two.json": sealed(content(), 2),
    "second of two.json": sealed(content(), 2),
    "deep.json": "[" * 100_000,
    "script.json": "__import__('os').system('touch pwned')",
    "empty.json": "",
    "constants.json": "{}",
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def test_importing_a_hostile_folder_writes_nothing_outside_of_the_cache(tmp_path, monkeypatch):
    source, cache, home = tmp_path / "theirs" / "gpu", tmp_path / "cache", tmp_path / "home"
    source.mkdir(parents=True)
    home.mkdir()
    (home / "secret.json").write_text(to_json(from_json(sealed(content(key__hidden_size=99), 2), "")))
    monkeypatch.setenv("HOLDFAST_CACHE", str(cache))
    monkeypatch.chdir(home)
    for name, text in HOSTILE.items():
        (source / name).write_text(text)
    (source / "binary.json").write_bytes(bytes(range(256)))
    with (source / "endless.json").open("wb") as file:
        file.truncate(2**34)  # 16 GiB that take no room
    os.mkfifo(source / "pipe.json")
    (source / "device.json").symlink_to("/dev/zero")
    (source / "nowhere.json").symlink_to(tmp_path / "not there")
    (source / "loop.json").symlink_to(source / "loop.json")
    (source / "folder.json").mkdir()
    before = snapshot(home)
    result = CliRunner().invoke(app, ["tune", "--import", str(source.parent)])
    assert result.exit_code in (0, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "left out" in result.output
    assert snapshot(home) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"theirs", "cache", "home"}
    written = [path for path in cache.rglob("*.json") if path.is_file()]
    assert all(cache.resolve() in path.resolve().parents for path in written)
    assert len(list(cache.rglob("lstm-forward-bfloat16-h768-b16-long-*.json"))) == 1, "two of one problem are one"
    listed = CliRunner().invoke(app, ["tune", "--list"])
    assert listed.exit_code == 0, listed.output


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_not_unpacked(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    path, member = tmp_path / f"results.{kind}", tmp_path / "x.json"
    member.write_text(sealed(content(), 2))
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(member, "../../x.json")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(member, "../../x.json")
    result = CliRunner().invoke(app, ["tune", "--import", str(path)])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "is no folder" in result.output
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_too_large_or_no_file_is_not_read(tmp_path):
    (tmp_path / "gpu").mkdir()
    with (tmp_path / "gpu" / "large.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    os.mkfifo(tmp_path / "gpu" / "pipe.json")
    found = {path.name: str(error) for path, error in Store(tmp_path).entries() if isinstance(error, EntryError)}
    assert "larger than any entry" in found["large.json"]
    assert "no file" in found["pipe.json"]


def test_a_report_of_a_failed_first_use_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    question = tried.Question(
        Problem("lstm", torch.float32, 16, 1), Config("single_cta", 16, 16, 16), "save", ("../x",)
    )
    assert str(tmp_path) in tried._reported(question, H100, "../../why", {})
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "first_use" / "reports"]
