"""Many cases together: what is clustered and stratified, and the guarded bootstrap over it."""

from __future__ import annotations

import numpy as np
import pytest

from kvcheck.judging.stats import bootstrap_interval, stratified_interval, stratified_p, weighted_holm
from kvcheck.judging.stats.stratified import cluster, within


def test_clusters_keep_the_mean_of_all_values() -> None:
    values, names = cluster([1.0, 0.0, 0.5, 0.5, 0.0], ["a", "a", "b", "b", "c"])
    assert names == ["a", "b", "c"]
    assert values.mean() == pytest.approx(0.4)


def test_what_differs_between_strata_is_no_uncertainty() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    assert within(values, ["easy", "easy", "hard", "hard"]) == pytest.approx([0.5] * 4)


def test_what_varies_within_a_stratum_has_the_variance_of_a_sample() -> None:
    values = np.array([1.0, 0.0, 1.0, 0.0])
    assert within(values, ["one"] * 4).var() == pytest.approx(values.var(ddof=1))


def test_a_stratum_of_one_keeps_its_distance() -> None:
    values = np.array([0.9, 0.1, 0.2])
    assert within(values, ["a", "b", "b"])[0] == pytest.approx(0.9)


def test_contexts_that_are_one_draw_make_the_interval_wider() -> None:
    values = [1.0, 1.0, 0.0, 0.0] * 10
    one_stratum = ["all"] * 40
    apart = stratified_interval(values, list(range(40)), one_stratum, 0.05, lowest=-1, highest=1)
    together = stratified_interval(values, [at // 2 for at in range(40)], one_stratum, 0.05, lowest=-1, highest=1)
    assert together[0] < apart[0] < apart[1] < together[1]


def test_a_pool_without_a_change_has_a_width() -> None:
    low, high = stratified_interval([0.0] * 50, list(range(50)), ["all"] * 50, 0.05, lowest=-0.1, highest=0.9)
    assert low < 0 < high < 0.1


def test_the_p_value_is_the_level_at_which_the_interval_begins_at_the_limit() -> None:
    values, names, strata = [1.0] * 6 + [0.0] * 54, list(range(60)), ["all"] * 60
    p = stratified_p(values, names, strata, 0.05, lowest=-0.5)
    low, _ = stratified_interval(values, names, strata, 2 * p, lowest=-0.5, highest=0.5)
    assert low == pytest.approx(0.05, abs=0.004)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_intervals_of_drawn_losses_hold_the_truth_as_often_as_they_say(share: float) -> None:
    rng, runs, missed = np.random.default_rng(1), 300, 0
    strata = [at // 4 for at in range(80)]
    for _ in range(runs):
        lost = (rng.random(80) < share).astype(float)
        low, high = stratified_interval(list(lost), list(range(80)), strata, 0.1, lowest=-0.1, highest=0.9)
        missed += not low <= share <= high
    assert missed / runs <= 0.1 + 2 * (0.1 * 0.9 / runs) ** 0.5


def test_without_strata_and_clusters_it_is_the_plain_bootstrap() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 0.0]
    found = stratified_interval(values, list(range(5)), list(range(5)), 0.05, lowest=-1, highest=1)
    assert found == bootstrap_interval(values, 0.05, lowest=-1, highest=1)


def test_equal_shares_of_alpha_are_holms_procedure() -> None:
    assert weighted_holm([0.01, 0.04, 0.03, 0.5], [1 / 4] * 4) == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_a_rejected_test_leaves_its_share_to_the_others() -> None:
    alone, helped = weighted_holm([0.04], [0.5])[0], weighted_holm([0.001, 0.04], [0.5, 0.5])[1]
    assert (alone, helped) == (pytest.approx(0.08), pytest.approx(0.04))


def test_shares_that_are_not_asked_are_kept() -> None:
    assert weighted_holm([0.01], [0.25], total=0.8) == [pytest.approx(0.04)]
