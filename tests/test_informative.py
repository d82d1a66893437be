"""Cases that cannot show a loss of accuracy: which they are, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from building import record, run

from kvcheck.core.errors import BaselineError, NotComparable
from kvcheck.core.paths import bundle
from kvcheck.core.record import NOT_INFORMATIVE, RUN, CaseRecord, Verdict
from kvcheck.judging.budget import Budget, judge, sequential
from kvcheck.judging.compare import compare_runs
from kvcheck.judging.informative import NAMED, noted, why_not
from kvcheck.judging.pooled import Compared, judge_pooled
from kvcheck.report import markdown, rows, terminal
from kvcheck.report.explain import pooled as message
from kvcheck.report.verdict import lines as said_first
from kvcheck.store.baselines import open_store

FLOOR = [1.0, 0, 0, 0, 1, 0, 0, 0]
"""Scores of one who guesses one of four."""


def full(scores: Sequence[float | Sequence[float]], *, chance: float = 0.25, **more: Any) -> CaseRecord:
    return record(scores, "fp16", chance=chance, **more)


def ended(one: CaseRecord, *how: bool | None) -> CaseRecord:
    """The record; whether its answers ended, in turn."""
    turns = [turn for sample in one.samples for turn in sample.turns]
    marks = iter([how[at % len(how)] for at in range(len(turns))])
    samples = (
        replace(sample, turns=tuple(replace(turn, ended=next(marks)) for turn in sample.turns))
        for sample in one.samples
    )
    return replace(one, samples=tuple(samples))


class TestChance:
    def test_a_guess_is_not_informative_and_says_why(self) -> None:
        assert why_not(full(FLOOR)) == (
            "fp16 is not surely above chance: 0.250 over 8 answers, a guess scores 0.250 (p = 0.63)"
        )

    @pytest.mark.parametrize("chance", [0.0, 0.25, 0.46])
    def test_four_contexts_that_are_all_right_are_informative_at_any_chance_of_ours(self, chance: float) -> None:
        assert why_not(full([1.0] * 4, chance=chance)) == ""

    def test_graded_answers_a_little_better_than_a_guess_are_informative_when_there_are_many(self) -> None:
        scores = [[0.6, 0.7, 0.65, 0.55]] * 4
        assert why_not(full(scores, chance=0.34)) == ""
        assert why_not(full(scores[:1], chance=0.34)) != ""

    @pytest.mark.parametrize("score", [1.0, 0.5])
    def test_one_stray_hit_where_a_guess_scores_nothing_is_no_accuracy_to_lose(self, score: float) -> None:
        assert why_not(full([score] + [0.0] * 7, chance=0.0))
        assert why_not(full([score] * 4 + [0.0] * 4, chance=0.0)) == ""

    def test_without_a_record_of_fp16_nothing_is_known(self) -> None:
        assert why_not(None) == ""
        own = record(FLOOR, chance=0.25)
        assert [one.question for one in judge(own, None, own, Budget(), against="self")] == ["regression", "bytes"]

    def test_of_the_shipped_records_only_what_two_models_cannot_do_and_what_asks_nothing_is_not_informative(
        self,
    ) -> None:
        store = open_store(bundle("baselines"))
        found = {
            (entry.model.name, case.task)
            for entry in store.entries()
            if entry.method == "fp16"
            for case in entry.cases
            if (one := store.get(entry.model, "fp16", case)) is not None and why_not(one)
        }
        asks_nothing = {("smollm2", "completion/prose")}
        assert found == {("mini_hybrid", "math_find"), ("mini_window", "math_find")} | asks_nothing


class TestCut:
    def test_answers_that_the_limit_cut_are_no_evidence(self) -> None:
        partly = full([0.6] * 8, chance=0.1)
        assert why_not(ended(partly, True)) == ""
        assert why_not(ended(partly, False)) == (
            "8 of 8 answers of fp16 were cut by the limit of new tokens, "
            "and the others are not surely above chance (p = 1)"
        )

    def test_an_answer_that_was_right_before_it_was_cut_is(self) -> None:
        assert why_not(ended(full([1.0] * 8), False)) == ""

    def test_so_many_may_be_cut_that_the_others_are_surely_above_chance(self) -> None:
        assert why_not(ended(full([0.8] * 8, chance=0.1), True, False)) == ""
        assert why_not(ended(full([0.8] * 8, chance=0.1), False, False, False, True)) != ""

    def test_the_limit_is_named_beside_the_chance(self) -> None:
        assert why_not(ended(full([0.0] * 8), False)).endswith(
            "; 8 of 8 answers of fp16 were cut by the limit of new tokens"
        )

    def test_of_an_old_record_nothing_is_known_but_its_scores(self) -> None:
        assert why_not(ended(full([0.6] * 8, chance=0.1), None)) == ""


class TestCase:
    def test_in_place_of_a_verdict_on_scores_it_says_why_there_is_none(self) -> None:
        lost = record([0.0] * 8, chance=0.25, nll=1.0)
        verdicts = judge(lost, full(FLOOR, nll=1.0), None, Budget(drop=2.0, nll=0.1))
        assert [(one.question, one.outcome) for one in verdicts] == [("informative", NOT_INFORMATIVE)]
        assert "not surely above chance" in verdicts[0].reason

    def test_drift_against_the_own_record_still_fails(self) -> None:
        own, now = (record(FLOOR, chance=0.25, nll=nll) for nll in (1.0, 3.0))
        found = {one.question: one for one in judge(now, full(FLOOR), own, Budget(drop=None))}
        assert (found["drift"].outcome, found["drift"].value) == ("fail", 2.0)
        assert found["informative"].outcome == NOT_INFORMATIVE
        assert "regression" not in found

    def test_what_repeats_its_record_is_not_informative_all_the_same(self) -> None:
        own = record(FLOOR, chance=0.25, nll=1.0)
        measured = replace(run(own), verdicts={rows.key(own): judge(own, full(FLOOR), own, Budget(drop=None))})
        assert rows.outcome(measured, own) == NOT_INFORMATIVE
        assert rows.own_record(measured, [own]) == (1, 0, 0)

    def test_it_does_not_stop_early_for_its_scores(self) -> None:
        lost = record([0.0] * 4, chance=0.25, n=8)
        assert sequential(lost, full([1.0] * 8), None, Budget(drop=2.0))
        assert not sequential(lost, full(FLOOR), None, Budget(drop=2.0))

    def test_a_record_that_does_not_fit_is_refused_all_the_same(self) -> None:
        with pytest.raises(NotComparable):
            judge(record([0.0] * 8), full(FLOOR, task="needle"), None, Budget(drop=2.0))
        with pytest.raises(BaselineError, match="no samples"):
            judge(record([0.0] * 8), replace(full(FLOOR), samples=()), None, Budget(drop=2.0))

    def test_where_no_accuracy_is_asked_for_nothing_is_said_of_it(self) -> None:
        (verdict,) = judge(record([0.0] * 8), full(FLOOR), None, Budget(drop=None, bytes=0.9))
        assert verdict.question == "bytes"


def compared(good: int, blind: int, nll: float | None = None) -> list[Compared]:
    """So many cases with fp16 right and half of the method's answers lost, and so many in which fp16 guesses."""
    found = []
    for at in range(good + blind):
        now = record([1.0] * 8 if at < good else [0.0] * 8, task=f"task{at}", chance=0.25, nll=nll)
        then = full([1.0] * 8 if at < good else FLOOR, task=f"task{at}", nll=None if nll is None else 0.1)
        found.append(Compared(now, then, None, why=why_not(then)))
    return found


