"""Verdicts over many cases: what no case can show alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from building import fp16, record

from kvcheck.core.record import RUN, CaseRecord, Verdict
from kvcheck.judging.budget import CASES, Budget
from kvcheck.judging.pooled import QUESTIONS, SCOPES, Compared, contexts_needed, judge_pooled, most_telling

TASKS = ("kv", "needle", "summary", "qa")
PER_TASK = 10
"""Cases; each with 8 contexts, the length of each is its own."""


def case(like: CaseRecord, task: str, length: int) -> CaseRecord:
    capability = {"kv": "string_retrieval", "needle": "needle"}.get(task, "global_information")
    return replace(like, case=replace(like.case, task=task, length=length), capability=capability)


def run(lost: Sequence[int], tasks: Sequence[str] = TASKS, **own: object) -> list[Compared]:
    """The cases of a run; `lost` contexts of 8 are lost in them, in turn. own: nll of a record of its own, and now."""
    found = []
    places = [(task, 512 + at) for task in tasks for at in range(PER_TASK)]
    for at, (task, length) in enumerate(places):
        gone = lost[at % len(lost)]
        now = record([0.0] * gone + [1.0] * (8 - gone), task=task, nll=own.get("now"))
        then = record([1.0] * 8, task=task, nll=own.get("then"))
        full = None if own else case(fp16(8, task=task), task, length)
        found.append(Compared(case(now, task, length), full, case(then, task, length) if own else None))
    return found


def of(found: dict[str, tuple[Verdict, ...]], scope: str, question: str) -> Verdict:
    (verdict,) = (one for one in found[scope] if one.question == question)
    return verdict


def test_a_little_lost_everywhere_fails_the_run_by_its_numbers() -> None:
    verdict = of(judge_pooled(run([1]), Budget(drop=2.0), 0.05), RUN, "budget")
    assert (verdict.outcome, verdict.n, verdict.lost) == ("fail", 320, 40)
    assert verdict.value == pytest.approx(12.5)
    assert 2 < verdict.low < 12.5 < verdict.high


def test_identical_answers_pass_where_there_are_enough_of_them() -> None:
    found = judge_pooled(run([0]), Budget(drop=2.0), 0.05)
    assert {scope: one.outcome for scope, verdicts in found.items() for one in verdicts} == {
        name: "pass" if name == RUN else "inconclusive" for name in found
    }


def test_asked_for_failures_alone_it_gives_those_with_the_same_numbers() -> None:
    cases = [*run([4], tasks=TASKS[:1]), *run([0], tasks=TASKS[1:])]
    every = judge_pooled(cases, Budget(drop=2.0), 0.05)
    failed = {scope: tuple(one for one in found if one.outcome == "fail") for scope, found in every.items()}
    alone = judge_pooled(cases, Budget(drop=2.0), 0.05, failures=True)
    assert alone == {scope: found for scope, found in failed.items() if found}
    assert set(alone) < set(every)


def test_scopes_are_the_run_its_capabilities_and_its_tasks() -> None:
    assert list(judge_pooled(run([0]), Budget(drop=2.0), 0.05)) == [
        *(RUN, "capability string_retrieval", "capability needle", "capability global_information"),
        *("task summary", "task qa"),
    ], "what would be a second name for the same cases is left out"


def test_what_no_context_settles_is_inconclusive_and_says_how_many_would() -> None:
    verdict = of(judge_pooled(run([1, 0, 0, 0, 0]), Budget(drop=2.0), 0.05), RUN, "budget")
    assert verdict.outcome == "inconclusive"
    assert verdict.low < 2 < verdict.high
    assert "contexts would tell" in verdict.reason


def test_nothing_passes_whose_interval_holds_the_limit() -> None:
    for lost in ([1, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0], [0]):
        for one in judge_pooled(run(lost), Budget(drop=2.0), 0.05)[RUN]:
            assert one.outcome != "pass" or one.high <= one.limit or "identical" in one.reason


def test_one_capability_that_loses_fails_by_its_name() -> None:
    cases = [*run([2], ["needle"]), *run([0], ["kv", "summary", "qa"])]
    found = judge_pooled(cases, Budget(drop=10.0), 0.05)
    assert of(found, "capability needle", "budget").outcome == "fail"
    assert of(found, RUN, "budget").outcome != "fail"


def test_a_budget_that_is_not_asked_has_no_verdict() -> None:
    assert judge_pooled(run([4]), Budget(drop=None), 0.05) == {}


def test_scores_below_the_own_record_are_a_regression() -> None:
    found = judge_pooled(run([1, 0, 0, 0], now=0.1, then=0.1), Budget(drop=None), 0.05)
    assert of(found, RUN, "regression").outcome == "fail"
    assert of(found, RUN, "drift").outcome == "pass"


def test_reference_answers_that_become_less_likely_everywhere_are_drift() -> None:
    found = judge_pooled(run([0], now=0.2, then=0.1), Budget(drop=None), 0.05)
    assert of(found, RUN, "drift").outcome == "fail"
    assert of(found, RUN, "drift").value == pytest.approx(0.1)
    assert of(found, RUN, "regression").outcome == "pass"


def test_float_noise_is_no_drift() -> None:
    found = judge_pooled(run([0], now=0.101, then=0.1), Budget(drop=None), 0.05)
    assert of(found, RUN, "drift").outcome == "pass"


def test_what_other_hardware_flips_up_and_down_is_no_regression() -> None:
    rng, accused = np.random.default_rng(3), 0
    for _ in range(40):
        cases = []
        for one in run([0], now=0.1, then=0.1):
            now, then = (list((rng.random(8) > 0.03).astype(float)) for _ in range(2))
            assert one.own is not None
            cases.append(
                Compared(
                    replace(record(now, nll=0.1), case=one.record.case, capability=one.record.capability),
                    None,
                    replace(record(then, nll=0.1), case=one.record.case, capability=one.record.capability),
                )
            )
        verdicts = [one for found in judge_pooled(cases, Budget(drop=None), 0.05).values() for one in found]
        accused += any(one.outcome == "fail" for one in verdicts)
    assert accused <= 1


def test_contexts_that_would_tell_grow_as_the_drop_nears_the_limit() -> None:
    far, near = (contexts_needed(100, mean, (mean - 0.05, mean + 0.05), 0.02) for mean in (0.06, 0.03))
    assert far is not None
    assert near is not None
    assert 100 <= far < near
    assert contexts_needed(100, 0.02, (0.0, 0.05), 0.02) is None


@pytest.mark.parametrize(("limits", "outcome"), [({"nll": 0.05}, "fail"), ({"nll": 0.5}, "pass")])
def test_a_limit_of_drift_is_asked_of_all_contexts_together(limits: dict[str, float], outcome: str) -> None:
    cases = []
    for one in run([0]):
        assert one.fp16 is not None
        now, then = (record([1.0] * 8, task=one.record.case.task, nll=nll) for nll in (0.2, 0.1))
        now, then = (replace(each, case=one.record.case, capability=one.record.capability) for each in (now, then))
        cases.append(Compared(now, then, None))
    assert of(judge_pooled(cases, Budget(drop=None, **limits), 0.05), RUN, "nll").outcome == outcome


def test_a_limit_of_what_was_measured_nowhere_has_no_verdict() -> None:
    assert judge_pooled(run([0]), Budget(drop=None, kl=0.1), 0.05) == {}


def seeded(one: Compared, seed: int, lost: int) -> Compared:
    """The case under another seed, where so many of its 8 contexts are lost."""
    now, then = (
        replace(like, case=replace(one.record.case, seed=seed)) for like in (one.record, one.fp16 or one.record)
    )
    scores = [0.0] * lost + [1.0] * (8 - lost)
    samples = tuple(
        replace(sample, turns=tuple(replace(turn, score=score) for turn in sample.turns))
        for sample, score in zip(then.samples, scores, strict=True)
    )
    return Compared(replace(now, samples=samples), then, None)


def test_contexts_of_further_seeds_weigh_together_what_those_of_the_first_one_do() -> None:
    cases = run([0])
    further = [seeded(cases[0], seed, 8) for seed in (1, 2, 3)]
    verdict = of(judge_pooled([*cases, *further], Budget(drop=2.0), 0.05), RUN, "budget")
    assert verdict.n == 320 + 24
    assert verdict.value == pytest.approx(100 * 0.75 / 40), "three of four contexts of one case in forty"


def test_more_contexts_are_taken_of_what_is_uncertain_and_cheap() -> None:
    cases = [*run([4, 0], ["kv"]), *run([0], ["needle", "summary", "qa"])]
    chosen = most_telling(cases, "budget", Budget(drop=2.0))
    assert {case.task for case in chosen} >= {"kv"}
    assert len([case for case in chosen if case.task == "kv"]) > len(chosen) / 2
    assert len(chosen) < len(cases)


def test_every_look_at_a_growing_run_costs_its_part_of_alpha() -> None:
    once, often = (of(judge_pooled(run([1]), Budget(drop=2.0), 0.05, looks=n), RUN, "budget") for n in (1, 4))
    assert often.low < once.low < once.value < once.high < often.high


def test_nothing_is_said_of_drift_where_no_context_has_it() -> None:
    found = judge_pooled(run([0], then=None, now=None), Budget(drop=None), 0.05)
    assert {one.question for verdicts in found.values() for one in verdicts} == {"regression"}


def test_a_run_of_few_contexts_is_estimated_and_does_not_pass_without_its_interval() -> None:
    (one,) = run([1], ["kv"])[:1]
    few = replace(one, record=replace(one.record, samples=one.record.samples[:2]))
    verdict = of(judge_pooled([few], Budget(drop=2.0), 0.05), RUN, "budget")
    assert verdict.outcome == "inconclusive"
    assert verdict.n == 2


def broken(modes: Sequence[str], contexts: int) -> list[Compared]:
    """Cases of 8 contexts in each of these modes; the first ones got worse by 1 nat in every mode."""
    found = []
    for length in range(512, 524):
        for mode in modes:
            worse = contexts if length == 512 else 0
            now, then = record([1.0] * 8, nll=[1.1] * worse + [0.1] * (8 - worse)), record([1.0] * 8, nll=0.1)
            case = replace(now.case, length=length, mode=mode)
            found.append(Compared(replace(now, case=case), None, replace(then, case=case)))
    return found


def test_a_context_that_breaks_in_every_mode_is_one_broken_context() -> None:
    modes = ("single", "multi_turn", "multi_request")
    one, many = (of(judge_pooled(broken(modes, n), Budget(drop=None), 0.05), RUN, "drift") for n in (1, 6))
    assert one.outcome != "fail"
    assert "1 broken" in one.reason
    assert many.outcome == "fail"


def test_the_cases_and_what_is_put_together_share_alpha() -> None:
    assert sum(SCOPES.values()) == pytest.approx(1.0)
    assert sum(QUESTIONS.values()) + CASES == pytest.approx(1.0)
