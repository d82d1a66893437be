"""Every test in the gate can fail: the smallest p-value that its contexts can give is at most its level."""

from __future__ import annotations

import pytest

from kvcheck.power.reach import PROFILES, QUESTIONS, Reach, reach

ASKED = ("budget", "nll", "agree", "kl", "lossless", "regression", "drift", "divergence")
OF_A_CASE = {"budget", "regression (scores)", "regression (drift)"}


@pytest.fixture(scope="module", params=PROFILES)
def tests(request: pytest.FixtureRequest) -> list[Reach]:
    return list(reach(request.param))


def test_every_question_is_tried_at_every_level(tests: list[Reach]) -> None:
    pooled = {(one.level, one.question) for one in tests if one.level != "case"}
    assert pooled == {(level, question) for level in ("run", "capability", "task") for question in ASKED}
    assert len(QUESTIONS) == 4
    assert {one.question for one in tests if one.level == "case"} - {"drift"} == OF_A_CASE


def test_what_all_cases_together_are_asked_can_fail(tests: list[Reach]) -> None:
    assert [one for one in tests if one.level != "case" and one.asked and not one.can_fail] == []


def test_what_is_left_out_could_not_have_failed(tests: list[Reach]) -> None:
    assert [one for one in tests if not one.asked and one.can_fail] == []


def test_the_run_can_fail_by_every_question(tests: list[Reach]) -> None:
    run = [one for one in tests if one.level == "run"]
    assert {one.question for one in run} == set(ASKED)
    assert all(one.asked and one.can_fail for one in run)


def test_every_case_can_fail_by_every_question_it_is_asked(tests: list[Reach]) -> None:
    assert [one for one in tests if one.level == "case" and not one.can_fail] == []
