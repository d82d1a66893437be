"""Two runs side by side: the second is judged as the gate would, with the first in the place of its records."""

from __future__ import annotations

from dataclasses import replace

from building import fp16, record, run

from kvcheck.core.record import COSTS, FAILS, HOLDS, CaseId, CaseRecord, LatencyRecord, PropertyRecord, Run, Verdict
from kvcheck.judging.asked import compared
from kvcheck.judging.budget import Budget, case_alpha, judge
from kvcheck.judging.compare import Comparison, compare_runs
from kvcheck.judging.pooled import judge_pooled
from kvcheck.report import comparison, verdict


def of(found: Comparison, question: str, scope: str = "run") -> Verdict:
    """The verdict of a scope on a question."""
    (one,) = (
        one
        for name, verdicts in found.run.verdicts.items()
        for one in verdicts
        if name.startswith(scope) and one.question == question
    )
    return one


def standing(found: Comparison, method: str = "snapkv") -> str:
    return verdict.standing(found.run, method).outcome


def told(before: Run, after: Run, **limits: float) -> str:
    """What is printed, as one line."""
    return " ".join(" ".join(comparison.lines(before, after, compare_runs(before, after, limits))).split())


def test_a_run_equals_itself() -> None:
    one = run(record([1.0] * 8, nll=0.5))
    found = compare_runs(one, one)
    assert (found.fails(), standing(found)) == (False, "pass")


def test_the_verdicts_are_those_of_the_gate_with_the_first_run_as_the_own_record() -> None:
    before = [record([1.0] * 12, task=task, nll=0.5) for task in "abc"]
    after = [record([0.0] * 5 + [1.0] * 7, task=task, nll=0.9) for task in "abc"]
    found = compare_runs(run(*before), run(*after)).run.verdicts
    for then, now in zip(before, after, strict=True):
        assert found[f"{now.case}|snapkv"] == judge(now, None, then, Budget(drop=None), case_alpha(0.05, 3))
    cases = [compared(now, None, then, Budget(drop=None), "both") for then, now in zip(before, after, strict=True)]
    for scope, verdicts in judge_pooled(cases, Budget(), 0.05).items():
        assert found[f"{scope}|snapkv"] == verdicts


def test_a_worse_run_fails_with_its_numbers() -> None:
    found = compare_runs(run(record([1.0] * 12)), run(record([0.0] * 10 + [1.0] * 2)))
    one = of(found, "regression")
    assert (one.outcome, one.lost, round(one.value)) == ("fail", 10, 83)
    assert found.fails()


def test_a_better_run_passes() -> None:
    assert standing(compare_runs(run(record([0.0] * 12)), run(record([1.0] * 12)))) == "pass"


def test_one_flip_is_inconclusive_and_fails_only_under_strict() -> None:
    found = compare_runs(run(record([1.0] * 12)), run(record([0.0] + [1.0] * 11)))
    assert standing(found) == "inconclusive"
    assert (found.fails(), found.fails(strict=True)) == (False, True)


def test_what_every_case_loses_a_little_of_fails_the_run() -> None:
    tasks = [f"t{at}" for at in range(20)]
    found = compare_runs(
        run(*(record([1.0] * 8, task=task) for task in tasks)),
        run(*(record([0.0] + [1.0] * 7, task=task) for task in tasks)),
    )
    assert {one.outcome for name, verdicts in found.run.verdicts.items() for one in verdicts if "/" in name} == {
        "inconclusive",
        "pass",
    }
    assert of(found, "regression").outcome == "fail"


def test_a_case_that_only_one_run_has_is_missing_and_fails() -> None:
    one, both = run(record([1.0], task="a")), run(record([1.0], task="a"), record([1.0], task="b"))
    for before, after, which in ((both, one, "first"), (one, both, "second")):
        found = compare_runs(before, after)
        assert found.run.failures == {"b/v1/single/len=1024/seed=0/n=1|snapkv": f"missing: only the {which} run has it"}
        assert found.fails()
        assert standing(found) == "fail"