class TestPooled:
    def test_scores_of_such_cases_are_left_out(self) -> None:
        found = judge_pooled(compared(4, 4), Budget(drop=2.0), 0.05)
        (verdict,) = found[RUN]
        assert (verdict.question, verdict.n, verdict.value) == ("budget", 32, 0.0)

    def test_so_are_those_against_the_own_record(self) -> None:
        cases = [replace(one, drop=False, own=replace(one.fp16, method="snapkv")) for one in compared(4, 4)]
        (verdict,) = (one for one in judge_pooled(cases, Budget(), 0.05)[RUN] if one.question == "regression")
        assert (verdict.n, verdict.value) == (32, 0.0)

    def test_their_likelihood_counts(self) -> None:
        found = judge_pooled(compared(4, 4, nll=0.5), Budget(drop=2.0, nll=0.1), 0.05)
        assert {one.question: (one.n, one.outcome) for one in found[RUN]} == {
            "budget": (32, "inconclusive"),
            "nll": (64, "fail"),
        }

    def test_a_run_with_nothing_informative_fails_and_says_what_to_do(self) -> None:
        found = judge_pooled(compared(0, NAMED + 2), Budget(drop=2.0), 0.05)
        (verdict,) = found[RUN]
        assert (verdict.question, verdict.outcome, verdict.value, verdict.n) == ("informative", "fail", 0, NAMED + 2)
        lines = list(message(RUN, "snapkv", found, {}))
        assert lines[0] == "no case can show a loss of accuracy"
        assert lines[1] == "  snapkv, run: no case can show a loss of accuracy   FAIL"
        assert lines[2].startswith("    task0 single 1024: fp16 is not surely above chance: 0.250")
        assert lines[-2:] == [
            "    and 2 more",
            "    another task, length or model, or more contexts of fp16 (--kv-n, --kv-record=changed)",
        ]

    def test_its_likelihood_is_judged_beside_that(self) -> None:
        found = judge_pooled(compared(0, 4, nll=0.5), Budget(drop=2.0, nll=0.1), 0.05)
        assert [(one.question, one.outcome) for one in found[RUN]] == [("informative", "fail"), ("nll", "fail")]

    def test_a_run_that_asks_for_no_accuracy_does_not_fail_for_it(self) -> None:
        assert judge_pooled(compared(0, 4), Budget(drop=None), 0.05) == {}


