"""Every test in the gate can fail: the smallest p-value that its contexts can give is at most its level."""

from __future__ import annotations

import pytest

from kvcheck.power.reach import PROFILES, QUESTIONS, Reach, reach

ASKED = ("budget", "nll", "agree", "kl", "regression", "drift")
SEEN_BY_THE_RUN = {
    "quick": {("budget", 2), ("agree", 2), ("nll", 2), ("nll", 4), ("regression (scores)", 2)},
    "default": {("nll", 4), ("nll", 8)},
    "full": set(),
}
"""(question, contexts) of a case that is too small for it; all contexts together can fail by each of them."""


@pytest.fixture(scope="module", params=PROFILES)
def tests(request: pytest.FixtureRequest) -> list[Reach]:
    return list(reach(request.param))


def test_every_question_is_tried_at_every_level(tests: list[Reach]) -> None:
    pooled = {(one.level, one.question) for one in tests if one.level != "case"}
    assert pooled == {(level, question) for level in ("run", "capability", "task") for question in ASKED}
    assert len(QUESTIONS) == 4
    assert len({one.question for one in tests if one.level == "case"}) == 6


def test_what_all_cases_together_are_asked_can_fail(tests: list[Reach]) -> None:
    assert [one for one in tests if one.level != "case" and one.asked and not one.can_fail] == []


def test_what_is_left_out_could_not_have_failed(tests: list[Reach]) -> None:
    assert [one for one in tests if not one.asked and one.can_fail] == []


def test_the_run_can_fail_by_every_question(tests: list[Reach]) -> None:
    run = [one for one in tests if one.level == "run"]
    assert {one.question for one in run} == set(ASKED)
    assert all(one.asked and one.can_fail for one in run)


def test_what_a_case_is_too_small_for_is_known(tests: list[Reach]) -> None:
    cases = [one for one in tests if one.level == "case"]
    too_small = {(one.question, one.n) for one in cases if not one.can_fail}
    assert too_small == SEEN_BY_THE_RUN[cases[0].profile]