def test_a_method_that_only_one_run_has_is_missing() -> None:
    before = run(record([1.0] * 8), record([1.0] * 8, "kivi"))
    found = compare_runs(before, run(record([1.0] * 8)))
    assert list(found.run.failures.values()) == ["missing: only the first run has kivi"]
    assert found.fails()


def test_other_prompts_are_not_comparable() -> None:
    mine = record([1.0, 1.0])
    other = replace(mine, samples=tuple(replace(one, digest="0" * 12) for one in mine.samples))
    found = compare_runs(run(other), run(mine))
    (why,) = found.run.failures.values()
    assert why.startswith("not comparable:")
    assert "other prompts" in why
    assert found.fails()


def test_a_run_that_stopped_early_is_compared_on_what_both_have() -> None:
    before, after = run(record([1.0] * 4, n=8)), run(record([1.0] * 8))
    (case,) = compare_runs(before, after).run.cases
    assert len(case.samples) == 4
    assert not compare_runs(before, after).fails()


def test_bytes_of_the_same_method_fail_though_the_scores_are_the_same() -> None:
    before = record([1.0] * 8)
    assert before.memory is not None
    for kv_bytes in (before.memory.kv_bytes + 1, before.memory.kv_bytes // 2):
        found = compare_runs(run(before), run(replace(before, memory=replace(before.memory, kv_bytes=kv_bytes))))
        one = of(found, "bytes", "kv/")
        assert one.outcome == "fail"
        assert f"{kv_bytes} bytes" in one.reason
        assert f"{before.memory.kv_bytes}, {before.memory.kept:g} recorded" in one.reason


def test_bytes_of_other_contexts_are_compared_as_a_ratio() -> None:
    half = record([1.0] * 4, held=replace(record([1.0]).memory, kv_bytes=501))  # type: ignore[type-var]
    assert not compare_runs(run(half), run(record([1.0] * 8))).fails()


def test_drift_of_the_same_method_fails_though_the_scores_are_the_same() -> None:
    found = compare_runs(run(record([1.0] * 12, nll=0.5)), run(record([1.0] * 12, nll=1.5)))
    assert (of(found, "drift").outcome, of(found, "regression").outcome) == ("fail", "pass")


def test_bytes_that_are_no_longer_measured_are_not_comparable() -> None:
    found = compare_runs(run(record([1.0] * 8)), run(replace(record([1.0] * 8), memory=None)))
    assert "KV bytes were not measured" in next(iter(found.run.failures.values()))


def test_two_methods_are_asked_for_a_budget_against_each_other_and_not_for_the_same_bytes() -> None:
    found = compare_runs(run(record([1.0] * 64)), run(record([0.0] * 16 + [1.0] * 48, "kivi")))
    assert found.pairs == (("kivi", "snapkv"),)
    assert of(found, "budget").outcome == "fail"
    assert {one.question for verdicts in found.run.verdicts.values() for one in verdicts} == {"budget"}


def test_a_budget_is_asked_of_the_same_method_where_it_is_set() -> None:
    before, after = run(record([1.0] * 64)), run(record([0.0] * 16 + [1.0] * 48))
    assert of(compare_runs(before, after, {"drop": 5.0}), "budget").limit == 5
    assert of(compare_runs(before, before, {"bytes": 0.4}), "bytes", "kv/").outcome == "fail"


def timed(ratio: float) -> CaseRecord:
    """A measurement of latency."""
    latency = (LatencyRecord("tpot", 512, 0.1 * ratio, 0.1, ratio, ratio - 0.01, ratio + 0.01, 9),)
    case = CaseId("latency", 1, "single", 512, 0, 1)
    return CaseRecord(case, "snapkv", "f00d", COSTS, True, False, 0.0, (), None, latency)


def test_latency_is_held_to_a_limit_where_there_is_one() -> None:
    before, after = run(record([1.0] * 8)), run(record([1.0] * 8), timed(1.5))
    assert not compare_runs(before, after).fails()
    assert of(compare_runs(before, after, {"tpot": 1.2}), "tpot", "latency").outcome == "fail"
    assert not compare_runs(before, after, {"tpot": 1.6}).fails()


def test_latency_with_a_limit_that_was_not_measured_fails() -> None:
    one = run(record([1.0] * 8))
    assert compare_runs(one, one, {"tpot": 1.2}).run.failures == {
        "tpot|snapkv": "not comparable: the second run did not measure it"
    }


def test_contexts_of_further_seeds_are_compared_where_both_have_them() -> None:
    def seeded(seed: int, method: str = "snapkv") -> CaseRecord:
        one = record([1.0] * 8, method)
        return replace(one, case=replace(one.case, seed=seed))

    found = compare_runs(run(seeded(0), seeded(1)), run(seeded(0), seeded(1), seeded(2), seeded(2, "fp16")))
    assert not found.fails()
    assert [one.case.seed for one in found.run.cases] == [0, 1]


def test_a_method_that_was_little_better_than_a_guess_is_held_to_its_scores_all_the_same() -> None:
    before, after = record([1.0] * 2 + [0.0] * 14), record([0.0] * 16)
    assert of(compare_runs(run(before), run(after)), "regression").lost == 2


def test_against_another_method_that_only_guesses_nothing_is_informative_and_that_fails() -> None:
    found = compare_runs(run(record([0.0] * 16)), run(record([0.0] * 16, "kivi")))
    assert found.fails()
    assert standing(found, "kivi") == "fail"
    text = told(run(record([0.0] * 16)), run(record([0.0] * 16, "kivi")))
    assert "not informative: kv single 1024: snapkv is not surely above chance" in text


def test_cases_of_a_capability_are_judged_together() -> None:
    before = run(*(record([1.0] * 6, task=task) for task in "abc"))
    after = run(*(record([0.0] * 4 + [1.0] * 2, task=task) for task in "abc"))
    one = of(compare_runs(before, after), "regression")
    assert (one.n, one.outcome) == (18, "fail")


def test_empty_runs_fail_since_nothing_was_compared() -> None:
    found = compare_runs(run(), run())
    assert found.fails()
    assert "nothing was compared" in told(run(), run())


def test_it_says_which_question_was_asked() -> None:
    one, other = run(record([1.0] * 64)), run(record([0.0] * 16 + [1.0] * 48, "kivi"))
    assert "question: is snapkv worse than before? The first run is taken for its own record." in told(one, one)
    text = told(one, other)
    assert "question: does kivi lose more than its budget against snapkv?" in text
    assert "fail: kivi on mini: accuracy drop against snapkv 25.0 points" in text
    assert "allowed 2 (default budget)" in text


def test_what_was_not_compared_is_listed_with_the_reason() -> None:
    text = told(run(record([1.0] * 8), record([1.0] * 8, task="gone")), run(record([1.0] * 8)))
    assert "1 case missing or not comparable" in text
    assert "gone/v1/single/len=1024/seed=0/n=8 snapkv: missing: only the first run has it" in text


def test_it_fits_a_hundred_columns() -> None:
    before = run(*(fp16(8, task=task * 30) for task in "ab"))
    after = run(*(record([0.0] * 8, "mine.Method:budget=0.25,window=32,beta=20", task=task * 30) for task in "ab"))
    found = compare_runs(before, after)
    assert max(map(len, comparison.lines(before, after, found))) <= 100


def test_runs_of_properties_alone_are_compared_by_them() -> None:
    good = replace(run(), properties=(PropertyRecord("a_row", "snapkv", HOLDS, 3),))
    bad = replace(run(), properties=(PropertyRecord("a_row", "snapkv", FAILS, 1, "row 1 differs"),))
    assert not compare_runs(good, good).fails()
    assert "properties that held in the first run: 1 hold in the second" in told(good, good)
    assert compare_runs(good, bad).fails()
    assert compare_runs(bad, good).fails()  # nothing held that could be compared
