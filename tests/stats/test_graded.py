"""Graded scores and clusters of turns: error rates by simulation with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from kvcheck.judging.stats import bootstrap_interval, clopper_pearson, mcnemar, sign_flip

RUNS = 120


def five_turns(rng: np.random.Generator, n: int) -> np.ndarray:
    """Five right/wrong turns per context, as easily lost as won: mean difference 0."""
    return (rng.random((n, 5)) < 0.2).mean(axis=1) - (rng.random((n, 5)) < 0.2).mean(axis=1)


def clustered(rng: np.random.Generator, n: int) -> np.ndarray:
    """Five turns of a context that stand and fall together."""
    return np.where(rng.random(n) < 0.4, rng.choice([-1.0, 1.0], n), 0.0)


def smooth(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.clip(rng.normal(0, 0.15, n), -1, 1)


NULLS = pytest.mark.parametrize("draw", [five_turns, clustered, smooth])


@NULLS
@pytest.mark.parametrize("n", [8, 12])
def test_the_interval_rarely_lies_above_a_drop_that_is_not_there(draw, n: int) -> None:
    rng = np.random.default_rng(1)
    alarms = sum(bootstrap_interval(draw(rng, n), 0.1, highest=1.0)[0] > 0 for _ in range(RUNS))
    assert alarms / RUNS <= 0.05 + 0.02


@NULLS
def test_the_interval_rarely_lies_below_a_drop_that_is_there(draw) -> None:
    rng = np.random.default_rng(2)
    missed = sum(bootstrap_interval(draw(rng, 12), 0.1, highest=1.0)[1] < 0 for _ in range(RUNS))
    assert missed / RUNS <= 0.05 + 0.02


@NULLS
@pytest.mark.parametrize("n", [10, 30])
def test_sign_flip_raises_false_alarms_at_most_at_its_rate(draw, n: int) -> None:
    rng, runs = np.random.default_rng(3), 120
    alarms = sum(sign_flip(draw(rng, n)) <= 0.05 for _ in range(runs))
    assert alarms / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_an_even_drop_is_seen() -> None:
    assert bootstrap_interval([0.15] * 16, 0.05, highest=1.0)[0] > 0.02


def test_identical_differences_never_give_a_point() -> None:
    low, high = bootstrap_interval([0.0] * 16, 0.05, lowest=-1.0, highest=1.0)
    assert (low, high) == pytest.approx((-0.206, 0.206), abs=0.01)


def test_on_losses_alone_the_upper_end_is_clopper_pearsons() -> None:
    high = bootstrap_interval([1.0] * 8 + [0.0] * 24, 0.05, highest=1.0)[1]
    assert high == pytest.approx(clopper_pearson(8, 32, 0.05)[1], abs=0.01)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [0.1, 0.0, -0.3, 0.7]
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_sign_flip_of_all_or_nothing_is_mcnemar() -> None:
    assert sign_flip([1.0] * 7 + [-1.0] * 2 + [0.0] * 9) == pytest.approx(mcnemar(7, 2, one_sided=True))


def test_no_change_has_p_1() -> None:
    assert sign_flip([0.0] * 5) == 1.0


def test_many_changes_are_flipped_at_random_and_agree_with_the_exact_test() -> None:
    assert sign_flip([1.0] * 24 + [-1.0] * 12) == pytest.approx(mcnemar(24, 12, one_sided=True), abs=0.005)