class TestReports:
    def shown(self, good: int, blind: int, how: ModuleType = terminal) -> str:
        """What is shown of a run of such cases."""
        cases = compared(good, blind)
        verdicts = {rows.key(one.record): judge(one.record, one.fp16, None, Budget(drop=2.0)) for one in cases}
        measured = replace(run(*(one.record for one in cases)), verdicts=verdicts)
        known = {one.record.case.key: one.fp16 for one in cases if one.fp16 is not None}
        return "\n".join(how.lines(measured, known))

    def test_the_means_are_those_of_the_informative_cases(self) -> None:
        text = self.shown(2, 2)
        assert "4 cases: 2 pass, 2 not informative" in text
        (row,) = (line for line in text.splitlines() if line.startswith("string_retrieval"))
        assert "1.000 -> 1.000" in row
        assert "2 left out" in row
        assert "over" not in row

    def test_a_task_without_one_shows_no_drop_but_the_word(self) -> None:
        (row,) = (line for line in self.shown(1, 1).splitlines() if line.startswith("  task1 ") and "->" in line)
        assert row.split() == ["task1", "0.250", "->", "0.000", "not", "informative", "1", "left", "out", "8", "0.25"]

    def test_every_one_is_listed_with_its_reason(self) -> None:
        text = self.shown(1, 1)
        assert "not informative: no loss of accuracy can show there" in text
        assert "task1 single 1024: fp16 is not surely above chance" in text
        assert "- not informative: `task1 single 1024: fp16 is not surely" in self.shown(1, 1, markdown)

    def test_the_statement_says_that_nothing_can_show(self) -> None:
        assert "snapkv: no case here is informative" in self.shown(0, 2)
        assert "gives up" not in self.shown(0, 2)


class TestCompare:
    """Two runs, the first in the place of the records."""

    def outcomes(self, *beside: CaseRecord) -> dict[str, str]:
        """Of a method that was at the floor before and is now, with what the first run has beside it."""
        own = record(FLOOR, chance=0.25)
        found = compare_runs(run(*beside, own), run(*beside, own)).run.verdicts[rows.key(own)]
        return {one.question: one.outcome for one in found}

    def test_fp16_of_the_first_run_says_what_is_not_informative(self) -> None:
        assert self.outcomes(full(FLOOR)) == {"informative": NOT_INFORMATIVE, "drift": "pass", "bytes": "pass"}
        assert self.outcomes(full([1.0] * 8)) == {"regression": "pass", "bytes": "pass"}

    def test_without_fp16_the_method_is_held_to_what_it_was(self) -> None:
        assert self.outcomes() == {"regression": "pass", "bytes": "pass"}

    def test_a_method_that_is_taken_for_fp16_is_asked_in_its_place(self) -> None:
        found = compare_runs(run(record(FLOOR, "old", chance=0.25)), run(record(FLOOR, "new", chance=0.25)))
        assert found.fails()
        (verdict,) = found.run.verdicts["run|new"]
        assert "old is not surely above chance" in verdict.reason


