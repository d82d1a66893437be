"""A run as one comment on a pull request."""

from __future__ import annotations

from dataclasses import replace

from building import record, run

from kvcheck.core.record import Run, Verdict
from kvcheck.report import comment, rows

METHOD = "mine.Mine"


def lost(count: int) -> Run:
    """So many cases, in each of which half of the recorded accuracy is gone."""
    cases = [record([0.0, 1.0] * 4, METHOD, task=f"task{at}") for at in range(count)]
    drop = Verdict("regression", "fail", 50.0, 20.0, 80.0, 2.0, 8, 4, 0, reason="scores: p = 0.001")
    verdicts = {rows.key(one): (drop,) for one in cases}
    return replace(run(*cases), verdicts=verdicts)


def visible(text: str) -> list[str]:
    return text.partition("<details>")[0].rstrip("\n").split("\n")


def test_it_begins_with_the_mark_by_which_it_is_found_again_and_the_outcome() -> None:
    first, second, *_ = visible(comment.text(lost(1)))
    assert first == comment.MARK
    assert second == "### kvcheck: failed"


def test_a_failed_case_shows_what_was_recorded_and_what_is_now() -> None:
    text = "\n".join(visible(comment.text(lost(1))))
    assert "`mine.Mine`, task0 single 1024: accuracy 1.000 (recorded) → 0.500, 50.0 points lost [20.0, 80.0]" in text
    assert "- again: `pytest --kv-method=mine.Mine`" in text


def test_the_command_asks_what_the_run_was_asked() -> None:
    found = lost(1)
    settings = {"profile": "quick", "budget": "drop=2", "against": "fp16"}
    text = comment.text(replace(found, header=replace(found.header, settings=settings)))
    command = "pytest --kv-method=mine.Mine --kv-profile=quick --kv-against=fp16 --kv-budget=drop=2"
    assert f"- again: `{command}`" in text


def test_at_most_fifteen_lines_stand_before_the_fold_however_much_failed() -> None:
    text = comment.text(lost(40))
    assert len(visible(text)) <= comment.LINES
    assert "more failures, below" in text
    assert "- again: " in "\n".join(visible(text))


def test_it_never_exceeds_what_github_takes_and_all_folds_are_closed() -> None:
    found = comment.text(lost(600))
    assert len(found) <= 65_536
    assert found.count("<details") == found.count("</details>")
    assert "cut: the whole report" in found


def test_several_comments_on_one_pull_request_are_told_apart() -> None:
    assert comment.text(lost(1), title="gpu").startswith("<!-- kvcheck gpu -->\n### gpu: failed")


def test_what_methods_and_models_say_is_no_markup() -> None:
    found = lost(1)
    hostile = Verdict("bytes", "fail", 2, 2, 2, 1.0, 8, reason="<script>x</script> @someone [a](http://b)")
    text = comment.text(replace(found, verdicts=dict.fromkeys(found.verdicts, (hostile,))))
    assert "<script" not in text
    assert "@someone" not in text.replace("&#64;someone", "")


def test_a_green_run_says_so_and_asks_for_nothing() -> None:
    good = Verdict("regression", "pass", 0.0, 0.0, 0.0, 2.0, 8, reason="as recorded")
    found = lost(1)
    text = comment.text(replace(found, verdicts=dict.fromkeys(found.verdicts, (good,))))
    assert "### kvcheck: passed" in text
    assert "again:" not in text
