"""Contexts needed, and the coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest

from kvcheck.core.record import Verdict
from kvcheck.judging.stats import tail
from kvcheck.power import IDENTICAL, Recorded, load
from kvcheck.power import coverage as cov
from kvcheck.power.judging import Trial, as_a_run_does
from kvcheck.power.needed import Pool, is_worse, judged, paired, pool, smallest, spread_after, usual
from kvcheck.power.noise import ANOTHER_MACHINE


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return load()


def test_the_usual_gate_needs_what_its_formula_says() -> None:
    assert usual(3.0) == pytest.approx(2 * (1.645 + 0.842) ** 2 * 50**2 / 3**2, rel=1e-3)


def test_the_spread_after_a_loss_is_that_of_the_scores() -> None:
    means = np.array([1.0, 1.0, 0.5, 0.0])
    before, after = spread_after(means, 100 * means.mean() * 0.25)
    known = np.concatenate([np.repeat(means, 3), np.zeros(4)])  # one in four is lost
    assert (before, after) == pytest.approx((100 * means.std(), 100 * known.std()))


def test_identical_reruns_need_five_lost_contexts(recorded: Recorded) -> None:
    """One-sided McNemar at 0.05 needs five losses: the smallest n with P(at least 5 of n) >= 0.8."""
    all_right = Pool("all right", np.ones((10, 1)))
    exact = next(n for n in range(1, 999) if tail(5, n, 0.1) >= 0.8)
    assert paired(recorded, all_right, 10.0, IDENTICAL, 600, 0).n == pytest.approx(exact, rel=0.08)


def test_is_worse_is_one_sided() -> None:
    assert is_worse(np.array([1.0] * 5 + [0.0] * 9))
    assert not is_worse(np.array([-1.0] * 9))
    assert is_worse(np.array([0.25] * 5)) and not is_worse(np.array([0.25] * 4))  # noqa: PT018


def test_the_search_finds_the_step() -> None:
    found = smallest(lambda n: 10 if n >= 37 else 0, 10, 1000)
    assert (found.n, smallest(lambda n: 0, 10, 100).n) == (37, None)


def test_a_pool_of_single_questions_has_one_turn(recorded: Recorded) -> None:
    assert pool(recorded, "one", ["fp16"], single=True).turns == 1.0
    assert pool(recorded, "all", ["fp16"]).turns > 3


def test_nll_sees_a_drop_with_fewer_contexts(recorded: Recorded) -> None:
    scores, drift = (judged(recorded, 20.0, ANOTHER_MACHINE, nll, 20, 0).n for nll in (False, True))
    assert scores is not None
    assert drift is not None
    assert drift < scores


class TestCoverage:
    def test_the_true_drop_is_what_many_draws_give(self, recorded: Recorded) -> None:
        world = next(one for one in cov.worlds(recorded) if one.loss == 0.2)
        record, fp16 = world.draw(6000, np.random.default_rng(0))
        assert fp16.accuracy - record.accuracy == pytest.approx(world.drop, abs=0.02)
        assert world.given(fp16) == pytest.approx(world.drop, abs=0.02)

    def test_the_interval_holds_the_truth(self, recorded: Recorded) -> None:
        for at, world in enumerate(cov.worlds(recorded)):
            assert not cov.cover(recorded, world, 8, 40, 0, at).promised.refuted

    def test_an_interval_that_is_too_narrow_is_noticed(
        self, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def narrow(record, other, pairs, alpha):
            mean = other.accuracy - record.accuracy
            return mean - 0.01, mean + 0.01

        monkeypatch.setattr(cov, "drop_interval", narrow)
        assert cov.cover(recorded, cov.worlds(recorded)[0], 8, 40, 0).promised.refuted

    def test_looking_after_every_block_is_fine_and_an_impatient_judge_is_noticed(self, recorded: Recorded) -> None:
        def impatient(trial: Trial) -> tuple[Verdict, ...]:
            """Stops at the first block whose plain mean is beyond the limit."""
            found = as_a_run_does(trial)
            means = np.cumsum([a.turns[0].score < b.turns[0].score for a, b in zip(*samples(trial), strict=True)])
            beyond = any(100 * means[n - 1] / n > (trial.budget.drop or 0) for n in range(4, len(means) + 1, 4))
            return tuple(Verdict(**{**vars(one), "outcome": "fail" if beyond else one.outcome}) for one in found)

        def samples(trial: Trial):
            return trial.record.samples, trial.fp16.samples if trial.fp16 else ()

        world = cov.worlds(recorded)[2]
        fair, hasty = (cov.peek_budget(recorded, world, 16, 30, 0, judge=judge) for judge in (as_a_run_does, impatient))
        assert (fair.failed.refuted, hasty.failed.refuted) == (False, True)