def test_a_run_that_records_and_shows_nothing_is_not_called_a_pass() -> None:
    blind = full(FLOOR)
    (nothing,) = judge_pooled([Compared(blind, blind, None, why=why_not(blind))], Budget(), 0.05)[RUN]
    verdicts = {rows.key(blind): judge(blind, blind, None, Budget()), "run|fp16": (noted(nothing),)}
    (first, *_) = said_first(replace(run(blind), verdicts=verdicts))
    assert first == "not judged: fp16 on mini: no case can show a loss of accuracy, over 8 contexts"


def test_a_verdict_comes_back_from_a_run_file() -> None:
    from kvcheck.store.run_file import run_from_json, run_to_json

    one = ended(record(FLOOR, chance=0.25), True, False)
    verdicts: tuple[Verdict, ...] = judge(one, full(FLOOR), None, Budget(drop=2.0))
    measured = replace(run(one), verdicts={rows.key(one): verdicts})
    assert run_from_json(run_to_json(measured)) == measured


class TestNothingAsked:
    """Cases without scores, in which the likelihood of the text is all that is measured."""

    @staticmethod
    def silent(method: str, nll: float, kl: float | None = None) -> CaseRecord:
        one = record(
            [0.0] * 12, method, nll=nll, task="completion/prose", not_measured=(("accuracy", "nothing is asked"),)
        )
        turns = ((replace(turn, kl=kl, answer="") for turn in sample.turns) for sample in one.samples)
        return replace(one, samples=tuple(replace(s, turns=tuple(t)) for s, t in zip(one.samples, turns, strict=True)))

    def found(
        self, own: CaseRecord | None = None, kl: float = 0.0, **limits: float | None
    ) -> dict[str, dict[str, str]]:
        limits = {"kl" if name == "kl_limit" else name: value for name, value in limits.items()}
        now, then = self.silent("snapkv", 2.0, kl), self.silent("fp16", 2.0)
        verdicts = judge_pooled([Compared(now, then, own, own is None, why_not(then))], Budget(**limits), 0.05)
        return {scope: {one.question: one.outcome for one in some} for scope, some in verdicts.items()}

    def test_no_loss_of_accuracy_can_show_there(self) -> None:
        assert why_not(self.silent("fp16", 2.0)) == "no accuracy: nothing is asked"

    def test_that_is_known_without_a_record_of_fp16(self) -> None:
        own = self.silent("snapkv", 2.0)
        verdicts = judge(own, None, own, Budget(drop=None), against="self")
        assert [(one.question, one.outcome) for one in verdicts][:2] == [
            ("informative", NOT_INFORMATIVE), ("drift", "pass")
        ]  # fmt: skip

    def test_a_run_of_it_alone_without_a_limit_fails(self) -> None:
        assert self.found() == {RUN: {"informative": "fail"}}

    @pytest.mark.parametrize(("kl", "outcome"), [(0.001, "pass"), (0.5, "fail")])
    def test_a_limit_on_the_likelihood_is_judged_in_its_place(self, kl: float, outcome: str) -> None:
        assert self.found(kl=kl, kl_limit=0.05)[RUN] == {"kl": outcome}

    def test_its_own_record_is_held_to_by_drift(self) -> None:
        assert self.found(self.silent("snapkv", 2.0), drop=None)[RUN] == {"drift": "pass"}
        assert self.found(self.silent("snapkv", 1.0), drop=None)[RUN] == {"drift": "fail"}

    def test_reports_show_no_accuracy(self) -> None:
        one, then = self.silent("snapkv", 2.0, 0.0), self.silent("fp16", 2.0)
        shown = "\n".join(terminal.lines(run(one), {then.case.key: then}))
        assert re.search("  completion/prose +no answers", shown)
        assert "0.000" not in shown.partition("KV bytes")[0]
        assert rows.pool("all", run(one), [one], {then.case.key: then}).after is None
