"""Budgets and the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from building import fp16, memory, record

from kvcheck.core.errors import MethodFailed, MissingBaseline, NotComparable, SpecError
from kvcheck.core.record import CaseRecord, LatencyRecord, MemoryRecord, SampleRecord, Verdict, Weight
from kvcheck.judging.budget import CASES, Budget, case_alpha, judge, sequential
from kvcheck.store.text import ModelId, decode, encode


def verdict(question: str, verdicts: tuple[Verdict, ...]) -> Verdict:
    """The one verdict on that question."""
    (found,) = (one for one in verdicts if one.question == question)
    return found


def lossy(lost: int, n: int = 16, **more) -> CaseRecord:
    return record([0.0] * lost + [1.0] * (n - lost), **more)


class TestBudget:
    def test_the_text_form_reads_back(self) -> None:
        text = "drop=2,bytes=0.3,ttft=1.2,tpot=1.2"
        assert str(Budget.parse(text)) == text

    def test_two_points_are_the_default(self) -> None:
        assert Budget.parse("bytes=0.3") == Budget(drop=2.0, bytes=0.3)

    def test_none_lifts_a_limit(self) -> None:
        assert Budget.parse("drop=none").drop is None

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("dorp=2", "did you mean drop"),
            ("drop=-1", "from 0 to 100"),
            ("drop=120", "from 0 to 100"),
            ("bytes=0", "above 0"),
            ("agree=1.5", "from 0 to 1"),
            ("ttft=fast", "not a number"),
            ("drop=true", "not a number"),
            ("drop=1,drop=2", "given twice"),
            ("drop", "has no value"),
            ("", "empty parameter"),
        ],
    )
    def test_a_wrong_budget_is_refused_with_the_right_one(self, text: str, words: str) -> None:
        with pytest.raises(SpecError, match=words):
            Budget.parse(text)

    def test_the_part_of_alpha_that_cases_have_is_shared_among_them(self) -> None:
        assert case_alpha(0.05, 50) == pytest.approx(0.05 * CASES / 50)

    def test_an_alpha_out_of_range_is_refused(self) -> None:
        with pytest.raises(SpecError, match="out of range"):
            case_alpha(0.0, 3)


class TestTheBudgetQuestion:
    def test_a_broken_cache_fails(self) -> None:
        assert verdict("budget", judge(lossy(12), fp16(), None, Budget())).outcome == "fail"

    def test_identical_answers_pass(self) -> None:
        found = verdict("budget", judge(record([1.0] * 16), fp16(), None, Budget()))
        assert (found.outcome, found.value) == ("pass", 0.0)

    def test_the_pass_of_identical_answers_says_so(self) -> None:
        found = verdict("budget", judge(record([1.0] * 16), fp16(), None, Budget(), against="fp16"))
        assert found.reason == "identical answers"

    def test_the_same_scores_with_another_answer_do_not_prove_a_pass(self) -> None:
        mine = record([1.0] * 16)
        turn = replace(mine.samples[0].turns[0], answer="something else")
        mine = replace(mine, samples=(replace(mine.samples[0], turns=(turn,)), *mine.samples[1:]))
        assert verdict("budget", judge(mine, fp16(), None, Budget())).outcome == "inconclusive"

    def test_a_small_loss_is_inconclusive_and_says_what_could_be_seen(self) -> None:
        found = verdict("budget", judge(lossy(1), fp16(), None, Budget()))
        assert found.outcome == "inconclusive"
        assert found.detectable == pytest.approx(18.75)

    def test_enough_contexts_inside_the_budget_pass(self) -> None:
        mine = lossy(1, 120)
        assert verdict("budget", judge(mine, fp16(120), None, Budget(drop=7))).outcome == "pass"

    def test_losses_and_wins_are_counted(self) -> None:
        base = record([1.0] * 10 + [0.0] * 6, "fp16")
        mine = record([0.0] * 3 + [1.0] * 9 + [0.0] * 4)
        found = verdict("budget", judge(mine, base, None, Budget()))
        assert (found.lost, found.won) == (3, 2)

    def test_turns_of_one_context_count_as_one(self) -> None:
        mine, base = record([[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 5), record([[1.0, 1.0]] * 8, "fp16")
        assert verdict("budget", judge(mine, base, None, Budget())).lost == 3

    def test_an_even_graded_drop_fails(self) -> None:
        mine, base = record([0.6] * 16), record([0.9] * 16, "fp16")
        assert verdict("budget", judge(mine, base, None, Budget())).outcome == "fail"

    def test_rounding_in_the_baseline_is_no_change(self) -> None:
        mine, base = record([5 / 6] * 8), record([0.8333] * 8, "fp16")
        assert verdict("budget", judge(mine, base, None, Budget())).lost == 0

    def test_fp16_against_itself_passes_with_a_drop_of_0(self) -> None:
        found = judge(fp16(), fp16(), fp16(), Budget())
        assert [one.outcome for one in found] == ["pass"] * 3

    def test_no_limit_asks_no_question(self) -> None:
        found = judge(lossy(9), None, None, Budget(drop=None))
        assert not found

    def test_false_alarms_stay_below_alpha_with_losses_at_the_limit(self) -> None:
        rng = np.random.default_rng(0)
        base = fp16(20)
        alarms = 0
        for _ in range(200):
            mine = record(list(1.0 - (rng.random(20) < 0.02)))
            alarms += verdict("budget", judge(mine, base, None, Budget(), 0.1)).outcome == "fail"
        assert alarms / 200 <= 0.05 + 0.02


class TestAmongSixtyCases:
    """What one case can still show when alpha is shared among sixty."""

    ALPHA = case_alpha(0.05, 60)

    def test_six_of_16_lost_fail(self) -> None:
        assert verdict("budget", judge(lossy(6), fp16(), None, Budget(), self.ALPHA)).outcome == "fail"

    def test_two_of_16_lost_are_inconclusive(self) -> None:
        assert verdict("budget", judge(lossy(2), fp16(), None, Budget(), self.ALPHA)).outcome == "inconclusive"

    def test_six_of_16_lost_against_the_own_record_fail(self) -> None:
        found = judge(lossy(6), fp16(), lossy(0), Budget(), self.ALPHA, "self")
        assert verdict("regression", found).outcome == "fail"

    def test_four_contexts_of_nothing_stop_the_case(self) -> None:
        assert sequential(record([0.0] * 4, n=64), fp16(64), None, Budget(), self.ALPHA)


class TestTheRegressionQuestion:
    def test_as_recorded_passes(self) -> None:
        assert verdict("regression", judge(lossy(4), fp16(), lossy(4), Budget())).reason == "as recorded"

    def test_many_more_losses_fail(self) -> None:
        assert verdict("regression", judge(lossy(12), fp16(), lossy(2), Budget())).outcome == "fail"

    def test_one_more_loss_is_inconclusive(self) -> None:
        assert verdict("regression", judge(lossy(5), fp16(), lossy(4), Budget())).outcome == "inconclusive"

    def test_fewer_losses_pass_and_ask_for_a_new_record(self) -> None:
        found = verdict("regression", judge(lossy(2), fp16(), lossy(4), Budget()))
        assert found.outcome == "pass"
        assert "record it again" in found.reason

    def test_graded_scores_that_all_fall_fail(self) -> None:
        found = judge(record([0.7] * 16), None, record([0.8] * 16), Budget(), against="self")
        assert verdict("regression", found).outcome == "fail"

    def test_against_self_needs_no_fp16(self) -> None:
        found = judge(lossy(4), None, lossy(4), Budget(), against="self")
        assert [one.question for one in found] == ["regression", "bytes"]

    def test_without_an_own_record_fp16_is_the_judge_and_the_verdict_says_so(self) -> None:
        found = verdict("budget", judge(lossy(12), fp16(), None, Budget(), against="self"))
        assert (found.limit, found.outcome) == (2.0, "fail")
        assert "no record of its own" in found.reason


class TestDrift:
    @staticmethod
    def outcome(now: list[float], then: list[float], alpha: float = 0.05 / 60) -> Verdict:
        n = len(now)
        mine, own = record([1.0] * n, nll=now), record([1.0] * n, nll=then)
        return verdict("regression", judge(mine, None, own, Budget(), alpha, "self"))

    def test_float_noise_is_no_change(self) -> None:
        rng = np.random.default_rng(0)
        then = list(rng.exponential(1.0, 16))
        now = [value * (1 + 0.01 * rng.standard_normal()) for value in then]
        assert self.outcome(now, then).reason == "as recorded"

    def test_all_contexts_a_little_worse_are_for_the_run_to_judge(self) -> None:
        assert self.outcome([0.2] * 16, [0.1] * 16).outcome == "inconclusive"

    def test_two_broken_contexts_of_16_fail(self) -> None:
        assert self.outcome([3.0, 3.0] + [0.1] * 14, [0.1] * 16).outcome == "fail"

    def test_one_broken_context_is_no_proof(self) -> None:
        assert self.outcome([3.0] + [0.1] * 15, [0.1] * 16).outcome == "inconclusive"

    def test_as_many_better_as_worse_is_no_regression(self) -> None:
        assert self.outcome([0.2, 0.0] * 8, [0.1] * 16).outcome == "pass"

    def test_a_change_for_the_better_passes_with_a_notice(self) -> None:
        found = self.outcome([0.1] * 16, [3.0] * 16)
        assert found.outcome == "pass"
        assert "changed and not worse" in found.reason

    def test_a_tiny_mean_never_fails(self) -> None:
        assert self.outcome([0.1] * 15 + [0.13], [0.1] * 16).outcome != "fail"

    def test_a_limit_on_nll_is_for_the_run_to_judge(self) -> None:
        found = judge(record([1.0] * 16, nll=0.9), fp16(nll=0.1), None, Budget(nll=0.1))
        assert "nll" not in {one.question for one in found}

    def test_a_gate_on_what_was_not_measured_is_an_error(self) -> None:
        with pytest.raises(MethodFailed, match="nll was not measured"):
            judge(record([1.0] * 16), fp16(), None, Budget(nll=0.1))


def weighed(held: list[int], ends: list[tuple[int, int]] | None = None) -> CaseRecord:
    """A method without a formula of its bytes, that held this in its contexts; ends: (bytes, tokens) after decoding."""
    mine = record([1.0] * len(held))
    weights = [Weight(kv, 50.0, seen=100) for kv in held]
    mean = replace(memory(round(sum(held) / len(held))), declared=False)
    if ends is not None:
        both = zip(weights, ends, strict=True)
        weights = [replace(one, end_kv=kv, end_seen=seen, end_dense=10 * seen, ends=1) for one, (kv, seen) in both]
        kv, seen = (round(sum(sizes) / len(sizes)) for sizes in zip(*ends, strict=True))
        mean = replace(mean, end_kv_bytes=kv, end_dense_bytes=10 * seen, end_host_bytes=0, end_seen=seen)
    samples = (replace(one, weight=weight) for one, weight in zip(mine.samples, weights, strict=True))
    return replace(mine, samples=tuple(samples), memory=mean)


def answering(text: str, mine: CaseRecord) -> CaseRecord:
    """The record with this answer everywhere."""
    samples = (replace(one, turns=tuple(replace(turn, answer=text) for turn in one.turns)) for one in mine.samples)
    return replace(mine, samples=tuple(samples))


def later(kv_bytes: int, end: int, seen: int = 100, claims: str = "") -> MemoryRecord:
    """What is held after the prompt, and after decoding."""
    ends = {"end_kv_bytes": end, "end_dense_bytes": 1000, "end_host_bytes": 0, "end_seen": seen}
    return replace(memory(kv_bytes), **ends, claims=claims)


class TestBytes:
    def test_beyond_the_budget_fails(self) -> None:
        assert verdict("bytes", judge(lossy(0), fp16(), None, Budget(bytes=0.4))).outcome == "fail"

    def test_at_the_budget_passes(self) -> None:
        assert verdict("bytes", judge(lossy(0), fp16(), None, Budget(bytes=0.5))).outcome == "pass"

    def test_one_byte_more_than_recorded_fails(self) -> None:
        found = judge(lossy(0, held=memory(501)), fp16(), lossy(0), Budget())
        assert verdict("bytes", found).outcome == "fail"

    def test_more_slots_than_recorded_fail(self) -> None:
        found = judge(lossy(0, held=memory(500, 51.0)), fp16(), lossy(0), Budget())
        assert verdict("bytes", found).outcome == "fail"

    def test_one_byte_less_on_the_same_contexts_fails_because_a_slot_is_missing(self) -> None:
        found = verdict("bytes", judge(lossy(0, held=memory(499)), fp16(), lossy(0), Budget()))
        assert found.outcome == "fail"
        assert "slots are missing" in found.reason

    def test_what_depends_on_the_text_is_compared_on_the_same_contexts(self) -> None:
        own = weighed([600, 400, 700, 300])
        assert verdict("bytes", judge(weighed([600, 400]), fp16(), own, Budget())).outcome == "pass"
        for held, words in (([601, 400], "more"), ([600, 399], "slots are missing")):
            found = verdict("bytes", judge(weighed(held), fp16(), own, Budget()))
            assert found.outcome == "fail"
            assert words in found.reason
            assert "500, 50 recorded" in found.reason

    def test_more_in_one_context_and_less_in_another_is_a_change(self) -> None:
        assert verdict("bytes", judge(weighed([601, 399]), fp16(), weighed([600, 400]), Budget())).outcome == "fail"

    def test_a_record_without_bytes_per_context_is_compared_by_its_mean_as_ever(self) -> None:
        own = replace(lossy(0), samples=weighed([500] * 16).samples[:4])
        own = replace(own, samples=tuple(replace(sample, weight=None) for sample in own.samples))
        near, far = weighed([501, 501]), weighed([600, 600])
        assert verdict("bytes", judge(near, fp16(), own, Budget())).outcome == "pass"
        assert verdict("bytes", judge(far, fp16(), own, Budget())).outcome == "fail"

    def test_more_than_fp16_fails_at_either_moment_and_without_a_budget(self) -> None:
        for held, words in ((later(2400, 1620), "240% of what fp16"), (later(470, 1200), "after decoding, 120% of")):
            found = verdict("bytes", judge(lossy(0, held=held), fp16(), None, Budget()))
            assert found.outcome == "fail"
            assert words in found.reason

    def test_more_than_fp16_fails_beside_a_record_that_says_the_same(self) -> None:
        mine = lossy(0, held=later(2400, 1620))
        assert verdict("bytes", judge(mine, fp16(), mine, Budget())).outcome == "fail"

    def test_host_memory_counts_as_held(self) -> None:
        moved = replace(later(100, 100), host_bytes=1000)
        found = verdict("bytes", judge(lossy(0, held=moved), fp16(), None, Budget()))
        assert "1,000 of them in host memory" in found.reason

    @pytest.mark.parametrize(
        "held",
        [
            pytest.param(lambda: later(1000, 1000), id="as much"),
            pytest.param(lambda: later(1008, 1004), id="lengths beside"),
            pytest.param(lambda: later(2400, 1620, claims="exceeds"), id="declared"),
            pytest.param(lambda: memory(2400), id="a record of before"),
            pytest.param(lambda: replace(later(0, 0), host_bytes=1000, end_host_bytes=1000), id="moved to the host"),
        ],
    )
    def test_what_is_no_more_or_declared_or_not_known_is_not_asked(self, held: Callable[[], MemoryRecord]) -> None:
        assert [one.question for one in judge(lossy(0, held=held()), fp16(), None, Budget())] == ["budget"]

    def test_a_budget_of_bytes_takes_the_larger_of_the_two_moments(self) -> None:
        for held in (later(400, 600), later(600, 400)):
            found = verdict("bytes", judge(lossy(0, held=held), fp16(), None, Budget(bytes=0.5)))
            assert (found.outcome, found.value) == ("fail", 0.6)
        allowed = judge(lossy(0, held=later(2400, 1620)), fp16(), None, Budget(bytes=2.5))
        assert verdict("bytes", allowed).outcome == "pass"

    def test_bytes_after_decoding_are_held_against_the_record(self) -> None:
        own = lossy(0, held=later(500, 600))
        for size, words in ((601, "(more)"), (599, "less, though the answers are the same")):
            found = verdict("bytes", judge(lossy(0, held=later(500, size)), fp16(), own, Budget()))
            assert found.outcome == "fail"
            assert words in found.reason
        assert verdict("bytes", judge(lossy(0, held=later(500, 601)), fp16(), lossy(0), Budget())).outcome == "pass"

    def test_longer_answers_may_hold_more_than_recorded_by_their_tokens(self) -> None:
        own = lossy(0, held=later(500, 600, seen=100))
        for size, outcome in ((650, "pass"), (661, "fail")):
            longer = replace(later(500, size, seen=105), end_dense_bytes=1050)
            found = judge(lossy(1, held=longer), fp16(), own, Budget())
            assert verdict("bytes", found).outcome == outcome

    def test_contexts_are_compared_one_by_one_after_decoding_too(self) -> None:
        own = weighed([600, 400, 700], ends=[(650, 110), (450, 110), (700, 110)])
        for ends, outcome in (([(650, 110), (450, 110)], "pass"), ([(651, 110), (449, 110)], "fail")):
            mine = weighed([600, 400], ends=ends)
            assert verdict("bytes", judge(mine, fp16(), own, Budget())).outcome == outcome

    def test_another_answer_may_stand_where_more_is_held_before_it_is_evicted_from(self) -> None:
        own = answering("north", weighed([600, 400], ends=[(700, 116), (450, 105)]))
        for held, outcome in ((500, "pass"), (511, "fail")):  # 10 bytes a token at fp16's size, 10 tokens decoded
            mine = answering("south", weighed([600, 400], ends=[(700, 116), (held, 110)]))
            assert verdict("bytes", judge(mine, fp16(), own, Budget())).outcome == outcome
        fewer = answering("south", weighed([600, 400], ends=[(700, 116), (440, 104)]))
        assert verdict("bytes", judge(fewer, fp16(), own, Budget())).outcome == "pass"
        shorter = answering("south", weighed([600, 400], ends=[(740, 114), (450, 105)]))
        assert verdict("bytes", judge(shorter, fp16(), own, Budget())).outcome == "pass"

    def test_what_a_method_with_a_formula_held_after_decoding_is_read_back_and_compared_on_the_same_contexts(
        self,
    ) -> None:
        own = weighed([500] * 4, ends=[(520, 102), (560, 106), (500, 110), (540, 114)])
        own = replace(own, memory=replace(own.memory, declared=True))
        own = decode(encode(own, None), own.method, ModelId("mini", own.model), None, "a file")
        for ends, outcome in (([(520, 102), (560, 106)], "pass"), ([(520, 102), (580, 106)], "fail")):
            found = verdict("bytes", judge(weighed([500, 500], ends=ends), fp16(), own, Budget()))
            assert found.outcome == outcome
        assert "after decoding 550 bytes now; 540 recorded (more)" in found.reason

    def test_an_unmeasured_cache_cannot_pass(self) -> None:
        mine = replace(lossy(0), memory=None, not_measured=(("memory", "served model"),))
        with pytest.raises(MethodFailed, match="served model"):
            judge(mine, fp16(), None, Budget(bytes=0.5))


class TestLatency:
    @pytest.mark.parametrize(
        ("low", "high", "outcome"), [(1.3, 1.5, "fail"), (1.0, 1.1, "pass"), (1.1, 1.3, "inconclusive")]
    )
    def test_the_whole_interval_decides(self, low: float, high: float, outcome: str) -> None:
        latency = LatencyRecord("ttft", 1024, 0.1, 0.1, (low + high) / 2, low, high, 9)
        found = judge(replace(lossy(0), latency=(latency,)), fp16(), None, Budget(ttft=1.2))
        assert verdict("ttft", found).outcome == outcome


class TestFailClosed:
    def test_without_fp16_nothing_is_judged(self) -> None:
        with pytest.raises(MissingBaseline, match=r"--kv-method=fp16 --kv-record=new"):
            judge(lossy(0), None, None, Budget())

    def test_no_samples_is_a_failure(self) -> None:
        with pytest.raises(MethodFailed, match="no samples"):
            judge(replace(lossy(0), samples=()), fp16(), None, Budget())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_score_that_is_no_number_is_a_failure(self, bad: float) -> None:
        with pytest.raises(MethodFailed, match="not finite"):
            judge(record([bad] + [1.0] * 15), fp16(), None, Budget())

    def test_an_nll_that_is_no_number_is_a_failure(self) -> None:
        with pytest.raises(MethodFailed, match="not finite"):
            judge(record([1.0] * 16, nll=float("nan")), fp16(), None, Budget())

    def test_a_score_above_1_is_a_failure(self) -> None:
        with pytest.raises(MethodFailed, match=r"score 1\.5"):
            judge(record([1.5] + [1.0] * 15), fp16(), None, Budget())

    def test_other_prompts_are_not_comparable(self) -> None:
        base = fp16()
        base = replace(base, samples=(SampleRecord(0, "0" * 12, base.samples[0].turns), *base.samples[1:]))
        with pytest.raises(NotComparable, match=r"stale: sample 0[\s\S]*--kv-method=fp16 --kv-record=changed"):
            judge(lossy(0), base, None, Budget())

    def test_another_model_is_not_comparable(self) -> None:
        with pytest.raises(NotComparable, match="model is beef there"):
            judge(lossy(0), fp16(model="beef"), None, Budget())

    def test_a_question_hidden_at_compression_is_not_comparable(self) -> None:
        with pytest.raises(NotComparable, match="query_aware is False there"):
            judge(lossy(0), fp16(query_aware=False), None, Budget())

    def test_a_baseline_with_fewer_contexts_is_missing_some(self) -> None:
        with pytest.raises(MissingBaseline, match="holds 8 contexts; this run has 16"):
            judge(lossy(0), fp16(8), None, Budget())

    def test_an_unknown_word_for_against_is_refused(self) -> None:
        with pytest.raises(SpecError, match="did you mean self"):
            judge(lossy(0), fp16(), None, Budget(), against="slef")


class TestStoppingEarly:
    def test_a_total_loss_stops_before_the_end(self) -> None:
        assert sequential(record([0.0] * 4, n=64), fp16(64), None, Budget())

    def test_judging_the_stopped_record_agrees(self) -> None:
        found = judge(record([0.0] * 4, n=64), fp16(64), None, Budget())
        assert verdict("budget", found).outcome == "fail"

    def test_a_total_loss_of_graded_scores_stops_too(self) -> None:
        base = record([0.9] * 64, "fp16")
        assert sequential(record([0.1] * 8, n=64), base, None, Budget())

    def test_a_good_method_goes_on(self) -> None:
        assert not sequential(record([1.0] * 16, n=64), fp16(64), None, Budget())

    def test_a_regression_stops_too(self) -> None:
        assert sequential(record([0.0] * 4, n=64), None, record([1.0] * 64), Budget(), against="self")

    def test_nothing_measured_yet_goes_on(self) -> None:
        assert not sequential(replace(lossy(0), samples=()), fp16(), None, Budget())

    def test_a_stopped_record_is_judged_without_the_test_for_full_n(self) -> None:
        """Three of 16 lost are enough at an n of 16 set beforehand, but not where one could have stopped anywhere."""
        fixed = judge(lossy(3), fp16(64), None, Budget())
        stopped = judge(replace(lossy(3), case=replace(lossy(3).case, n=64)), fp16(64), None, Budget())
        assert [verdict("budget", one).outcome for one in (fixed, stopped)] == ["fail", "inconclusive"]

    def test_stopping_when_it_looks_bad_raises_no_false_alarms(self) -> None:
        rng = np.random.default_rng(6)
        base, alarms = fp16(48), 0
        for _ in range(40):
            scores = list(1.0 - (rng.random(48) < 0.1))
            for seen in range(12, 49, 12):
                part = record(scores[:seen], n=48)
                if sequential(part, base, None, Budget(drop=10), 0.1):
                    break
            alarms += verdict("budget", judge(part, base, None, Budget(drop=10), 0.1)).outcome == "fail"
        assert alarms / 40 <= 0.1
