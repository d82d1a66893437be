"""`--kv-n=auto`: a run that is open goes on with contexts of further seeds until it is decided."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from kvcheck.core.record import CaseId

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]

AUTO = ("--kv-method=snapkv", "--kv-n=auto")
OPEN = 0.875
"""An accuracy that 24 contexts cannot tell from a loss of two points, and eight times as many can."""


def ran(repo: pytest.Pytester) -> list[tuple[str, CaseId]]:
    """(method, case) of everything that was measured."""
    lines = [line.partition("|") for line in (repo.path / "ran.txt").read_text().splitlines()]
    return [(method, CaseId.parse(case)) for case, _, method in lines]


def test_a_run_that_is_open_goes_on_until_it_fails(
    recorded: Run, behave: Behave, repo: pytest.Pytester, dist: tuple[str, ...]
) -> None:
    behave({"snapkv": OPEN})
    result = recorded(*AUTO, *dist, "-rf")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*more contexts measured (--kv-n=auto:8)*", "FAILED kvcheck::run[[]snapkv[]]*"])
    assert {case.seed for method, case in ran(repo) if method == "snapkv"} > {0, 1}


def test_a_run_that_is_decided_takes_nothing_more(recorded: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"snapkv": 0.0})
    recorded(*AUTO)
    assert {case.seed for _, case in ran(repo)} == {0}


def test_fp16_is_measured_beside_where_no_record_has_the_contexts(
    recorded: Run, behave: Behave, repo: pytest.Pytester
) -> None:
    behave({"snapkv": OPEN})
    recorded(*AUTO)
    seeds = {method: {case.seed for name, case in ran(repo) if name == method} for method in ("fp16", "snapkv")}
    assert seeds["fp16"] == seeds["snapkv"] - {0}
    assert max(Counter(ran(repo)).values()) == 1


def test_the_ceiling_is_kept_and_the_run_stays_inconclusive(
    recorded: Run, behave: Behave, repo: pytest.Pytester
) -> None:
    behave({"snapkv": OPEN})
    result = recorded("--kv-method=snapkv", "--kv-n=auto:2", "--kv-budget=drop=12")
    assert result.ret == 0
    assert {case.seed for method, case in ran(repo) if method == "snapkv"} == {0, 1}
    assert recorded("--kv-method=snapkv", "--kv-n=auto:2", "--kv-budget=drop=12", "--kv-strict").ret == 1


def test_the_run_file_holds_the_further_contexts_with_their_verdicts(
    recorded: Run, behave: Behave, repo: pytest.Pytester
) -> None:
    behave({"snapkv": OPEN})
    recorded(*AUTO, "--kv-json=run.json")
    run = json.loads((repo.path / "run.json").read_text())
    held = [case for case in run["cases"] if case["method"] == "snapkv"]
    (verdict,) = (one for one in run["verdicts"]["run|snapkv"] if one["question"] == "budget")
    assert verdict["n"] == sum(len(case["samples"]) for case in held) > 24


def test_the_numbers_of_contexts_that_are_understood_are_said(run: Run) -> None:
    result = run("--kv-method=snapkv", "--kv-n=automatic")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--kv-n*automatic*", "*or auto*"])


@pytest.mark.parametrize("what", ["--kv-record=new", "--kv-zoo=all", "--kv-findings"])
def test_what_no_run_is_decided_by_refuses_it(run: Run, what: str) -> None:
    result = run("--kv-n=auto", *(["--kv-method=snapkv"] if "record" in what else []), what)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--kv-n*auto*decides nothing*"])
