"""Exact statistics for right/wrong scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kvcheck.judging.stats import clopper_pearson, count_changes, detectable, mcnemar, paired_interval, tail


@pytest.mark.parametrize(("lost", "won"), [(6, 0), (5, 3), (0, 0), (0, 4), (10, 10)])
def test_mcnemar_is_the_binomial_test(lost: int, won: int) -> None:
    known = scipy_stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(known)


def test_one_sided_mcnemar_is_half_where_all_are_losses() -> None:
    assert mcnemar(6, 0, one_sided=True) == pytest.approx(1 / 64)


def test_clopper_pearson_is_scipys() -> None:
    known = scipy_stats.binomtest(8, 32).proportion_ci(0.95, "exact")
    assert clopper_pearson(8, 32, 0.05) == pytest.approx((known.low, known.high))


def test_tail_is_the_binomial_survival_function() -> None:
    assert tail([0, 1, 5, 6], 5, 0.3) == pytest.approx(scipy_stats.binom.sf([-1, 0, 4, 5], 5, 0.3))


def test_changes_are_counted_by_direction() -> None:
    assert count_changes([1, 0, -1, 0.2]) == (2, 1)


def test_eight_lost_of_32_that_were_right() -> None:
    assert paired_interval(8, 32, 0, 0) == pytest.approx((0.1146, 0.4340), abs=5e-4)


def test_where_the_baseline_is_right_everywhere_it_is_clopper_pearson() -> None:
    assert paired_interval(3, 16, 0, 0, 0.01) == pytest.approx(clopper_pearson(3, 16, 0.01), abs=1e-6)


def test_where_the_baseline_is_wrong_everywhere_it_is_clopper_pearson_on_the_wins() -> None:
    low, high = clopper_pearson(3, 16, 0.01)
    assert paired_interval(0, 0, 3, 16, 0.01) == pytest.approx((-high, -low), abs=1e-6)


def test_no_change_still_has_a_width() -> None:
    assert paired_interval(0, 16, 0, 0) == pytest.approx((0.0, 0.2059), abs=1e-3)


def test_wins_that_were_not_seen_are_allowed_for() -> None:
    assert paired_interval(8, 28, 0, 4)[0] < paired_interval(8, 32, 0, 0)[0]


def test_wins_lower_the_whole_interval() -> None:
    assert all(a < b for a, b in zip(paired_interval(8, 26, 4, 6), paired_interval(8, 26, 0, 6), strict=True))


def test_the_interval_mirrors_when_losses_and_wins_swap() -> None:
    low, high = paired_interval(7, 12, 2, 8)
    assert paired_interval(2, 8, 7, 12) == pytest.approx((-high, -low))


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        paired_interval(3, 2, 0, 5)


@pytest.mark.parametrize(("right", "wrong"), [(8, 0), (14, 2), (10, 6), (3, 9)])
@pytest.mark.parametrize("alpha", [0.05, 0.002])
def test_each_end_misses_at_most_half_of_alpha_for_every_truth(right: int, wrong: int, alpha: float) -> None:
    """Enumerated, not simulated: every outcome, over a grid of truths that the code does not use."""
    lost, won = (grid.ravel() for grid in np.mgrid[0 : right + 1, 0 : wrong + 1])
    ends = np.array([paired_interval(int(a), right, int(b), wrong, alpha) for a, b in zip(lost, won, strict=True)])
    for p_lost in np.linspace(0.003, 0.97, 25):
        for p_won in np.linspace(0.001, 0.98, 25):
            chance = scipy_stats.binom.pmf(lost, right, p_lost) * scipy_stats.binom.pmf(won, wrong, p_won)
            drop = (right * p_lost - wrong * p_won) / (right + wrong)
            missed = max(chance[ends[:, 0] > drop + 1e-6].sum(), chance[ends[:, 1] < drop - 1e-6].sum())
            assert missed <= 1.02 * alpha / 2


def test_prompts_that_vary_keep_the_false_alarms_low() -> None:
    """fp16 is right nine times in ten, a harmless method loses as often as it wins; against a limit of two points."""
    rng = np.random.default_rng(7)
    runs, alarms = 400, 0
    for _ in range(runs):
        right = int(rng.binomial(32, 0.9))
        lost, won = int(rng.binomial(right, 0.03)), int(rng.binomial(32 - right, 0.27))
        alarms += paired_interval(lost, right, won, 32 - right)[0] > 0.02
    assert alarms / runs <= 0.025


def test_detectable_is_the_first_drop_beyond_the_limit() -> None:
    lost = round(32 * (detectable(32, 0.05, limit=0.02) or 0))
    beyond = [paired_interval(k, 32, 0, 0)[0] > 0.02 for k in (lost - 1, lost)]
    assert beyond == [False, True]


def test_contexts_that_the_baseline_has_wrong_show_less() -> None:
    assert (detectable(16, limit=0.02, right=10) or 1) > (detectable(16, limit=0.02) or 1)


def test_nothing_to_lose_can_show_nothing() -> None:
    assert detectable(4, right=0) is None


def test_large_samples_stay_exact() -> None:
    low, high = paired_interval(20, 380, 3, 20)
    assert (low, high) == pytest.approx((0.018, 0.068), abs=0.01)
