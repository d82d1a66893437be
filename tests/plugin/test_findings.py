"""`--kv-findings` measures what the papers found, prints it, and fails where a direction is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Behave = Callable[[dict[str, Any]], None]

OWN = '''
def test_halving_costs(kv_finding):
    """Halving the cache costs points."""
    kv_finding.measured("both modes together", kv_finding.drop("snapkv", ["kv"], "single"))
    kv_finding.above("snapkv loses", kv_finding.drop("snapkv", ["kv"], "multi_turn", slice(1, None)))
    kv_finding.below("kivi loses", kv_finding.drop("kivi", ["kv"], "single"), 5)
'''


@pytest.fixture
def own(repo: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    repo.makepyfile(OWN)
    return lambda *options: repo.runpytest("--kv-n=8", "--kv-lengths=512", *options)


def test_numbers_are_printed_with_their_intervals(own: Any, behave: Behave, dist: tuple[str, ...]) -> None:
    behave({"snapkv": 0.25})
    result = own("--kv-findings", *dist)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "Halving the cache costs points.",
            "*points*95% interval*asserted*n*",
            "*both modes together*+75.0*8*measured*",
            "*snapkv loses*+75.0*> 0*8*shown*",
            "*kivi loses*0.0*< 5*8*shown*",
        ]
    )


def test_a_direction_that_is_not_there_fails_with_the_number(own: Any, behave: Behave) -> None:
    behave({"snapkv": 1.0})
    result = own("--kv-findings")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*snapkv loses*0.0*> 0*8*not shown*"])


def test_they_run_only_where_they_are_asked_for(own: Any, repo: pytest.Pytester) -> None:
    own("--kv-method=snapkv").assert_outcomes(deselected=1)
    assert not (repo.path / "ran.txt").exists()


def test_cases_need_a_method_of_their_own_beside_findings(run: Any) -> None:
    run("--kv-findings").assert_outcomes(deselected=1)


def test_the_table_is_written_as_markdown(own: Any, repo: pytest.Pytester, behave: Behave) -> None:
    behave({"snapkv": 0.25})
    own("--kv-findings", "--kv-md=found.md")
    text = (repo.path / "found.md").read_text()
    assert "**Halving the cache costs points.**" in text
    assert "| snapkv loses | +75.0 |" in text


def test_a_case_is_measured_once(own: Any, repo: pytest.Pytester, behave: Behave) -> None:
    behave({"snapkv": 0.25})
    own("--kv-findings")
    ran = (repo.path / "ran.txt").read_text().splitlines()
    assert len(ran) == len(set(ran))
