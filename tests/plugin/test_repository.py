"""In this repository `pytest` runs the tests and `pytest --kv-method=…` the suites."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def collected(*options: str, cwd: Path = ROOT) -> set[str]:
    """The folders from which tests are collected."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return {line.partition("/")[0] for line in done.stdout.splitlines() if "::" in line}


def test_a_method_selects_the_suites() -> None:
    assert collected("--kv-method=fp16", "--kv-profile=quick") == {"suites"}


def test_no_method_selects_the_tests() -> None:
    assert collected("--ignore-glob=*/tests/*/*.py", "--ignore-glob=*_packaging.py") == {"tests"}


def test_a_path_goes_before_both() -> None:
    assert collected("tests/test_limits.py", "--kv-method=fp16") == {"tests"}
