"""What no case shows alone fails the run: as a failure of pytest like any other, however the session was run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]

EVERYWHERE = 0.75
"""Two of the eight contexts of every case answered with nonsense: no case fails by that."""
SNAPKV = ("--kv-method=snapkv", "--kv-lengths=512,1024,2048")
"""72 contexts."""


def test_a_loss_in_every_case_fails_the_run_though_no_case_fails(
    long_recorded: Run, behave: Behave, dist: tuple[str, ...]
) -> None:
    behave({"snapkv": EVERYWHERE})
    result = long_recorded(*SNAPKV, *dist, "-rf")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=9, failed=1)
    result.stdout.fnmatch_lines(["FAILED kvcheck::run[[]snapkv[]]*25.0*"])


def test_the_verdict_on_the_run_is_in_the_run_file_with_its_numbers(
    long_recorded: Run, behave: Behave, repo: pytest.Pytester
) -> None:
    behave({"snapkv": EVERYWHERE})
    long_recorded(*SNAPKV, "--kv-json=run.json")
    run = json.loads((repo.path / "run.json").read_text())
    (verdict,) = (one for one in run["verdicts"]["run|snapkv"] if one["question"] == "budget")
    assert (verdict["outcome"], verdict["n"], verdict["lost"], verdict["value"]) == ("fail", 72, 18, 25.0)
    assert "run|snapkv" in run["failures"]


def test_the_verdict_on_the_run_is_a_failed_test_case_of_junit_xml(
    long_recorded: Run, behave: Behave, repo: pytest.Pytester
) -> None:
    behave({"snapkv": EVERYWHERE})
    long_recorded(*SNAPKV, "--junitxml=report.xml")
    text = (repo.path / "report.xml").read_text()
    assert 'failures="1"' in text
    assert 'name="run[snapkv]"' in text


def test_a_run_is_judged_by_what_was_selected(long_recorded: Run, behave: Behave) -> None:
    behave({"snapkv": EVERYWHERE})
    result = long_recorded(*SNAPKV, "-k", "512", "-m", "multi_turn", "--kv-budget=drop=50", "--kv-json=run.json")
    result.assert_outcomes(passed=1, deselected=8)
    assert long_recorded(*SNAPKV, "-k", "512 or 1024", "--kv-strict").ret == pytest.ExitCode.TESTS_FAILED


def test_the_last_failed_run_is_run_whole_again(long_recorded: Run, behave: Behave) -> None:
    behave({"snapkv": EVERYWHERE})
    long_recorded(*SNAPKV)
    again = long_recorded(*SNAPKV, "--lf", "-rf")
    again.assert_outcomes(passed=9, failed=1)


def test_a_session_that_stops_at_the_first_failure_judges_what_it_has(long_recorded: Run, behave: Behave) -> None:
    behave({"snapkv": 0.0})
    result = long_recorded(*SNAPKV, "-x")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*did not run: the session was stopped*"])


def test_a_resumed_run_is_judged_anew_as_a_whole(long_recorded: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"snapkv": EVERYWHERE})
    assert long_recorded(*SNAPKV, "--kv-json=run.json").ret == pytest.ExitCode.TESTS_FAILED
    again = long_recorded(*SNAPKV, "--kv-resume=run.json", "--kv-budget=drop=60", "--kv-json=again.json")
    assert again.ret == 0
    run = json.loads((repo.path / "again.json").read_text())
    assert run["failures"] == {}
    assert len(run["cases"]) == 9


def test_strict_fails_a_run_that_is_inconclusive_and_not_the_cases_that_cannot_tell(
    long_recorded: Run, behave: Behave
) -> None:
    behave({"snapkv": EVERYWHERE})
    options = (*SNAPKV, "--kv-strict", "-rf")
    inconclusive = long_recorded(*options, "--kv-budget=drop=25")
    inconclusive.assert_outcomes(passed=9, failed=1)
    inconclusive.stdout.fnmatch_lines(["FAILED kvcheck::run[[]snapkv[]]*inconclusive*"])
    assert long_recorded(*options, "--kv-budget=drop=60").ret == 0
