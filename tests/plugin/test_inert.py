"""A repository that does not use kvcheck pays nothing for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "scipy", "datasets", "kvcheck.core.record", "kvcheck.judging.budget")

PROBE = """
import sys
def pytest_unconfigure(config):
    loaded = [name for name in {heavy!r} if name in sys.modules]
    print("LOADED", loaded)
"""


@pytest.fixture
def foreign(pytester: pytest.Pytester) -> pytest.Pytester:
    """A repository with tests of its own."""
    pytester.makepyfile(test_own="def test_of_its_own(): pass")
    pytester.makeconftest(PROBE.format(heavy=HEAVY))
    return pytester


@pytest.mark.parametrize("options", [["--collect-only"], [], ["--markers"], ["--help"]], ids=str)
def test_nothing_heavy_is_imported_where_kvcheck_is_not_used(foreign: pytest.Pytester, options: list[str]) -> None:
    others = ("hypothesispytest", "benchmark", "randomly")  # which import numpy themselves
    result = foreign.runpytest_subprocess(*options, *(word for name in others for word in ("-p", f"no:{name}")))
    result.stdout.fnmatch_lines(["*LOADED []"])


def test_loading_the_plugin_imports_only_its_options() -> None:
    code = "import sys, pytest; import kvcheck.plugin; print(sorted(m for m in sys.modules if m.startswith('kvcheck')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    core = [f"kvcheck.core{name}" for name in ("", ".errors", ".formats", ".settings", ".values")]
    assert done.stdout.strip() == str(["kvcheck", *core, "kvcheck.plugin", "kvcheck.plugin.options"])


def test_loading_the_plugin_takes_a_small_part_of_loading_pytest() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import pytest; import kvcheck.plugin"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    times = [(int(line.split("|")[0].split(":")[1]), line) for line in lines if "|" in line and "self" not in line]
    ours, whole = sum(time for time, line in times if "kvcheck" in line), sum(time for time, _ in times)
    assert ours < whole / 10


def test_a_run_without_kvcheck_prints_and_writes_nothing_of_it(foreign: pytest.Pytester) -> None:
    (foreign.path / "conftest.py").unlink()
    result = foreign.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert "kvcheck" not in result.stdout.str().partition("collected")[2]
    assert not list(foreign.path.glob(".kvcheck*"))


def test_it_survives_strict_settings_of_the_user(foreign: pytest.Pytester) -> None:
    foreign.makeini("[pytest]\naddopts = --strict-markers --strict-config\nfilterwarnings = error")
    assert foreign.runpytest_subprocess().ret == 0


def test_collecting_the_suites_with_a_method_imports_no_torch(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(PROBE.format(heavy=("torch", "transformers")))
    result = pytester.runpytest_subprocess("--collect-only", "-q", "--pyargs", "kvcheck.suites", "--kv-method=snapkv")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_string_retrieval*snapkv*", "*LOADED []"])
