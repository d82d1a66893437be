"""Latency is measured where it is asked for, in one process only, and a refusal is never silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]
BUDGETS = "kvcheck.suites.test_budgets"
ASKED = "--kv-budget=ttft=1.2,tpot=1.2"


def test_nothing_is_measured_where_nobody_asks(run: Run) -> None:
    result = run("--kv-method=snapkv", "--collect-only", "-q", suite=BUDGETS)
    assert "::" not in result.stdout.str()


def test_a_ratio_within_the_budget_passes_and_is_shown(run: Run) -> None:
    result = run("--kv-method=snapkv", ASKED, suite=BUDGETS)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*ttft*1.00 x fp16*at 512 tokens*", "*tpot*1.00 x fp16*"])
    result.stdout.fnmatch_lines(["memory *ratio 0.500 at 512 tokens"])


def test_a_ratio_beyond_the_budget_fails_its_own_test(run: Run, behave: Behave) -> None:
    behave({"slow": {"snapkv": 2.0}})
    result = run("--kv-method=snapkv", "--kv-method=h2o", ASKED, suite=BUDGETS)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*latency at 512 tokens  snapkv", "*time to first token*2*allowed 1.2*FAIL"])


def test_several_workers_refuse_a_latency_budget_and_run_the_rest(recorded: Run, repo: pytest.Pytester) -> None:
    small = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single", "--kv-baselines=stored")
    suites = ("--pyargs", "kvcheck.suites.test_string_retrieval", BUDGETS)
    result = repo.runpytest(*suites, *small, "--kv-method=snapkv", ASKED, "-n", "2")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*latency is not measured with several workers*-n 0*"])


def test_several_workers_without_a_budget_count_latency_as_not_measured(run: Run) -> None:
    options = ("--kv-method=fp16", "--kv-profile=full", "--kv-record=new", "-n", "2", "-rs")
    result = run(*options, suite=BUDGETS)
    assert result.parseoutcomes()["skipped"] == 1
    result.stdout.fnmatch_lines(["*not measured: latency*several workers*"])
