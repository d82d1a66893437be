"""Tests of CUDA are marked, skipped with a reason where there is no device, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.cuda
def test_on_a_gpu():
    raise RuntimeError("this ran without a GPU")

def test_anywhere():
    pass
"""


def test_without_a_device_they_are_skipped_and_counted(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pytester.makeconftest((ROOT / "conftest.py").read_text("utf-8"))
    file = pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("--strict-markers", "-rs", file)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["cuda: 1 not run: no CUDA device", "SKIPPED*no CUDA device"])
