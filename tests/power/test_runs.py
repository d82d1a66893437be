"""Whole simulated runs: noise and losses do what they say, and the check notices a judge that keeps no promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from kvcheck.core.record import CaseRecord, TurnRecord, context_score
from kvcheck.judging import stats
from kvcheck.judging.budget import Budget
from kvcheck.judging.pooled import Compared
from kvcheck.power import IDENTICAL, Noise, Recorded, load
from kvcheck.power.judging import Judged, as_a_run_does, remembering, stopped, together
from kvcheck.power.losses import ANSWERS, TOGETHER, Loss
from kvcheck.power.rates import Rate
from kvcheck.power.resample import draw
from kvcheck.power.runs import Setup, simulate, simulate_all, spread, trials

NOISY = Noise("noisy", flips=0.1, jitter=0.002)
FP16 = ("fp16",)


@pytest.fixture(scope="module")
def whole() -> Recorded:
    return load()


@pytest.fixture(scope="module")
def recorded(whole: Recorded) -> Recorded:
    """A few cases of three methods, so that a run takes a moment."""
    keys = [case for case in whole.cases if case.task in ("needle", "kv", "summary") and case.length == 512]
    return replace(whole, cases=tuple(keys), methods=("fp16", "kivi", "snapkv"))


def hasty(run: Sequence[Compared], budget: Budget, alpha: float) -> Judged:
    """A judge without statistics: any loss against its own record is a failure."""
    found = as_a_run_does(run, budget, alpha)
    cases = {
        key: tuple(replace(one, outcome="fail") if one.value > 0 else one for one in verdicts)
        for key, verdicts in found.cases.items()
    }
    return replace(found, cases=cases)


def red(recorded: Recorded, setup: Setup, runs: int, most: float | None = None, **more) -> Rate:
    (found,) = simulate_all(recorded, [(setup, runs)], **more)
    return Rate(sum(bool(one.failed) for one in found), runs, most)


def scores(record: CaseRecord) -> list[float]:
    return [turn.score for sample in record.samples for turn in sample.turns]


def turns(records: Sequence[CaseRecord]) -> list[TurnRecord]:
    return [turn for record in records for sample in record.samples for turn in sample.turns]


def drawn(recorded: Recorded, method: str = "fp16", n: int | None = None) -> list[CaseRecord]:
    return draw(recorded, method, np.random.default_rng(0), n)[0]


class TestRuns:
    def test_an_identical_rerun_never_fails(self, recorded: Recorded) -> None:
        assert red(recorded, Setup(IDENTICAL), 6).count == 0

    def test_the_check_notices_a_judge_without_statistics(self, recorded: Recorded) -> None:
        rate = red(recorded, Setup(NOISY), 12, 0.05, judge=hasty)
        assert (rate.refuted, rate.verdict) == (True, "MISSED")

    def test_the_real_judge_stands_the_same_noise(self, recorded: Recorded) -> None:
        assert not red(recorded, Setup(NOISY), 12, 0.05).refuted

    @pytest.mark.parametrize("own", [True, False])
    def test_a_broken_method_fails_every_run(self, recorded: Recorded, own: bool) -> None:
        assert red(recorded, Setup(IDENTICAL, own=own, points=60.0, methods=FP16), 3).count == 3

    def test_what_no_case_shows_the_run_shows(self, whole: Recorded) -> None:
        found = simulate(whole, Setup(own=False, nll=False, points=6.0, methods=FP16), 0, 0)
        assert ("run", "budget") in found.failed
        assert not any(name in found.judged.cases for name, _ in found.failed)

    def test_the_same_seed_gives_the_same_run_in_any_process(self, recorded: Recorded) -> None:
        kinds = [(Setup(NOISY, points=10.0), 12), (Setup(NOISY, stream=1), 3)]
        here, there = (simulate_all(recorded, kinds, 3, jobs=jobs) for jobs in (1, 2))
        assert here == there
        assert here[0][5] == simulate(recorded, kinds[0][0], 5, 3)

    def test_a_method_with_a_record_is_judged_against_that_alone(self, recorded: Recorded) -> None:
        for own, questions in ((True, {"regression", "drift", "divergence"}), (False, {"budget"})):
            found = simulate(recorded, Setup(own=own), 1, 0, together).judged.pooled["run"]
            assert {one.question for one in found} == questions

    def test_scopes_take_turns_with_every_method(self, recorded: Recorded) -> None:
        setup = Setup(loss=Loss(0.5), scopes=recorded.scopes("task"))
        hit = {(setup.method(recorded, run), setup.lost(recorded, run).scope) for run in range(9)}
        assert len(hit) == 9

    def test_a_case_ends_early_where_the_verdict_is_clear(self, recorded: Recorded) -> None:
        own, fp16 = draw(recorded, "fp16", np.random.default_rng(0), 64)
        lost = Loss(1.0).apply(own, np.random.default_rng(0))
        ends = {len(stopped(Compared(a, b, None), Budget(), 0.05).samples) for a, b in zip(lost, fp16, strict=True)}
        assert max(ends) < 64


class TestDrawing:
    def test_another_seed_gives_other_contexts(self, recorded: Recorded) -> None:
        one, two = (draw(recorded, "kivi", np.random.default_rng(seed))[0] for seed in (1, 2))
        assert one != two

    def test_the_method_and_fp16_have_the_same_contexts(self, recorded: Recorded) -> None:
        for own, fp16 in zip(*draw(recorded, "kivi", np.random.default_rng(0), 11), strict=True):
            assert [one.digest for one in own.samples] == [one.digest for one in fp16.samples]
            assert len(own.samples) == own.case.n == 11

    def test_a_context_is_drawn_in_all_of_its_modes(self, recorded: Recorded) -> None:
        """Then their scores hang together, as in a run."""
        whole = {case.mode: recorded.pair("snapkv", case)[0] for case in recorded.cases if case.task == "kv"}
        run = {one.case.mode: one for one in drawn(recorded, "snapkv") if one.case.task == "kv"}
        assert len(run) > 1
        places = []
        for mode, record in run.items():
            known = [one.digest for one in whole[mode].samples]
            places.append([known.index(one.digest) for one in record.samples])
        assert all(place == places[0] for place in places)


class TestNoiseAndLosses:
    def test_flips_turn_over_the_share_they_say(self, recorded: Recorded) -> None:
        rng, pairs = np.random.default_rng(0), []
        for own in drawn(recorded, "snapkv", 60):
            pairs += list(zip(scores(own), scores(NOISY.apply(own, rng)), strict=True))
        assert sum(a != b for a, b in pairs) / len(pairs) == pytest.approx(0.1, abs=0.03)

    @pytest.mark.parametrize("unit", ["contexts", ANSWERS, TOGETHER])
    def test_a_loss_takes_the_points_it_says(self, recorded: Recorded, unit: str) -> None:
        own = drawn(recorded, n=80)
        loss = Loss(unit=unit).taking(20.0, recorded.accuracy("fp16"))
        lost = loss.apply(own, np.random.default_rng(1))
        before, after = (np.mean([context_score(s) for one in run for s in one.samples]) for run in (own, lost))
        assert 100 * (before - after) == pytest.approx(20, abs=4)

    def test_lost_together_is_lost_in_every_mode(self, recorded: Recorded) -> None:
        lost = Loss(0.5, TOGETHER).apply(drawn(recorded), np.random.default_rng(1))
        gone = [
            [not any(turn.score for turn in one.turns) for one in record.samples]
            for record in lost
            if record.case.task == "kv"
        ]
        assert len(gone) > 1
        assert all(one == gone[0] for one in gone)

    def test_a_scope_is_all_that_is_hit(self, recorded: Recorded) -> None:
        own = drawn(recorded)
        lost = Loss(1.0, scope="task kv").apply(own, np.random.default_rng(0))
        hit = {a.case.task for a, b in zip(own, lost, strict=True) if a != b}
        assert hit == {"kv"}

    def test_a_lost_answer_gets_as_unlikely_as_recorded_ones(self, recorded: Recorded) -> None:
        own = [replace(one, samples=tuple(map(right, one.samples))) for one in drawn(recorded)]
        lost = turns(Loss(1.0, rises=(2.0,)).apply(own, np.random.default_rng(0)))
        assert {(one.score, round(one.nll or 0, 6)) for one in lost} == {(0.0, 2.1)}

    def test_nll_alone_moves_every_answer(self, recorded: Recorded) -> None:
        own = drawn(recorded)
        moved = turns(Loss(nll=0.3).apply(own, np.random.default_rng(0)))
        known = [(a, b) for a, b in zip(turns(own), moved, strict=True) if a.nll is not None and b.nll is not None]
        assert known
        assert all(b.nll - a.nll == pytest.approx(0.3) and a.score == b.score for a, b in known)

    def test_scores_alone_have_no_nll(self, recorded: Recorded) -> None:
        found = trials(recorded.scores_alone, Setup(nll=False), 0, 0)
        assert {turn.nll for one in found for turn in turns([one.record])} == {None}


def right(sample):
    return replace(sample, turns=tuple(replace(one, score=1.0, nll=0.1) for one in sample.turns))


def test_remembering_changes_no_number() -> None:
    values = list(np.random.default_rng(0).normal(size=90))
    names = range(90)
    calls = (
        lambda: stats.stratified_interval(values, names, [0] * 90, 0.05, lowest=-3.0, highest=3.0),
        lambda: stats.stratified_p(values, names, [0] * 90, 0.0, lowest=-3.0),
        lambda: stats.bootstrap_interval(values[:8], 0.01),
        lambda: stats.sign_flip(values),
    )
    plain = [call() for call in calls]
    with remembering():
        found = [[call() for call in calls] for _ in range(2)]
    assert found == [plain, plain]
    assert [call() for call in calls] == plain


def remembers(_: Recorded, at: int) -> tuple[int, bool]:
    return at, stats.bootstrap_interval.__qualname__.startswith("_remembered")


@pytest.mark.parametrize("jobs", [1, 2])
def test_whoever_simulates_remembers_for_as_long_as_it_does(recorded: Recorded, jobs: int) -> None:
    found = sorted(spread(recorded, remembers, [(0,), (1,), (2,)], jobs))
    assert found == [(0, True), (1, True), (2, True)]
    assert not remembers(recorded, 0)[1]


def test_a_rate_knows_its_exact_interval_and_what_was_wanted() -> None:
    assert Rate(0, 1000, 0.05).interval == pytest.approx((0.0, 0.0037), abs=1e-4)
    assert [Rate(count, 100, 0.05).verdict for count in (5, 8, 20)] == ["reached", "not reached", "MISSED"]
    assert [Rate(count, 100, least=0.9).verdict for count in (90, 88, 50)] == ["reached", "not reached", "MISSED"]
    assert Rate(3, 10).verdict == ""
    assert Rate(3, 10, least=0.95).wanted == "at least 95 %"
