"""`--kv-prefill-cache`: the second run of a gate prefills nothing and has the same digits; what is in use is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nights import daily

from kvcheck.cli.commands import main
from kvcheck.core.kept import KeptFiles

GATE = ("--pyargs", "kvcheck.suites.test_string_retrieval", "--kv-method=fp16", "--kv-method=snapkv")
SMALL = ("--kv-tasks=kv", "--kv-lengths=256", "--kv-n=2", "-p", "no:cacheprovider")


def gate(folder: Path, *options: str) -> tuple[str, object]:
    """Run it in a process of its own -> (what it printed, every digit of its records)."""
    command = [sys.executable, "-m", "pytest", *GATE, *SMALL, "--kv-json=run.json", *options]
    names = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=folder, env=names, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    run = json.loads((folder / "run.json").read_text("utf-8"))
    (folder / "run.json").unlink()
    assert run["header"]["settings"].get("prefill_cache") == (None if not options else "in use")
    return done.stdout, run["cases"]


WORKERS = ("-n", "2")


@pytest.mark.parametrize("workers", daily([(), WORKERS], WORKERS), ids=["alone", "workers"])
def test_the_second_run_of_a_gate_has_every_digit_of_the_first(tmp_path: Path, workers: tuple[str, ...]) -> None:
    store = ("--kv-prefill-cache=kept", *workers)
    _, wanted = gate(tmp_path)
    cold, first = gate(tmp_path, *store)
    files = KeptFiles(tmp_path / "kept", 0).size()
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    warm, second = gate(tmp_path, *store)
    assert first == second == wanted
    assert f"prefills are kept: {tmp_path / 'kept'} (0 files, 0.00 of 4 GB)" in cold
    assert f"prefills are kept: {tmp_path / 'kept'} ({files[0]} files" in warm
    assert KeptFiles(tmp_path / "kept", 0).size() == files, "nothing was missing"
    assert all((tmp_path / "kept" / name).stat().st_mtime_ns > before for name, before in times.items()), (
        "all were used"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--kv-prefill-cache=pyproject.toml", "--kv-prefill-cache: pyproject.toml is a file"),
        ("--kv-prefill-cache=/proc/kept", "--kv-prefill-cache: /proc/kept cannot be written"),
        ("--kv-prefill-cache-size=0", "--kv-prefill-cache-size: out of range: 0"),
    ],
)
def test_a_place_or_a_size_that_will_not_do_is_refused_before_any_test(
    pytester: pytest.Pytester, given: str, says: str
) -> None:
    pytester.makepyprojecttoml("[tool.kvcheck]\nprefill-cache = 'kept'\n")
    result = pytester.runpytest_subprocess(*GATE, *SMALL, given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{says}*"])


def test_doctor_says_where_the_project_keeps_prefills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    assert "  nowhere; --kv-prefill-cache=PATH keeps them" in capsys.readouterr().out
    (tmp_path / "pyproject.toml").write_text("[tool.kvcheck]\nprefill-cache = 'kept'\nprefill-cache-size = 2\n")
    main(["doctor"])
    assert f"  {tmp_path / 'kept'} (0 files, 0.00 of 2 GB)" in capsys.readouterr().out


def test_another_engine_keeps_nothing_and_the_header_says_so(repo: pytest.Pytester) -> None:
    result = repo.runpytest(*GATE, *SMALL, "--kv-prefill-cache=kept", "--collect-only")
    result.stdout.fnmatch_lines(["kvcheck: prefills are kept: not by this engine"])
