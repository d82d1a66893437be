"""What a method gives up, in a sentence."""

from __future__ import annotations

from building import fp16, memory, record, run

from kvcheck.report import statement
from kvcheck.report.rows import references


def said(held: int, scores: list[float]) -> str:
    """What is said of a method that holds so many of fp16's 1000 bytes and has these scores, where fp16 is right."""
    case = record(scores, "mine.Own", held=memory(held))
    measured = run(fp16(len(scores)), case)
    return statement.plain(measured, "mine.Own", references(measured, {case.case.key: fp16(len(scores))}))


def test_a_method_that_changes_nothing_is_noticed() -> None:
    assert said(1000, [1.0] * 8).startswith("NOTICE: mine.Own holds what fp16 holds and answers the same")


def test_a_method_that_holds_less_or_answers_otherwise_changes_something() -> None:
    assert "NOTICE" not in said(500, [1.0] * 8) + said(1000, [1.0] * 7 + [0.0])
