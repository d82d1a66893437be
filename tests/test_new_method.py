"""`kvcheck new-method` writes a method that works; among kvcheck's own, one file is all that a method needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvcheck.cli.commands import main
from kvcheck.core import paths

ROOT = paths.bundle("suites").parent


def python(folder: Path, *words: str) -> str:
    """What a command in this folder prints, with the modules that lie there."""
    given = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_STEP_SUMMARY")}
    given["PYTHONPATH"] = str(folder)
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_own_method_and_its_test_work_as_they_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", "newest_ones"]) == 0
    assert "--kv-method=newest_ones.NewestOnes" in capsys.readouterr().out
    source = (tmp_path / "newest_ones.py").read_text("utf-8")
    assert [line for line in source.splitlines() if "kvcheck" in line and "import" in line] == [
        "from kvcheck import CacheLayer, Lossless, Method, MethodInfo, ModelShape, SpecError"
    ]
    assert "2 passed" in python(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_newest_ones.py")


@pytest.mark.parametrize("name", ["Newest", "new-est", "class", "../newest", "", "json"])
def test_a_name_that_will_not_do_is_refused_and_nothing_is_written(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", name]) == 2
    assert "kvcheck new-method my_method" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_newest_ones.py").write_text("mine")
    assert main(["new-method", "newest_ones"]) == 2
    assert "test_newest_ones.py is there already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_one_file_adds_a_method_to_the_list_the_pages_the_gate_and_the_records(tmp_path):
    shutil.copytree(ROOT / "kvcheck", tmp_path / "kvcheck", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("suites", "fixtures"):
        (tmp_path / name).symlink_to(paths.bundle(name), target_is_directory=True)
    shutil.copytree(paths.bundle("baselines"), tmp_path / "baselines")  # records go there
    assert "kvcheck/methods/newest.py" in python(tmp_path, "kvcheck.cli", "new-method", "newest")
    assert "keeps the newest tokens of the prompt" in python(tmp_path, "kvcheck.cli", "methods")
    python(tmp_path, "kvcheck.cli", "methods", "--pages", "pages")
    assert "# `newest`" in (tmp_path / "pages" / "newest.md").read_text("utf-8")
    narrow = ("--kv-profile=quick", "--kv-tasks=kv", "--kv-lengths=512", "--kv-modes=single", "--kv-n=2")
    words = ("pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "kvcheck.suites.test_string_retrieval")
    methods = ("--kv-method=fp16", "--kv-method=newest:tokens=400")
    assert "recorded 1 case of newest:tokens=400" in python(tmp_path, *words, *methods, "--kv-record=new", *narrow)
    assert (tmp_path / "baselines" / "mini" / "newest__tokens=400.txt").is_file()
