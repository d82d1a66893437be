"""A failed case is one block: its numbers first, what was measured, an example, and what to type."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from building import fp16, memory, record

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import CaseRecord, TurnRecord, Verdict
from kvcheck.judging.budget import Budget, judge
from kvcheck.report.explain import Session, failure
from kvcheck.tasks.base import Sample, Turn


def lossy(lost: int, method: str = "snapkv") -> CaseRecord:
    return record([0.0] * lost + [1.0] * (16 - lost), method)


def told(mine: CaseRecord, then: CaseRecord | None = None, own: CaseRecord | None = None, **how: object) -> list[str]:
    """The lines of a case that failed against fp16, or against its own record."""
    budget, against = Budget(**how.pop("budget", {})), "fp16" if own is None else "self"  # type: ignore[arg-type]
    return list(failure(mine, then, judge(mine, then, own, budget, against=against), Session(**how)))  # type: ignore[arg-type]


def line(found: list[str], start: str) -> str:
    (one,) = [each.strip() for each in found if each.strip().startswith(start)]
    return one


def test_it_begins_with_the_numbers_and_what_is_allowed() -> None:
    assert told(lossy(12), fp16())[0].startswith("drop 75.0 points [")
    assert told(lossy(12), fp16())[0].endswith("], allowed 2")


def test_the_limit_stands_with_its_origin() -> None:
    assert line(told(lossy(12), fp16()), "accuracy drop").endswith("allowed 2 (default budget)   FAIL")
    set_by_user = told(lossy(12), fp16(), budget={"drop": 5}, settings={"budget": "drop=5"})
    assert line(set_by_user, "accuracy drop").endswith("allowed 5 (your --kv-budget)   FAIL")


def test_why_names_the_low_end_and_the_limit() -> None:
    assert line(told(lossy(12), fp16()), "why: even the low end (").endswith(") exceeds the allowed 2")


def test_a_failed_budget_ends_in_the_command_that_accepts_it() -> None:
    assert told(lossy(12), fp16())[-1].endswith("pytest --kv-method=snapkv --kv-budget=drop=75")


def test_a_regression_ends_in_recording() -> None:
    assert told(lossy(12), None, lossy(2))[-1].endswith("pytest --kv-method=snapkv --kv-record=changed")


def test_it_says_what_was_lost_on_the_same_contexts() -> None:
    found = told(lossy(12), fp16())
    assert "of the same 16 contexts: 12 lost, 0 won, 4 unchanged" in line(found, "of the same")
    assert line(found, "accuracy: ") == "accuracy: 1.000 -> 0.250 (a guess scores 0.100)"


def test_inconclusive_asks_for_more_contexts() -> None:
    open_still = Verdict("nll", "inconclusive", 0.2, -0.1, 0.5, 0.1, 16)
    found = list(failure(lossy(1), fp16(), [open_still], Session(strict=True)))
    assert line(found, "more contexts").endswith("--kv-tasks=kv --kv-n=64")
    assert line(found, "inconclusive is").endswith("because of --kv-strict")


def test_several_questions_make_one_block() -> None:
    mine = replace(lossy(12), memory=memory(500))
    found = told(mine, fp16(), budget={"drop": 2, "bytes": 0.3})
    assert [text.count("FAIL") for text in found].count(1) == 2
    for once in ("accuracy: ", "KV bytes: ", "for example", "look: "):
        line(found, once)
    assert line(found, "accept").endswith("--kv-budget=drop=75,bytes=0.5")


def test_a_regression_by_drift_says_so_first() -> None:
    now, then = record([1.0] * 8, nll=2.5), record([1.0] * 8, nll=0.5)
    first = line(told(now, None, then), "regression")
    assert first.startswith("regression by drift: 8 contexts worse, 0 better, 8 broken, +2.000 nats per token")
    assert "(accuracy drop 0.0 points" in first
    assert first.endswith("not significant)   FAIL")


def test_bytes_that_changed_stand_beside_those_that_were_recorded() -> None:
    now, then = record([1.0] * 8, held=memory(250)), record([1.0] * 8, held=memory(500))
    assert line(told(now, None, then), "KV bytes changed: 0.5 of fp16's recorded, 0.25 now   FAIL")


SPEC = """mine.make:path='it is',"""


def test_the_command_that_shows_it_again_is_one_line_for_bash() -> None:
    mine, then = (replace(one, case=replace(one.case, seed=3)) for one in (lossy(12, SPEC), fp16()))
    look = shlex.split(line(told(mine, then), "look: ").removeprefix("look: "))
    assert look[:2] == ["pytest", f"--kv-method={SPEC}"]
    assert look[2:] == ["--kv-tasks=kv", "--kv-modes=single", "--kv-lengths=1024", "--kv-n=16", "--kv-seed=3"]


def asked(record: CaseRecord, index: int) -> Sample:
    """A context with one question."""
    return Sample("kv", index, "the context", (Turn("What is the code?", ("4711",), 4, "exact"),))


def test_the_expected_answer_stands_beside_the_question_and_both_answers() -> None:
    mine, then = lossy(12), fp16()
    wrong, right = TurnRecord(0.0, "1147"), TurnRecord(1.0, "4711")
    mine = replace(mine, samples=(replace(mine.samples[0], turns=(wrong,)), *mine.samples[1:]))
    then = replace(then, samples=(replace(then.samples[0], turns=(right,)), *then.samples[1:]))
    found = told(mine, then, prompts=asked)
    at = next(number for number, text in enumerate(found) if "for example" in text)
    assert [text.split(maxsplit=1) for text in found[at + 1 : at + 5]] == [
        ["question", "'What is the code?'"],
        ["expected", "'4711'"],
        ["fp16", "'4711'"],
        ["method", "'1147'"],
    ]


def test_without_the_prompt_it_says_why_the_expected_answer_is_not_known() -> None:
    def gone(record: CaseRecord, index: int) -> Sample:
        raise KvcheckError("the model is not on this machine")

    assert line(told(lossy(12), fp16(), prompts=gone), "expected") == (
        "expected  not known: the model is not on this machine"
    )


@pytest.mark.parametrize("text", ["a\nb", "x" * 500])
def test_an_answer_of_any_form_takes_one_line_of_eighty_columns(text: str) -> None:
    mine = lossy(12)
    mine = replace(mine, samples=tuple(replace(one, turns=(TurnRecord(0.0, text),)) for one in mine.samples))
    assert len(line(told(mine, fp16()), "method ")) <= 80
