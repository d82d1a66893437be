"""The first lines of a report: pass, fail or inconclusive, by which numbers, which limit, over what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from building import fp16, record, run

from kvcheck.core.record import AGAINST_OWN, AS_RECORDED, RECORDED_NOW, PropertyRecord, Run, Verdict
from kvcheck.judging.pooled import IDENTICAL
from kvcheck.report import markdown, rows, terminal, verdict
from kvcheck.report.text import colour

METHOD = "mine.Mine"


def drop(outcome: str, value: float, low: float, high: float, reason: str = "") -> Verdict:
    return Verdict("budget", outcome, value, low, high, 2.0, 32, 12, 1, reason=reason)


def measured(whole: Verdict, budget: str = "", **scopes: Verdict) -> Run:
    """Two cases of 16 contexts whose run has this verdict, and scopes ("capability_needle") theirs."""
    cases = [record([1.0] * 16, METHOD, task=task) for task in ("kv", "needle")]
    found = run(*cases)
    verdicts = {rows.key(one): (drop("inconclusive", 1.0, -9.0, 12.0),) for one in cases}
    verdicts |= {f"run|{METHOD}": (whole,)}
    verdicts |= {f"{name.replace('_', ' ')}|{METHOD}": (one,) for name, one in scopes.items()}
    header = replace(found.header, settings={"budget": budget} if budget else {})
    return replace(found, header=header, verdicts=verdicts)


def first(found: Run) -> str:
    """The lines before the first empty one, as one."""
    return " ".join(" ".join(list(verdict.lines(found))).split())


def test_a_failure_has_its_numbers_its_limit_and_its_contexts() -> None:
    text = first(measured(drop("fail", 6.0, 3.5, 8.7)))
    assert text == (
        "fail: mine.Mine on mini: accuracy drop against fp16 6.0 points [3.5, 8.7], allowed 2 (default budget), "
        "over 32 contexts of 2 cases: kv, needle; single; 1024 tokens"
    )


def test_a_limit_of_the_user_is_named_as_theirs() -> None:
    assert "allowed 2 (your --kv-budget)" in first(measured(drop("pass", 0.1, -0.5, 0.9), "drop=2.0"))
    assert "allowed 2 (default budget)" in first(measured(drop("pass", 0.1, -0.5, 0.9), "bytes=0.5"))


def test_what_is_inconclusive_says_how_many_contexts_would_settle_it() -> None:
    text = first(measured(drop("inconclusive", 1.0, -1.0, 3.0)))
    assert text.startswith("inconclusive: mine.Mine")
    assert "about 128 contexts would settle it" in text


def test_cases_that_cannot_tell_do_not_make_a_run_inconclusive_that_can() -> None:
    assert verdict.standing(measured(drop("pass", 0.1, -0.5, 0.9)), METHOD).outcome == "pass"


def test_cases_that_cannot_tell_decide_where_nothing_else_was_asked() -> None:
    found = measured(drop("pass", 0.1, -0.5, 0.9))
    alone = replace(found, verdicts={name: one for name, one in found.verdicts.items() if not name.startswith("run")})
    assert verdict.standing(alone, METHOD).outcome == "inconclusive"
    assert "judged case by case alone" in first(alone)


def test_nothing_judged_is_no_pass() -> None:
    assert verdict.standing(run(record([1.0] * 8, METHOD)), METHOD).outcome == "not judged"


def test_a_capability_that_fails_makes_the_method_fail_and_follows_with_its_numbers() -> None:
    found = measured(drop("pass", 0.1, -0.5, 0.9), capability_needle=drop("fail", 12.5, 6.0, 20.0))
    text = first(found)
    assert text.startswith("fail: mine.Mine on mini: accuracy drop against fp16 0.1 points")
    assert "fail: capability needle: accuracy drop against fp16 12.5 points [6.0, 20.0], allowed 2" in text


@pytest.mark.parametrize(
    "what",
    [
        {"failures": {f"needle/v1/single/len=512/seed=0/n=8|{METHOD}": "boom"}},
        {"properties": (PropertyRecord("p", METHOD, "fails"),)},
        {"failures": {f"run|{METHOD}": "inconclusive is a failure here because of --kv-strict"}},
    ],
    ids=["a case", "a property", "strict"],
)
def test_whatever_failed_makes_the_method_fail(what: dict[str, object]) -> None:
    found = replace(measured(drop("inconclusive", 0.1, -0.5, 2.9)), **what)  # type: ignore[arg-type]
    assert verdict.standing(found, METHOD).outcome == "fail"


def test_what_repeats_its_own_record_is_said_once() -> None:
    own = tuple(Verdict(name, "pass", 0.0, 0.0, 0.0, 2.0, 32, reason=AS_RECORDED) for name in AGAINST_OWN)
    found = measured(own[0])
    text = first(replace(found, verdicts={f"run|{METHOD}": own}))
    assert "mini: scores, nll and KL as in its own record, over 32 contexts" in text


def test_answers_that_are_those_of_fp16_have_no_interval() -> None:
    assert "answers identical to those of fp16, allowed 2" in first(measured(drop("pass", 0, -3, 4, IDENTICAL)))


def test_the_estimate_is_the_one_that_the_table_shows() -> None:
    from kvcheck.judging.budget import Budget
    from kvcheck.judging.pooled import Compared, judge_pooled

    cases = [record([0.0] * 5 + [1.0] * 11, METHOD, task=task) for task in ("kv", "needle")]
    known = [fp16(16, task=task) for task in ("kv", "needle")]
    judged = judge_pooled([Compared(a, b, None) for a, b in zip(cases, known, strict=True)], Budget(), 0.05)
    row = rows.pool("all", run(*cases), cases, {one.case.key: one for one in known})
    (one,) = judged["run"]
    assert (one.value, one.low, one.high) == pytest.approx((row.drop, row.low, row.high))


def test_the_first_lines_are_whole_on_a_terminal_of_eighty_columns() -> None:
    scopes = {f"task_{name * 20}": drop("fail", 12.5, 6.0, 20.0) for name in "abcdefghij"}
    found = list(verdict.lines(measured(drop("inconclusive", 1.0, -1.0, 3.0), **scopes)))
    assert max(map(len, found)) <= 80
    assert "4 more, in the run file" in " ".join(found)


def test_both_reports_begin_with_it() -> None:
    found = measured(drop("inconclusive", 1.0, -1.0, 3.0))
    assert next(iter(terminal.lines(found))).startswith("inconclusive: mine.Mine on mini")
    assert next(iter(markdown.lines(found))) == "## kvcheck: inconclusive"
    assert list(markdown.lines(found))[2].startswith("- **inconclusive**: `mine.Mine`: accuracy drop")


def test_only_a_pass_is_green() -> None:
    colours = {word: colour(f"{word}: mine.Mine on mini: accuracy") for word in ("pass", "fail", "inconclusive")}
    assert colours == {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def test_a_line_of_the_short_summary_has_the_numbers_in_forty_columns() -> None:
    text = verdict.short(drop("fail", 37.5, 16.4, 54.8))
    assert text == "drop 37.5 points [16.4, 54.8], allowed 2"
    assert len(text) == 40


def test_bytes_that_differ_from_those_recorded_are_not_said_to_be_above_what_is_allowed() -> None:
    changed = Verdict("bytes", "fail", 0.4994, 0.4994, 0.4994, 0.507051, 16, reason="6017760 now; 6109920 recorded")
    assert verdict.short(changed) == "bytes 0.499, recorded 0.507051"
    above = replace(changed, value=0.6, low=0.6, high=0.6, limit=0.5, reason="more than the allowed 0.5; recorded 0.6")
    assert verdict.short(above) == "bytes 0.600, allowed 0.5"


def test_fp16_that_was_measured_beside_a_method_is_not_what_the_run_is_about() -> None:
    found = measured(drop("pass", 0.1, -0.5, 0.9))
    assert verdict.judged(replace(found, cases=(*found.cases, fp16(16)))) == [METHOD]
    assert verdict.judged(run(fp16(16))) == ["fp16"]


def test_a_run_of_properties_alone_says_so() -> None:
    held = replace(run(), properties=(PropertyRecord("p", METHOD, "holds"), PropertyRecord("q", METHOD, "not served")))
    assert first(held) == "pass: mine.Mine on mini: accuracy not measured, 1 property holds"
    none = replace(held, properties=held.properties[1:])
    assert verdict.standing(none, METHOD).outcome == "not judged"


def test_a_failure_of_no_method_has_no_line() -> None:
    assert first(replace(run(), failures={"the journal|": "gone"})) == ""


def test_a_run_that_fails_without_a_verdict_says_why() -> None:
    found = replace(run(record([1.0] * 8, METHOD)), failures={f"run|{METHOD}": "nothing of it is informative"})
    assert first(found).startswith("fail: mine.Mine on mini: accuracy not judged, over 8 contexts")
    assert first(found).endswith("; nothing of it is informative")


def test_a_run_that_fails_by_strict_says_so() -> None:
    found = measured(drop("inconclusive", 1.0, -1.0, 3.0))
    text = first(replace(found, failures={f"run|{METHOD}": "inconclusive: drop 1.0"}))
    assert text.startswith("fail: ")
    assert text.endswith("about 128 contexts would settle it; inconclusive fails by --kv-strict")


def test_a_record_that_was_written_now_has_nothing_to_be_held_to() -> None:
    one = record([1.0] * 8, METHOD)
    now = Verdict("regression", "pass", 0.0, -9.0, 9.0, 2.0, 8, reason=RECORDED_NOW)
    text = first(
        replace(run(one), verdicts={rows.key(one): (now,), f"run|{METHOD}": (replace(now, reason=AS_RECORDED),)})
    )
    assert text.startswith("pass: mine.Mine on mini: recorded now: later runs are held to it, over 8 contexts")
